# SPDX-License-Identifier: Apache-2.0
"""What a text makes of the n-gram tables of a config: rows it touches, collisions, and rules to keep.

    python -m eval.ngrams.report --config outputs/demo/model --tokenizer outputs/demo/model
    python -m eval.ngrams.report --model outputs/demo/model --text book.txt
    python -m eval.ngrams.report --ratios 30.0:33.0:0.1

The first reads no weights. `--model` also measures how loud the embedding is beside the first attention. `--ratios`
counts the collisions of tables of other sizes instead; without `--tokenizer`, with one of 4,096 tokens trained on
Python's documentation. The text is the standard library of the running Python, unless files are given. The
rules are those of `ngram_rules.py`.

Shapes: T tokens, S tables, N highest n-gram order, G distinct n-grams of an order.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from eval.checkpoints.load import load_config, load_tokenizer
from eval.checkpoints.parameters import report as parameter_report
from eval.losses.text import longest_window
from eval.ngrams.cache_hits import NEVER, previous_reads
from eval.ngrams.collisions import DistinctNgrams, count_collisions, distinct_ngrams
from eval.ngrams.report import size_ratios as collision_ratios
from eval.ngrams.report.markdown import as_markdown, draw
from eval.ngrams.report.norms import branch_norms
from eval.ngrams.report.row_texts import most_used_rows
from eval.ngrams.report.rules import norm_rule, occupied_rule, share_rule, size_rule
from eval.ngrams.table_reads import read_tokens, table_rows
from eval.ngrams.working_set.__main__ import curve_points, describe
from eval.reports.files import write_report
from eval.reports.results import result_file
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.configuration_longcat_lite import segment_ends
from modeling_longcat_lite.ngram_embedding import ngram_tokens
from tokenization.number_options import check_counts
from training.data.local_text import documents

NAME = "ngram_report"
ROWS_SHOWN = 5  # an order
NGRAMS_SHOWN = 4  # a row


def measure_tables(config: LongCatLiteConfig, rows: np.ndarray, orders: list[DistinctNgrams]) -> list[dict]:
    """Hit rate and collisions of every table, from the rows `[T, S]` that the tokens read."""
    points = np.array(curve_points(len(rows))) - 1
    tables = []
    for table, size in enumerate(config.subtable_sizes):
        ngrams = orders[table // config.num_subtables_per_order]
        seen = np.cumsum(previous_reads(rows[:, table]) == NEVER)  # [T] distinct rows so far
        tables.append(
            {
                "table": table,
                "order": ngrams.order,
                "size_ratio": size / config.ngram_base_vocab_size,
                **count_collisions(rows[ngrams.first, table], size),
                "hit_rate_by_tokens": (seen[points] / size).tolist(),
            }
        )
    return tables


def sums_by_order(tables: list[dict]) -> dict[str, dict]:
    """The tables of each order together, `"2-grams"` and so on; `ngrams` are those of one table."""
    orders = {}
    for order in sorted({table["order"] for table in tables}):
        parts = [table for table in tables if table["order"] == order]
        rows = sum(part["rows"] for part in parts)
        summed = ("collisions", "expected_collisions", "sharing", "expected_sharing")
        curves = [[rate * part["rows"] for rate in part["hit_rate_by_tokens"]] for part in parts]
        orders[f"{order}-grams"] = {
            "tables": len(parts),
            "rows": rows,
            "ngrams": parts[0]["ngrams"],
            "hit_rate": sum(part["occupied"] for part in parts) / rows,
            **{key: sum(part[key] for part in parts) / len(parts) for key in summed},
            "hit_rate_by_tokens": [sum(point) / rows for point in zip(*curves, strict=True)],
        }
    return orders


def measure_model(folder: Path, results: dict, tokens: np.ndarray, window: int):
    """Adds the norms of the model in `folder` to the results, and whose they are."""
    model = LongCatLiteForCausalLM.from_pretrained(folder, ngram_tables="disk").eval()
    window = min(window, longest_window(model.config))
    norms = branch_norms(model, torch.from_numpy(tokens), window)
    results["norms"] = {**norms, "tokens": len(tokens), "window": window}
    found = {
        "task": "n-gram embedding",
        "metric": "first attention / embedding, L2 norm",
        "value": norms["ratio"],
        "samples": len(tokens),
    }
    for key, value in result_file(folder, NAME, [found]).items():
        results[key] = {**value, **results["model"]} if key == "model" else value


def measure(arguments: argparse.Namespace) -> dict:
    """Reads, counts, and with `--model` runs the model."""
    source = arguments.config or arguments.model
    config = load_config(source)
    where = arguments.tokenizer or source
    tokenizer = load_tokenizer(where, config)
    stream = read_tokens(tokenizer, documents(arguments.text), segment_ends(config), arguments.tokens)
    rows = table_rows(config, stream.tokens)
    orders = distinct_ngrams(ngram_tokens(config, torch.from_numpy(stream.tokens)[None])[0].numpy())
    tables = measure_tables(config, rows, orders)
    described = argparse.Namespace(model=source, tokenizer=where, text=arguments.text)
    results = {
        **describe(described, config, tokenizer, stream),
        "curve_tokens": curve_points(len(stream.tokens)),
        "ngram_share": parameter_report(config)["ngram_share"],
        "orders": sums_by_order(tables),
        "tables": tables,
        "most_used": most_used_rows(rows, orders, tokenizer, ROWS_SHOWN, NGRAMS_SHOWN),
    }
    if arguments.model:
        measure_model(Path(arguments.model), results, stream.tokens[: arguments.model_tokens], arguments.window)
    results["rules"] = [share_rule(results["ngram_share"]), size_rule(tables)]
    if "norms" in results:
        results["rules"].append(norm_rule(results["norms"]))
    results["rules"].append(occupied_rule(tables, config.ngram_base_vocab_size))
    return results


def make_parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", help="Folder, config.json or Hub name; by default that of --model.")
    parser.add_argument("--model", help="Folder of a model, whose weights are run; the rest needs none.")
    parser.add_argument("--tokenizer", help="Folder or Hub name of a tokenizer; by default that of the model.")
    parser.add_argument("--text", type=Path, nargs="+", help="UTF-8 files; the standard library by default.")
    parser.add_argument("--tokens", type=int, default=200_000, help="At most so many tokens are read.")
    parser.add_argument("--model-tokens", type=int, default=8192, help="Of these, so many run through --model.")
    parser.add_argument("--window", type=int, default=512, help="In windows of so many.")
    parser.add_argument("--ratios", help="FIRST:LAST:STEP: 2-gram collisions at these ratios of table to vocabulary.")
    parser.add_argument("--name", help=f"Of the files; {NAME}, or {collision_ratios.NAME} with --ratios.")
    parser.add_argument("--output", type=Path, default=Path("eval/results"), help="Folder for JSON, Markdown and PNG.")
    return parser


def check_arguments(arguments: argparse.Namespace):
    """Raises a `ValueError` that names the option."""
    check_counts(arguments, "tokens", "model_tokens", "window")
    if arguments.ratios and (arguments.config or arguments.model):
        raise ValueError("`--ratios` counts at the vocabulary of --tokenizer: leave out `--config` and `--model`")
    if not arguments.ratios and not (arguments.config or arguments.model):
        raise ValueError("Give `--config`, `--model` or `--ratios`")
    if arguments.model and not Path(arguments.model).is_dir():
        raise ValueError(f"`--model` {arguments.model} is no folder; `--config` takes Hub names, and reads no weights")
    if arguments.config and arguments.model:
        given, found = load_config(arguments.config), load_config(arguments.model)
        if (given.subtable_sizes, given.vocab_size) != (found.subtable_sizes, found.vocab_size):
            raise ValueError(f"`--config` {arguments.config} has other tables than `--model` {arguments.model}")


def main(arguments: argparse.Namespace):
    """Measures, writes, prints what is against a rule."""
    check_arguments(arguments)
    module_name = collision_ratios.NAME if arguments.ratios else NAME
    name = arguments.name or module_name
    if arguments.ratios:
        results = collision_ratios.measure(arguments.ratios, arguments.tokenizer, arguments.text, arguments.tokens)
        text, picture = collision_ratios.as_markdown(results, name), collision_ratios.draw
    else:
        results = measure(arguments)
        text, picture = as_markdown(results, name), draw
    paths = write_report(arguments.output, name, results, text)
    paths.append(arguments.output / f"{name}.png")
    picture(results, paths[-1])
    console = Console()
    for rule in results.get("rules", []):
        console.print("[green]kept[/]" if rule["kept"] else "[yellow]WARNING[/]", rule["text"], soft_wrap=True)
    console.print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)


if __name__ == "__main__":
    main(make_parser().parse_args())
