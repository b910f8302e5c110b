# SPDX-License-Identifier: Apache-2.0
"""What all commands share: one parser, one wording for the options that many of them have, one way to end.

    def make_parser() -> CommandParser:
        parser = CommandParser("eval.fit", "What fits on a machine.")
        parser.add_shared("--model", "--seed")
        parser.add_argument("--context", type=int, default=4096, help="tokens of prompt and answer together")
        parser.add_renamed("--ctx", "--context")
        return parser


    if __name__ == "__main__":
        run_command(lambda: main(make_parser().parse_args()))

This is in the lowest folder because every other one has commands. Nothing heavy is imported, so `--help` is quick.
"""

import argparse
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended

# Options that mean the same in every command. A command may give another default, or say more in its help.
SHARED: dict[str, dict[str, Any]] = {
    "--model": {"metavar": "DIR", "help": "folder of the model, or its name on the Hub"},
    "--tokenizer": {"metavar": "DIR", "help": "folder of the tokenizer; the model's own if left out"},
    "--rows": {"type": Path, "metavar": "FILE", "help": "JSON Lines with `messages`"},
    "--text": {"type": Path, "metavar": "FILE", "nargs": "+", "help": "text files, UTF-8"},
    "--ngram-tables": {
        "choices": ("resident", "host", "disk"),
        "default": "resident",
        "help": "where the n-gram tables are: with the other weights, in host memory, or on disk",
    },
    "--device": {"default": "auto", "help": "where the model runs, for example `cpu` or `cuda:0`; `auto` chooses"},
    "--dtype": {"default": "auto", "help": "dtype of the weights, for example `bfloat16`; `auto` is the checkpoint's"},
    "--batch-size": {"type": int, "default": 1, "help": "rows in a batch"},
    "--seed": {"type": int, "default": 0, "help": "seed of everything that is drawn"},
    "--threads": {"type": int, "help": "threads that torch uses; its own choice if left out"},
    "--repeats": {"type": int, "default": 5, "help": "times that each case is measured; the median is reported"},
    "--quick": {"action": "store_true", "help": "small sizes, to see that the command works"},
    "--output": {"type": Path, "metavar": "DIR", "help": "folder for the results"},
    "--name": {"help": "name of the result files, without an ending"},
}


class CommandParser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` for `python -m MODULE`, whose help shows defaults.

    Args:
        module (`str`): As in `python -m`.
        about (`str`): One sentence for `--help`.
    """

    def __init__(self, module: str, about: str):
        super().__init__(
            prog=f"python -m {module}",
            description=about,
            formatter_class=_Formatter,
            allow_abbrev=False,  # an abbreviation of an old option must not be taken for a new one
        )
        self.add_argument("--debug", action="store_true", help="show where in the code an error came from")

    def add_shared(self, *options: str, **changes: Any) -> None:
        """Adds options of `SHARED`; `changes` replace what is said there, for example `required=True`."""
        for option in options:
            self.add_argument(option, **{**SHARED[option], **changes})

    def add_renamed(self, old: str, new: str) -> None:
        """Makes the former name of an option an error that says the new one."""
        self.add_argument(
            old, action=_Renamed, nargs="*", const=new, help=argparse.SUPPRESS, default=argparse.SUPPRESS
        )


class _Formatter(argparse.HelpFormatter):
    """Adds defaults to the help, except those that say nothing: none, off, and of options without a value."""

    def _get_help_string(self, action):
        text = action.help or ""
        says_nothing = action.default in (None, False, argparse.SUPPRESS) or "%(default)" in text
        return text if says_nothing else f"{text} (default: %(default)s)"


class _Renamed(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{option_string} is now {self.const}")


def run_command(command: Callable[[], int | None]) -> NoReturn:
    """Runs a command and ends the process: with what it returns, or with one line that says what is wrong.

    Mistakes of users are `ValueError`s and `OSError`s by this project's rules; their text names the field, file or
    row. They end with status 2, after the error's notes; with `--debug` among the arguments their traceback is shown.
    """
    try:
        status = command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        if (place := _raised_in(error)) is not None:
            print(f"raised by a library in {place}; --debug shows the traceback", file=sys.stderr)
        sys.exit(2)
    sys.exit(status)


def _raised_in(error: Exception) -> str | None:
    """File and line of an error that a library raised, whose text may not say what to do; `None` for our own."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    file = Path(frame.f_code.co_filename)
    is_ours = "site-packages" not in file.parts or "modeling_longcat_lite" in file.parts
    return None if is_ours or isinstance(error, OSError) else f"{file.name}:{line}"


__all__ = ["SHARED", "CommandParser", "run_command"]
