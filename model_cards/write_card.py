# SPDX-License-Identifier: Apache-2.0
r"""Write the card of a model or adapter into its folder, without touching the weights.

    python -m model_cards.write_card --folder outputs/demo/package --facts model_cards/facts/demo.yaml \
        --results outputs/demo/held_out_answers.json --report outputs/demo/report.json

For a folder of `model_cards.build_hub_repo` that has been evaluated since, and for a training folder before
`trainer.push_to_hub()`, which keeps this card. `--results` are JSON files of evaluations under eval/; of each the
PNG of the same name is shown too. Numbers that were measured on other weights are refused.
"""

import argparse
from pathlib import Path

from model_cards.card import CARD, CardSources, make_card


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """What a card is made of, see [`CardSources`]."""
    parser.add_argument("--facts", type=Path, help="YAML file of what no run can know, as in model_cards/facts/")
    parser.add_argument(
        "--results", type=Path, nargs="+", default=[], metavar="FILE", help="result files of evaluations"
    )
    parser.add_argument("--run", type=Path, help="folder of the training run, that of the model by default")
    parser.add_argument("--report", type=Path, help="JSON report of the training run, such as the demo's")
    parser.add_argument("--license", help="licence of the weights, as the Hub names it, where there are no facts")


def card_sources(arguments: argparse.Namespace) -> CardSources:
    """What the options of [`add_card_arguments`] say."""
    return CardSources(arguments.facts, arguments.results, arguments.report, arguments.run, arguments.license)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_cards.write_card", description="Write a model card.")
    parser.add_argument("--folder", type=Path, required=True, help="folder with the model or adapter")
    add_card_arguments(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    make_card(args.folder, card_sources(args)).write(args.folder)
    print(f"Written: {args.folder / CARD}")


if __name__ == "__main__":
    main()
