# SPDX-License-Identifier: Apache-2.0
"""All commands: they end alike, and `--help` explains every option."""

import argparse
import ast
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("tokenization", "training", "eval", "model_cards")


def main_guard(path: Path) -> str | None:
    """What a file does when it is run, as code."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            return "\n".join(map(ast.unparse, node.body))
    return None


GUARDS = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): guard
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if (guard := main_guard(path))
}
command = pytest.mark.parametrize("module", GUARDS)


def test_commands_are_found():
    assert len(GUARDS) >= 30 and {"eval.fit.__main__", "training.sft"} <= set(GUARDS)


@command
def test_a_command_ends_by_the_shared_function(module):
    assert "run_command(" in GUARDS[module]


@command
def test_help_explains_each_option(module, capsys, monkeypatch):
    if "make_parser" not in GUARDS[module]:
        pytest.fail(f"{module} parses its arguments without `make_parser`")
    monkeypatch.setattr(sys, "argv", [module])
    parser = importlib.import_module(module).make_parser()
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--help"]) if isinstance(parser, argparse.ArgumentParser) else parser(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: python -m {module.removesuffix('.__main__')} ")
    assert parser.description and parser.description[0].isupper() and parser.description.endswith(".")
    silent = [action.option_strings or action.dest for action in parser._actions if not action.help]
    assert not silent, f"{module}: no help for {silent}"
