# SPDX-License-Identifier: Apache-2.0
"""`transformers serve` with this architecture: an OpenAI-compatible server for a packaged or trained model.

    python -m training.serve outputs/demo/package --device cpu --port 8000

Everything after the name is an option of `transformers serve`. That command looks for the model's class among the
attributes of the `transformers` module only, even with `--trust-remote-code`, so it finds no class of another package
or of the model's folder. This script adds the class there and runs the command. `--continuous-batching` is refused,
because the paged cache supports neither latents nor n-grams.
"""

import os
import sys

from tokenization.command_line import CommandParser, run_command

ARCHITECTURES = ("LongcatFlashNgramForCausalLM", "LongCatLiteForCausalLM")  # names of the class in `config.json`
REFUSED = "--continuous-batching"


def add_class() -> None:
    """Adds the class of the model to the `transformers` module, under the names that a config may have for it."""
    import transformers

    from modeling_longcat_lite import LongCatLiteForCausalLM

    for name in ARCHITECTURES:
        setattr(transformers, name, LongCatLiteForCausalLM)


def make_parser() -> CommandParser:
    parser = CommandParser("training.serve", "Serve a model over OpenAI's API.")
    parser.add_argument(
        "options", nargs="*", metavar="DIR ...", help="folder of the model, then options of `transformers serve`"
    )
    return parser


def main(arguments: list[str]) -> None:
    if REFUSED in arguments:
        raise ValueError(
            f"`{REFUSED}` is not supported: the paged cache supports neither latents nor n-grams. Leave it out; "
            "requests are then answered one after the other"
        )
    from transformers.cli.transformers import app

    add_class()
    app(["serve", *arguments])


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # All of them are options of `transformers serve`, `--help` too.
    run_command(lambda: main(make_parser().parse_args(["--", *sys.argv[1:]]).options))
