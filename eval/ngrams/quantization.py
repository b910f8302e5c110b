# SPDX-License-Identifier: Apache-2.0
"""What packed tables cost: error of their rows by n-gram order, and held-out loss, against the original.

    python -m eval.ngrams.quantization --model outputs/demo/model --converted outputs/demo-int8 outputs/demo-int4 \
        --trained-rows outputs/demo/data/train.jsonl --held-out outputs/demo/data/test.jsonl

`make bits` converts the demo's model and runs this. The error is that of a whole row, `|q - w| / |w|`, over the rows
that the training conversations read, because those are the rows that training has moved. Losses are paired: token by
token, the converted model's less the original's.

Shapes: S sub-tables, R rows of a table, W width of a table row.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from transformers import AutoTokenizer

from eval.losses.answers import answer_losses, prompt_ids, read_rows
from eval.reports.files import markdown_table, portable_path, write_report
from eval.reports.machine import describe_machine
from modeling_longcat_lite import LongCatLiteForCausalLM, ngram_row_ids
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_counts

NAME = "quantized_tables"
ROWS_AT_ONCE = 2**16


def trained_rows(config, tokenizer, conversations: list[list[dict]]) -> list[torch.Tensor]:
    """The distinct rows of each table that the conversations read: `[S]` sorted tensors."""
    reads: list[set[int]] = [set() for _ in range(config.num_subtables)]
    for messages in track(conversations, description="training conversations", transient=True):
        for rows, table_reads in zip(reads, ngram_row_ids(config, prompt_ids(tokenizer, messages)), strict=True):
            rows.update(table_reads.unique().tolist())
    return [torch.tensor(sorted(rows)) for rows in reads]


def row_errors(tables, original, row_ids: list[torch.Tensor], per_order: int) -> dict[str, dict]:
    """Error of the rows `row_ids` of each table, by n-gram order."""
    errors: dict[str, dict] = {}
    orders = pairwise(range(0, len(row_ids) + 1, per_order))
    for order, (first, last) in enumerate(orders, start=2):
        relative, squared, energy = [], 0.0, 0.0
        for table in range(first, last):
            for ids in row_ids[table].split(ROWS_AT_ONCE):
                true, found = original.rows_of(table, ids), tables.rows_of(table, ids)  # [R, W]
                differences = (found - true).square().sum(1)
                relative.append((differences / true.square().sum(1).clamp_min(1e-30)).sqrt())
                squared += differences.sum().item()
                energy += true.square().sum().item()
        each = torch.cat(relative)
        errors[f"{order}-grams"] = {
            "rows": len(each),
            "relative_error": (squared / energy) ** 0.5,
            "median_row": each.median().item(),
            "worst_row": each.max().item(),
        }
    return errors


def load(folder: str, dtype: str) -> LongCatLiteForCausalLM:
    return LongCatLiteForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), ngram_tables="disk").eval()


def measure(arguments: argparse.Namespace) -> dict:
    """The original, then each converted checkpoint against it."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    held_out = read_rows(arguments.held_out, arguments.count)
    model = load(arguments.model, arguments.dtype)
    config, original = model.config, model.model.ngram_embeddings.tables
    row_ids = trained_rows(config, tokenizer, read_rows(arguments.trained_rows))
    losses = answer_losses(model, tokenizer, held_out)
    results: dict = {
        "machine": describe_machine(),
        "model": portable_path(arguments.model),
        "dtype": arguments.dtype,
        "held_out": {"rows": len(held_out), "tokens": len(losses), "loss": losses.mean().item()},
        "table_bytes": original.num_bytes,
        "converted": [],
    }
    for folder in arguments.converted:
        converted = load(folder, arguments.dtype)
        tables = converted.model.ngram_embeddings.tables
        found = answer_losses(converted, tokenizer, held_out)
        results["converted"].append(
            {
                "model": portable_path(folder),
                "bits": converted.config.ngram_table_bits,
                "tables": tables.row_format.describe(tables.dtype),
                "table_bytes": tables.num_bytes,
                "loss": found.mean().item(),
                "added_loss": (found - losses).mean().item(),
                "added_loss_standard_error": ((found - losses).std() / len(losses) ** 0.5).item(),
                "orders": row_errors(tables, original, row_ids, config.num_subtables_per_order),
            }
        )
    return results


def as_markdown(results: dict) -> str:
    """Losses and row errors as two tables, with the model, data and machine that they belong to."""
    held_out, machine = results["held_out"], results["machine"]
    losses = [["original", f"{results['table_bytes'] / 1e6:.2f}", f"{held_out['loss']:.5f}", ""]]
    errors = []
    for one in results["converted"]:
        added = f"{one['added_loss']:+.5f} ± {one['added_loss_standard_error']:.5f}"
        losses.append([one["tables"], f"{one['table_bytes'] / 1e6:.2f}", f"{one['loss']:.5f}", added])
        for order, error in one["orders"].items():
            figures = [f"{error[key]:.4f}" for key in ("relative_error", "median_row", "worst_row")]
            errors.append([f"{one['tables']}, {order}", f"{error['rows']:,}", *figures])
    return "\n".join(
        [
            "# Packed n-gram tables\n",
            f"{machine['date']}, torch {machine['torch']}, transformers {machine['transformers']}, {machine['cpu']}.",
            f"`{results['model']}` in {results['dtype']}; {held_out['rows']} held-out conversations, "
            f"{held_out['tokens']:,} answer tokens. Losses are in nats per token; ± is a standard error of the paired",
            "difference.\n",
            markdown_table(["tables", "MB", "held-out loss", "added"], losses),
            "Error of the rows that training read, `|q - w| / |w|`:\n",
            markdown_table(["tables", "rows", "all together", "median row", "worst row"], errors),
        ]
    )


def draw(results: dict) -> Figure:
    """Error per order as bars, one group per checkpoint."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    converted = results["converted"]
    width = 0.8 / len(converted)
    for number, one in enumerate(converted):
        heights = [error["relative_error"] for error in one["orders"].values()]
        places = [place + number * width for place in range(len(heights))]
        label = f"{one['tables']}, loss {one['added_loss']:+.4f}"
        axes.bar_label(axes.bar(places, heights, width, label=label), fmt="%.4f", fontsize=8)
    axes.set_xticks([p + width * (len(converted) - 1) / 2 for p in range(len(heights))], list(one["orders"]))
    axes.set_yscale("log")
    axes.set_ylabel("error of trained rows, |q - w| / |w|")
    axes.legend()
    return figure


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.ngrams.quantization", "Measures what packed n-gram tables cost: row errors and loss.")
    parser.add_shared("--model", required=True, help="folder of the original checkpoint, with its tokenizer")
    add = parser.add_argument
    add("--converted", required=True, nargs="+", metavar="DIR", help="folders written by `eval.checkpoints.quantize`")
    add("--trained-rows", type=Path, required=True, metavar="FILE", help="JSON Lines of training conversations")
    add("--held-out", type=Path, required=True, metavar="FILE", help="JSON Lines of held-out conversations")
    add("--count", type=int, help="held-out conversations to read; all if left out")
    parser.add_shared("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="dtype of the computation")
    parser.add_shared("--output", default=Path("eval/results"))
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Measures, writes and prints."""
    check_counts(arguments, "count")
    results = measure(arguments)
    paths = write_report(arguments.output, NAME, results, as_markdown(results), draw(results))
    for one in results["converted"]:
        print(f"{one['tables']}: held-out loss {one['loss']:.5f}, {one['added_loss']:+.5f} against the original")
    Console().print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
