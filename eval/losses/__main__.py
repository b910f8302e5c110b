# SPDX-License-Identifier: Apache-2.0
r"""Loss and perplexity of a chat model on held-out answers, as a result file for its card.

    python -m eval.losses --model outputs/demo/model --rows outputs/demo/data/test.jsonl \
        --output outputs/demo
    python -m model_cards.write_card --folder outputs/demo/package --results outputs/demo/held_out_answers.json

The first question of each conversation is given, the loss is that of its answer. Every token counts alike, and the
standard error takes them for independent.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import AutoTokenizer

from eval.losses.answers import answer_losses, read_rows
from eval.reports.files import markdown_table, write_report
from eval.reports.machine import describe_machine
from eval.reports.results import result_file
from modeling_longcat_lite import LongCatLiteForCausalLM
from tokenization.number_options import check_counts

NAME = "held_out_answers"


def measure(model_dir: Path, rows_file: Path, count: int | None = None) -> dict[str, Any]:
    """The content of the result file.

    Raises:
        `ValueError`: naming the file and line that is no conversation, or a file without any.
    """
    rows = read_rows(rows_file, count)
    if not rows:
        raise ValueError(f"`--rows` {rows_file} has no conversation")
    model = LongCatLiteForCausalLM.from_pretrained(model_dir)
    losses = answer_losses(model, AutoTokenizer.from_pretrained(model_dir), rows).double()
    loss, error = losses.mean().item(), (losses.std() / len(losses) ** 0.5).item()
    perplexity = math.exp(loss)
    about = {"task": "held-out answers", "samples": len(rows), "higher_is_better": False}
    results = [
        {**about, "metric": "loss", "value": loss, "stderr": error, "unit": "nats a token"},
        {**about, "metric": "perplexity", "value": perplexity, "stderr": perplexity * error},
    ]
    return result_file(model_dir, NAME, results, answer_tokens=len(losses), machine=describe_machine())


def as_markdown(content: dict[str, Any]) -> str:
    """The table, with what it belongs to."""
    machine, results = content["machine"], content["results"]
    rows = [[result["metric"], f"{result['value']:.4f}", f"{result['stderr']:.4f}"] for result in results]
    return (
        f"# Held-out answers\n\n{machine['date']}, torch {machine['torch']}, transformers {machine['transformers']}, "
        f"{machine['cpu']}.\n`{content['model']['name']}`: {results[0]['samples']} conversations, "
        f"{content['answer_tokens']:,} answer tokens. Loss in nats a token.\n\n"
        + markdown_table(["", "value", "standard error"], rows)
    )


def make_parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(prog=f"python -m eval.{NAME}", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="Folder with the model and its tokenizer.")
    parser.add_argument("--rows", type=Path, required=True, help="JSON Lines of held-out conversations.")
    parser.add_argument("--count", type=int, help="Read only so many conversations.")
    parser.add_argument("--output", type=Path, default=Path("eval/results"), help="Folder for JSON and Markdown.")
    return parser


def main(arguments: argparse.Namespace):
    """Measures, writes, prints."""
    check_counts(arguments, "count")
    content = measure(arguments.model, arguments.rows, arguments.count)
    paths = write_report(arguments.output, NAME, content, as_markdown(content))
    for result in content["results"]:
        print(f"{result['metric']}: {result['value']:.4f} ± {result['stderr']:.4f}")
    Console().print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)


if __name__ == "__main__":
    main(make_parser().parse_args())
