# SPDX-License-Identifier: Apache-2.0
"""The n-gram tables of a config and a text: rows read, collisions, norms, and the paper's design rules.

    python -m eval.ngrams.report --config outputs/demo/model --tokenizer outputs/demo/model
    python -m eval.ngrams.report --model outputs/demo/model --text book.txt
    python -m eval.ngrams.report --ratios 30.0:33.0:0.1

The first command reads no weights. `--model` also measures how large the embedding is compared with the output of the
first attention. `--ratios` instead counts the collisions in tables of other sizes; without `--tokenizer` it trains one
of 4,096 tokens on Python's documentation. The text is the standard library of the running Python, unless files are
given. `rules.py` has the design rules.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from eval.checkpoints.load import ModelFolder
from eval.checkpoints.parameters import report as parameter_report
from eval.losses.text import longest_window
from eval.ngrams.collisions import distinct_ngrams
from eval.ngrams.report import size_ratios
from eval.ngrams.report.measures import branch_norms, ngram_texts, order_figures, table_figures
from eval.ngrams.report.render import as_markdown, draw
from eval.ngrams.report.rules import norm_rule, occupied_rule, share_rule, size_rule
from eval.ngrams.token_rows import curve_points, describe, read_tokens, token_rows
from eval.reports.files import write_report
from eval.reports.results import result_file
from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.configuration_longcat_lite import segment_ends
from modeling_longcat_lite.ngram_embedding import ngram_tokens
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_counts
from training.data.local_text import documents

NAME = "ngram_report"
ROWS_SHOWN = 5  # per order
NGRAMS_SHOWN = 4  # per row


def measure(arguments: argparse.Namespace) -> dict:
    """Reads the text, counts, and, with `--model`, runs the model."""
    source = arguments.config or arguments.model
    folder = ModelFolder(source, arguments.tokenizer)
    config, tokenizer = folder.ngram_config, folder.tokenizer
    stream = read_tokens(tokenizer, documents(arguments.text), segment_ends(config), arguments.tokens)
    rows = token_rows(config, stream.tokens)
    orders = distinct_ngrams(ngram_tokens(config, torch.from_numpy(stream.tokens)[None])[0].numpy())
    tables = table_figures(config, rows, orders)
    results = {
        **describe(config, tokenizer, stream, source, str(folder.tokenizer_source), bool(arguments.text)),
        "curve_tokens": curve_points(len(stream.tokens)),
        "ngram_share": parameter_report(config)["ngram_share"],
        "orders": order_figures(tables),
        "tables": tables,
        "most_used": ngram_texts(rows, orders, tokenizer, ROWS_SHOWN, NGRAMS_SHOWN),
    }
    if arguments.model:
        measure_model(Path(arguments.model), results, stream.tokens[: arguments.model_tokens], arguments.window)
    results["rules"] = [share_rule(results["ngram_share"]), size_rule(tables)]
    if "norms" in results:
        results["rules"].append(norm_rule(results["norms"]))
    results["rules"].append(occupied_rule(tables, config.ngram_base_vocab_size))
    return results


def measure_model(folder: Path, results: dict, tokens: np.ndarray, window: int):
    """Adds the norms of the model in `folder` to the results, and its identity."""
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


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.ngrams.report", __doc__.split("\n")[0])
    parser.add_argument("--config", metavar="DIR", help="folder, config.json or Hub name; --model's if left out")
    parser.add_shared("--model", help="folder of a model to run; without it, no weights are read")
    parser.add_shared("--tokenizer", help="folder or Hub name of the tokenizer; the model's own if left out")
    parser.add_shared("--text", help="text files, UTF-8; Python's standard library if left out")
    parser.add_argument("--tokens", type=int, default=200_000, help="tokens to read at most")
    parser.add_argument("--model-tokens", type=int, default=8192, help="tokens, of these, that --model runs on")
    parser.add_argument("--window", type=int, default=512, help="tokens that the model reads at once")
    parser.add_argument(
        "--ratios",
        metavar="FIRST:LAST:STEP",
        help="count 2-gram collisions at these ratios of table rows to vocabulary instead",
    )
    parser.add_shared("--name", help=f"name of the files; {NAME}, or {size_ratios.NAME} with --ratios, if left out")
    parser.add_shared("--output", default=Path("eval/results"))
    return parser


def check_arguments(arguments: argparse.Namespace):
    """Raises a `ValueError` that names the option."""
    check_counts(arguments, "tokens", "model_tokens", "window")
    if arguments.ratios and (arguments.config or arguments.model):
        raise ValueError("`--ratios` uses the vocabulary of --tokenizer: leave out `--config` and `--model`")
    if not arguments.ratios and not (arguments.config or arguments.model):
        raise ValueError("Give `--config`, `--model` or `--ratios`")
    if arguments.model and not Path(arguments.model).is_dir():
        raise ValueError(
            f"`--model` {arguments.model} is not a folder. For a Hub name, give `--config`, which reads no weights"
        )
    if arguments.config and arguments.model:
        given, found = (ModelFolder(each).ngram_config for each in (arguments.config, arguments.model))
        if (given.subtable_sizes, given.vocab_size) != (found.subtable_sizes, found.vocab_size):
            raise ValueError(f"`--config` {arguments.config} has other tables than `--model` {arguments.model}")


def main(arguments: argparse.Namespace):
    """Measures, writes, prints the rules and whether they are kept."""
    check_arguments(arguments)
    if arguments.ratios:
        name = arguments.name or size_ratios.NAME
        results = size_ratios.measure(arguments.ratios, arguments.tokenizer, arguments.text, arguments.tokens)
        markdown, figure = size_ratios.as_markdown(results, name), size_ratios.draw(results)
    else:
        name = arguments.name or NAME
        results = measure(arguments)
        markdown, figure = as_markdown(results, name), draw(results)
    for rule in results.get("rules", []):
        Console().print("[green]kept[/]" if rule["kept"] else "[yellow]WARNING[/]", rule["text"], soft_wrap=True)
    paths = write_report(arguments.output, name, results, markdown, figure)
    print("Written: " + ", ".join(map(str, paths)))


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
