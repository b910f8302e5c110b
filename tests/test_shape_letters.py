# SPDX-License-Identifier: Apache-2.0
"""A letter in shape comments means the same in every file: the legend of CONTRIBUTING.md."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("modeling_longcat_lite", "tokenization", "training", "eval", "model_cards", "tests")
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# Letter: the first word of what it means.
LEGEND = dict(re.findall(r"^\| ([B-Zk][nrv]?) \| (\w+)", GUIDE, re.MULTILINE))
# "B batch rows, M = B T tokens together, Dn unrotated and Dr rotated width of a head"
LETTER = re.compile(r"\b([B-Zk][nrv]?)(?: = [^a-z,]+)? ([a-z]+)")


def shapes(path: Path) -> str | None:
    """What the file's docstring says of shapes, on one line."""
    said = re.search(r"^Shapes: (.*?)(?:\n\n|\Z)", ast.get_docstring(ast.parse(path.read_text())) or "", re.M | re.S)
    return " ".join(said[1].split()) if said else None


FILES = {
    str(path.relative_to(ROOT)): said
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if (said := shapes(path))
}


def test_the_legend_is_found():
    assert LEGEND["B"] == "batch" and LEGEND["Dv"] == "value" and LEGEND["k"] == "experts"
    assert "modeling_longcat_lite/mla.py" in FILES


@pytest.mark.parametrize("file", FILES)
def test_a_letter_means_what_the_legend_says(file):
    letters = dict(LETTER.findall(FILES[file]))
    assert letters, FILES[file]
    assert letters == {letter: LEGEND.get(letter) for letter in letters}
