# SPDX-License-Identifier: Apache-2.0
"""Loss and perplexity of a chat model on held-out answers, as a result file for its card.

    python -m eval.losses --model outputs/demo/model --rows outputs/demo/data/test.jsonl --output outputs/demo
    python -m model_cards.write_card --folder outputs/demo/package --results outputs/demo/held_out_answers.json

The model reads the first question of each conversation; the loss is that of its answer. All tokens count alike, and
the standard error treats them as independent.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from eval.checkpoints.load import ModelFolder
from eval.losses.answers import answer_losses, read_rows
from eval.reports.files import markdown_table, write_report
from eval.reports.machine import describe_machine
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_counts

NAME = "held_out_answers"


def measure(folder: ModelFolder, rows_file: Path, count: int | None = None) -> dict[str, Any]:
    """The content of the result file.

    Raises:
        `ValueError`: naming the file without a conversation, or the line that is not one.
    """
    rows = read_rows(rows_file, count)
    if not rows:
        raise ValueError(f"`--rows` {rows_file} has no conversation")
    losses = answer_losses(folder.load(), folder.tokenizer, rows).double()
    loss, error = losses.mean().item(), (losses.std() / len(losses) ** 0.5).item()
    perplexity = math.exp(loss)
    about = {"task": "held-out answers", "samples": len(rows), "higher_is_better": False}
    results = [
        {**about, "metric": "loss", "value": loss, "stderr": error, "unit": "nats a token"},
        {**about, "metric": "perplexity", "value": perplexity, "stderr": perplexity * error},
    ]
    return folder.result_file(NAME, results, answer_tokens=len(losses), machine=describe_machine())


def as_markdown(content: dict[str, Any]) -> str:
    """The report."""
    machine, results = content["machine"], content["results"]
    rows = [[result["metric"], f"{result['value']:.4f}", f"{result['stderr']:.4f}"] for result in results]
    return (
        f"# Held-out answers\n\n{machine['date']}, torch {machine['torch']}, transformers {machine['transformers']}, "
        f"{machine['cpu']}.\n`{content['model']['name']}`: {results[0]['samples']} conversations, "
        f"{content['answer_tokens']:,} answer tokens. Loss in nats a token.\n\n"
        + markdown_table(["", "value", "standard error"], rows)
    )


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.losses", __doc__.split("\n")[0])
    parser.add_shared("--model", type=Path, required=True, help="folder of a saved model with its tokenizer")
    parser.add_shared("--rows", required=True, help="JSON Lines of held-out conversations")
    parser.add_argument("--count", type=int, help="conversations to read; all if left out")
    parser.add_shared("--output", default=Path("eval/results"), help="folder for JSON and Markdown")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Measures, prints and writes."""
    check_counts(arguments, "count")
    content = measure(ModelFolder(arguments.model), arguments.rows, arguments.count)
    for result in content["results"]:
        print(f"{result['metric']}: {result['value']:.4f} ± {result['stderr']:.4f}")
    paths = write_report(arguments.output, NAME, content, as_markdown(content))
    print(f"Written: {', '.join(map(str, paths))}")


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
