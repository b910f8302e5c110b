# SPDX-License-Identifier: Apache-2.0
"""Which rows of the n-gram tables real text reads, and what a cache of rows would hit.

    python -m eval.ngrams.working_set --tokenizer outputs/demo/model
    python -m eval.ngrams.working_set --model CHECKPOINT --tokenizer CHECKPOINT --text book.txt \
        --hot-rows hot.safetensors

A token reads one row of each table. Which one depends on tokens and config alone: no weight is needed, and without
`--model` the config is that of the released model. The text is the standard library of the running Python, unless
files are given.

Shapes: T tokens, S tables, R reads (T times the tables that are looked at).
"""

import argparse
import platform
from datetime import date
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from eval.checkpoints.load import load_config, load_tokenizer
from eval.ngrams.cache_hits import NEVER, lru_hit_rates, previous_reads, stack_distances, static_hit_rates
from eval.ngrams.table_reads import TokenStream, read_tokens, row_bytes, table_rows, vocabulary_digest
from eval.ngrams.working_set.report import as_markdown, draw
from eval.reports.files import spoken_path, write_report
from modeling_longcat_lite import LongCatLiteConfig, write_hot_rows
from modeling_longcat_lite.configuration_longcat_lite import segment_ends
from tokenization.number_options import check_counts
from training.data.local_text import documents

CACHE_SIZES = [4**n for n in range(5, 11)]  # rows
WINDOW = 1000  # tokens


def curve_points(tokens: int) -> list[int]:
    """1, 2 and 5 times the powers of ten from 100 up, and the whole."""
    steps = (digit * 10**power for power in range(2, len(str(tokens))) for digit in (1, 2, 5))
    return [step for step in steps if step < tokens] + [tokens]


def measure_tables(keys: np.ndarray, sizes: list[int]) -> dict:
    """Distinct rows and hit rates of some tables, read in the order of the tokens.

    Args:
        keys (`np.ndarray` of shape `[T, tables]`): What names a row among all tables.
        sizes (`list[int]`): Rows of the caches, which all these tables share.
    """
    tokens, tables = keys.shape
    reads = keys.reshape(-1)  # [R]
    previous = previous_reads(reads)
    distances = stack_distances(previous)
    seen = np.cumsum((previous == NEVER).reshape(tokens, tables).sum(axis=1))  # [T] distinct rows so far
    whole = tokens // WINDOW * WINDOW * tables
    begins = np.arange(whole) // (WINDOW * tables) * (WINDOW * tables)  # where the window of each read begins
    half = tokens // 2 * tables
    return {
        "tables": tables,
        "reads": len(reads),
        "distinct_rows": int(seen[-1]),
        "repeated_share": float(1 - seen[-1] / len(reads)),
        "distinct_rows_by_tokens": [int(seen[point - 1]) for point in curve_points(tokens)],
        "distinct_rows_per_thousand_tokens": float((previous[:whole] < begins).sum() / (whole // tables // WINDOW)),
        "new_rows_of_last_thousand_tokens": int(seen[-1] - seen[-1 - WINDOW] if tokens > WINDOW else seen[-1]),
        "lru_hit_rate": lru_hit_rates(distances, sizes),
        "lru_hit_rate_second_half": lru_hit_rates(distances[half:], sizes),
        "static_hit_rate_second_half": static_hit_rates(reads[:half], reads[half:], sizes),
        "second_half_seen_in_first": static_hit_rates(reads[:half], reads[half:], [half])[0],
    }


def measure(config: LongCatLiteConfig, rows: np.ndarray, sizes: list[int]) -> dict[str, dict]:
    """`measure_tables` of each n-gram order, `"2-grams"` and so on, and of `"all"`; rows `[T, S]`."""
    keys = rows + np.cumsum([0, *config.subtable_sizes[:-1]])  # [T, S]
    per_order = config.num_subtables_per_order
    parts = {
        f"{order}-grams": keys[:, (order - 2) * per_order : (order - 1) * per_order]
        for order in range(2, config.max_ngram_order + 1)
    }
    parts["all"] = keys
    return {name: measure_tables(part, sizes) for name, part in track(parts.items(), "tables", transient=True)}


def describe(arguments: argparse.Namespace, config: LongCatLiteConfig, tokenizer, stream: TokenStream) -> dict:
    """What the numbers belong to: date, model, tokenizer, text."""
    given = bool(arguments.text)
    return {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "model": {
            "name": spoken_path(arguments.model) if arguments.model else "LongCat-Flash-Lite as released",
            "vocab_size": config.vocab_size,
            "ngram_base_vocab_size": config.ngram_base_vocab_size,
            "max_ngram_order": config.max_ngram_order,
            "tables": config.num_subtables,
            "rows": sum(config.subtable_sizes),
            "row_bytes": row_bytes(config),
        },
        "tokenizer": {
            "name": spoken_path(arguments.tokenizer),
            "tokens": len(tokenizer),
            "digest": vocabulary_digest(tokenizer),
        },
        "text": {
            "source": "given files" if given else f"standard library of Python {platform.python_version()}",
            "documents": len(stream.names),
            "first": stream.names[0],
            "last": stream.names[-1],
            "characters": stream.characters,
            "tokens": len(stream.tokens),
        },
    }


def make_parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="Folder, config.json or Hub name; the released model by default.")
    parser.add_argument("--tokenizer", required=True, help="Folder or Hub name of a tokenizer.")
    parser.add_argument("--text", type=Path, nargs="+", help="UTF-8 files; the standard library by default.")
    parser.add_argument("--tokens", type=int, default=200_000, help="At most so many tokens are read.")
    parser.add_argument("--cache-sizes", type=int, nargs="+", default=CACHE_SIZES, help="In rows.")
    parser.add_argument("--hot-rows", type=Path, help="File for the most used rows of each table.")
    parser.add_argument("--hot-row-count", type=int, default=10_000, help="Rows of each table in that file.")
    parser.add_argument("--output", type=Path, default=Path("eval/results"), help="Folder for JSON, Markdown and PNG.")
    return parser


def check_arguments(arguments: argparse.Namespace):
    """Raises a `ValueError` that names the option."""
    check_counts(arguments, "tokens", "cache_sizes", "hot_row_count")


def main(arguments: argparse.Namespace):
    """Reads, counts, writes."""
    check_arguments(arguments)
    config = load_config(arguments.model)
    tokenizer = load_tokenizer(arguments.tokenizer, config)
    stream = read_tokens(tokenizer, documents(arguments.text), segment_ends(config), arguments.tokens)
    rows = table_rows(config, stream.tokens)
    sizes = sorted(set(arguments.cache_sizes))
    results = {
        **describe(arguments, config, tokenizer, stream),
        "window_tokens": WINDOW,
        "curve_tokens": curve_points(len(stream.tokens)),
        "cache_rows": sizes,
        "orders": measure(config, rows, sizes),
    }
    paths = write_report(arguments.output, "working_set", results, as_markdown(results))
    paths.append(arguments.output / "working_set.png")
    draw(results, paths[-1])
    if arguments.hot_rows:
        write_hot_rows(arguments.hot_rows, config, torch.from_numpy(rows.T), arguments.hot_row_count)
        paths.append(arguments.hot_rows)
    Console().print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)


if __name__ == "__main__":
    main(make_parser().parse_args())
