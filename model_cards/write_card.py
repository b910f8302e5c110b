# SPDX-License-Identifier: Apache-2.0
r"""Write the card of a model or adapter into its folder, without touching the weights.

    python -m model_cards.write_card --folder outputs/demo/package --facts model_cards/facts/demo.yaml \
        --results outputs/demo/held_out_answers.json --report outputs/demo/report.json

Use it for a folder of `model_cards.build_hub_repo` that has been evaluated since, and for a training folder before
`trainer.push_to_hub()`, which keeps the card. `--results` are JSON files that the commands under eval/ write; the card
also shows the PNG of the same name. Figures that were measured on other weights are refused.
"""

import argparse
from pathlib import Path

from model_cards.card import CARD, CardSources, make_card
from tokenization.command_line import CommandParser, run_command


def add_card_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a card is made from, see [`CardSources`]."""
    parser.add_argument(
        "--facts", type=Path, metavar="FILE", help="YAML file of what no run can know, as in model_cards/facts/"
    )
    parser.add_argument(
        "--results", type=Path, nargs="+", default=[], metavar="FILE", help="result files of evaluations"
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder of the training run; the model's if left out")
    parser.add_argument("--report", type=Path, metavar="FILE", help="JSON report of the training run, as the demo's")
    parser.add_argument("--license", help="licence of the weights, as the Hub names it, if there are no facts")


def card_sources(arguments: argparse.Namespace) -> CardSources:
    """The values of [`add_card_options`]."""
    return CardSources(arguments.facts, arguments.results, arguments.report, arguments.run, arguments.license)


def make_parser() -> CommandParser:
    parser = CommandParser("model_cards.write_card", "Write the card of a model or adapter into its folder.")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="folder with the model or adapter")
    add_card_options(parser)
    return parser


def main(arguments: argparse.Namespace) -> None:
    make_card(arguments.folder, card_sources(arguments)).write(arguments.folder)
    print(f"Written: {arguments.folder / CARD}")


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
