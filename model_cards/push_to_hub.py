# SPDX-License-Identifier: Apache-2.0
"""Upload a folder to the Hub as it is: one that `build_hub_repo` built, or that of an adapter.

    python -m model_cards.push_to_hub --folder outputs/demo/package --repo user/name
    python -m model_cards.push_to_hub --folder outputs/my-adapter --repo user/my-adapter --base-model user/name

The name, the token and the folder are checked before anything is sent. What training leaves (checkpoints, optimizer
states, pickles) is not uploaded, and a token or a key in any file stops the upload. If the upload fails, run the same
command again: it goes on where it stopped.
"""

import argparse
from pathlib import Path

from model_cards.hub_upload import add_push_options, push_folder
from tokenization.command_line import CommandParser, run_command


def make_parser() -> CommandParser:
    parser = CommandParser("model_cards.push_to_hub", "Upload a model's or an adapter's folder to the Hub.")
    parser.add_argument(
        "--folder", type=Path, required=True, metavar="DIR", help="folder of a packaged model or of an adapter"
    )
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="repository, created if it does not exist")
    parser.add_argument(
        "--base-model", metavar="USER/NAME", help="an adapter's base on the Hub, if the adapter names a local folder"
    )
    add_push_options(parser)
    return parser


def main(arguments: argparse.Namespace) -> None:
    address = push_folder(
        arguments.folder,
        arguments.repo,
        arguments.private,
        arguments.revision,
        arguments.commit_message,
        arguments.base_model,
    )
    print(address)


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
