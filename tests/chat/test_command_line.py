# SPDX-License-Identifier: Apache-2.0
"""The parser that commands share, and how they end."""

import subprocess
import sys

import pytest

from tokenization.command_line import SHARED, CommandParser, run_command

WRONG = """
import sys
from tokenization.command_line import run_command
def command():
    raise {error}
run_command(command)
"""


def run(error: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WRONG.format(error=error), *arguments], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "error", ['ValueError("`--seed` is x")', 'FileNotFoundError(2, "No such file", "rows.jsonl")']
)
def test_a_mistake_of_the_user_is_one_line(error):
    ended = run(error)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert "seed" in ended.stderr or "rows.jsonl" in ended.stderr


def test_debug_shows_the_traceback_and_other_errors_always_do():
    assert "Traceback" in run('ValueError("x")', "--debug").stderr
    assert "Traceback" in run('TypeError("x")').stderr


def test_ctrl_c_is_no_traceback():
    ended = run("KeyboardInterrupt")
    assert (ended.returncode, ended.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("status", [None, 0, 1])
def test_the_status_of_a_command_is_that_of_the_process(status):
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: status)
    assert ended.value.code == status


@pytest.mark.parametrize("given", [["--tables", "host"], ["--tables=host"], ["--tables"]])
def test_an_old_option_names_the_new_one(given, capsys):
    parser = CommandParser("eval.fit", "What fits.")
    parser.add_shared("--ngram-tables")
    parser.add_renamed("--tables", "--ngram-tables")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(given)
    assert ended.value.code == 2
    assert "--tables is now --ngram-tables" in capsys.readouterr().err
    assert vars(parser.parse_args([])) == {"debug": False, "ngram_tables": "resident"}


def test_help_has_a_text_and_a_default_for_each_shared_option(capsys):
    parser = CommandParser("eval.fit", "What fits.")
    parser.add_shared(*SHARED)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "python -m eval.fit" in printed and "(default: resident)" in printed
    for settings in SHARED.values():
        assert settings["help"] in printed
