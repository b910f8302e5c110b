# SPDX-License-Identifier: Apache-2.0
"""All commands: they end alike, and `--help` explains every option."""

import argparse
import ast
import importlib
import importlib.util
import re
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
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
command = pytest.mark.parametrize("module", GUARDS)


def source(module: str) -> str:
    return (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()


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


def test_renamed_options_are_in_the_changelog():
    table = re.findall(r"^\| `([\w.]+)` \| `(--[\w-]+)` \| `(--[\w-]+)` \|$", CHANGELOG, re.MULTILINE)
    renamed = {
        (module.removesuffix(".__main__"), *re.findall(r'"(--[\w-]+)"', call))
        for module in GUARDS
        for call in re.findall(r"add_renamed\((.*?)\)", source(module))
    }
    assert renamed == set(table) and len(renamed) >= 6


@pytest.mark.parametrize(
    "row", re.findall(r"^\| `(\w+\.[\w.]+)` \| `(\w+\.[\w.]+)` \|$", CHANGELOG, re.MULTILINE), ids=str
)
def test_renamed_commands_are_there_under_their_new_name(row):
    before, now = row
    assert {now, f"{now}.__main__"} & set(GUARDS)
    assert importlib.util.find_spec(before) is None
