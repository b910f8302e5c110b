# SPDX-License-Identifier: Apache-2.0
"""Which rows of the n-gram tables real text reads, and how often a cache of rows would hit.

    python -m eval.ngrams.working_set --tokenizer outputs/demo/model
    python -m eval.ngrams.working_set --model CHECKPOINT --tokenizer CHECKPOINT --text book.txt \
        --hot-rows hot.safetensors

A token reads one row of each table. Which one depends only on the tokens and the config, so no weights are needed;
without `--model` the config is that of the released model. The text is the standard library of the running Python,
unless files are given.

Shapes: T tokens, S sub-tables.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track

from eval.checkpoints.load import ModelFolder
from eval.ngrams.cache_hits import NEVER, lru_hit_rates, previous_reads, stack_distances, static_hit_rates
from eval.ngrams.presentation import COLOURS, TOTAL_COLOUR, binary_size, heading, percent
from eval.ngrams.token_rows import curve_points, describe, read_tokens, token_rows
from eval.reports.files import markdown_table, write_report
from modeling_longcat_lite import LongCatLiteConfig, write_hot_rows
from modeling_longcat_lite.configuration_longcat_lite import segment_ends
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_counts
from training.data.local_text import documents

CACHE_SIZES = [4**n for n in range(5, 11)]  # rows
WINDOW = 1000  # tokens
NOTES = """\
*All* means every table together; an n-gram order has {per_order} tables. A cache is named by the number of its rows,
which the tables of its column share; it holds nothing else. *LRU* drops the least recently used row; it starts empty.
*Frequent* holds the rows that were read most often in the first half of the tokens and never changes; it is measured
on the second half. So is the LRU cache that it is compared with, which the first half has filled. Reads of the word
embedding are not counted.
"""


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


def measure_tables(keys: np.ndarray, sizes: list[int]) -> dict:
    """Distinct rows and hit rates of some tables, read in the order of the tokens.

    Args:
        keys (`np.ndarray` of shape `[T, tables]`): Numbers that identify a row among all tables.
        sizes (`list[int]`): Rows of the caches, which all these tables share.
    """
    tokens, tables = keys.shape
    reads = keys.reshape(-1)  # [T * tables]
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


def as_markdown(results: dict) -> str:
    """The whole report."""
    orders = results["orders"]
    seen = ", ".join(f"{name} {percent(part['second_half_seen_in_first'])}" for name, part in orders.items())
    sections = [
        f"# Working set of the n-gram tables\n\n{heading(results)}\n"
        + NOTES.format(per_order=orders["2-grams"]["tables"]),
        "![Distinct rows and hit rates](working_set.png)\n",
        "## Rows\n\n*Distinct / 1,000 tokens*: mean over windows of that length. *New, last*: rows that are read for\n"
        "the first time in the last 1,000 tokens.\n\n" + summary_table(results),
        "## Distinct rows by tokens read\n\n" + curve_table(results),
        "## LRU, whole text\n\n" + hit_table(results, "lru_hit_rate"),
        "## LRU, second half\n\n" + hit_table(results, "lru_hit_rate_second_half"),
        "## Frequent, second half\n\nA static cache chosen on the first half can hit at most the rows that the first\n"
        f"half read: {seen}.\n\n" + hit_table(results, "static_hit_rate_second_half"),
    ]
    return "\n".join(sections)


def summary_table(results: dict) -> str:
    """One line per order: rows, bytes, repeats."""
    bytes_per_row = results["model"]["row_bytes"]
    header = ["tables", "reads", "distinct rows", "bytes", "repeated", "distinct / 1,000 tokens", "bytes", "new, last"]
    lines = [
        [
            name,
            f"{part['reads']:,}",
            f"{part['distinct_rows']:,}",
            binary_size(part["distinct_rows"] * bytes_per_row),
            percent(part["repeated_share"]),
            f"{part['distinct_rows_per_thousand_tokens']:,.0f}",
            binary_size(part["distinct_rows_per_thousand_tokens"] * bytes_per_row),
            f"{part['new_rows_of_last_thousand_tokens']:,}",
        ]
        for name, part in results["orders"].items()
    ]
    return markdown_table(header, lines)


def curve_table(results: dict) -> str:
    """Distinct rows against tokens read."""
    orders, bytes_per_row = results["orders"], results["model"]["row_bytes"]
    curves = [part["distinct_rows_by_tokens"] for part in orders.values()]
    lines = [
        [f"{tokens:,}", *(f"{rows:,}" for rows in counts), binary_size(counts[-1] * bytes_per_row)]
        for tokens, *counts in zip(results["curve_tokens"], *curves, strict=True)
    ]
    return markdown_table(["tokens", *orders, "bytes, all"], lines)


def hit_table(results: dict, key: str) -> str:
    """Hit rate against cache size."""
    orders = results["orders"]
    rates = [part[key] for part in orders.values()]
    lines = [
        [f"{rows:,}", binary_size(rows * results["model"]["row_bytes"]), *map(percent, shares)]
        for rows, *shares in zip(results["cache_rows"], *rates, strict=True)
    ]
    return markdown_table(["rows", "bytes", *orders], lines)


def draw(results: dict) -> Figure:
    """Distinct rows against tokens, and hit rates of the second half against rows; one colour per order."""
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    growth, caches = figure.subplots(1, 2)
    bytes_per_row, orders = results["model"]["row_bytes"], results["orders"]
    for i, (name, part) in enumerate(orders.items()):
        colour = TOTAL_COLOUR if name == "all" else COLOURS[i % len(COLOURS)]
        growth.plot(results["curve_tokens"], part["distinct_rows_by_tokens"], "o-", ms=3, color=colour, label=name)
        for key, style, label in (
            ("lru_hit_rate_second_half", "o-", f"{name}, LRU"),
            ("static_hit_rate_second_half", "s--", f"{name}, frequent"),
        ):
            rates = [100 * rate for rate in part[key]]
            caches.plot(results["cache_rows"], rates, style, ms=3, color=colour, label=label)
    most = [tokens * orders["all"]["tables"] for tokens in results["curve_tokens"]]
    growth.plot(results["curve_tokens"], most, ":", color="#999999", label="all, if no row were repeated")
    growth.set(xscale="log", yscale="log", xlabel="tokens read", ylabel="distinct rows", title="Rows read")
    to_mib = bytes_per_row / 2**20
    bytes_axis = growth.secondary_yaxis("right", functions=(lambda rows: rows * to_mib, lambda mib: mib / to_mib))
    bytes_axis.set_ylabel("MiB")
    caches.set(xscale="log", xlabel=f"rows in the cache ({bytes_per_row} bytes each)", ylabel="hit rate, %")
    caches.set(ylim=(0, 100), title="Second half of the text")
    for panel in (growth, caches):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    return figure


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.ngrams.working_set", __doc__.split("\n")[0])
    parser.add_shared("--model", help="folder, config.json or Hub name; the released model if left out")
    parser.add_shared("--tokenizer", required=True, help="folder or Hub name of a tokenizer")
    parser.add_shared("--text", help="text files, UTF-8; Python's standard library if left out")
    parser.add_argument("--tokens", type=int, default=200_000, help="tokens to read at most")
    parser.add_argument("--cache-sizes", type=int, nargs="+", default=CACHE_SIZES, help="sizes of caches, in rows")
    parser.add_argument("--hot-rows", type=Path, metavar="FILE", help="file to write the rows of each table read most")
    parser.add_argument("--hot-row-count", type=int, default=10_000, help="rows of each table in that file")
    parser.add_shared("--output", default=Path("eval/results"))
    return parser


def main(arguments: argparse.Namespace):
    """Reads, counts, writes."""
    check_counts(arguments, "tokens", "cache_sizes", "hot_row_count")
    folder = ModelFolder(arguments.model, arguments.tokenizer)
    config, tokenizer = folder.ngram_config, folder.tokenizer
    stream = read_tokens(tokenizer, documents(arguments.text), segment_ends(config), arguments.tokens)
    rows = token_rows(config, stream.tokens)
    sizes = sorted(set(arguments.cache_sizes))
    results = {
        **describe(config, tokenizer, stream, arguments.model, arguments.tokenizer, bool(arguments.text)),
        "window_tokens": WINDOW,
        "curve_tokens": curve_points(len(stream.tokens)),
        "cache_rows": sizes,
        "orders": measure(config, rows, sizes),
    }
    paths = write_report(arguments.output, "working_set", results, as_markdown(results), draw(results))
    if arguments.hot_rows:
        write_hot_rows(arguments.hot_rows, config, torch.from_numpy(rows.T), arguments.hot_row_count)
        paths.append(arguments.hot_rows)
    print("Written: " + ", ".join(map(str, paths)))


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
