# SPDX-License-Identifier: Apache-2.0
"""Upload a folder to the Hub as it is: one that `build_hub_repo` built, or that of an adapter.

    python -m model_cards.push_to_hub --folder outputs/demo/package --repo user/name
    python -m model_cards.push_to_hub --folder outputs/my-adapter --repo user/my-adapter --base-model user/name

Name, token and folder are checked first; what training left behind (checkpoints, optimizer states, pickles) stays
here, and a token or a key in any file stops the upload. After a failure the same command goes on where it stopped.
"""

import argparse
from pathlib import Path

from model_cards.hub_upload import add_push_options, push_folder


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    print(push_folder(**vars(args)))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_cards.push_to_hub", description="Upload a Hub folder.")
    parser.add_argument("--folder", type=Path, required=True, help="folder of a packaged model or of an adapter")
    parser.add_argument("--repo", required=True, help="user/name on the Hub; made if it is not there")
    parser.add_argument("--base-model", help="an adapter's base on the Hub, if the adapter names a local folder")
    add_push_options(parser)
    return parser


if __name__ == "__main__":
    main()
