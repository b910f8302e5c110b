# SPDX-License-Identifier: Apache-2.0
"""Two commits are compared in processes of their own packages, in pairs."""

import json
from statistics import median

import pytest

from eval.speed.commits import __main__ as commit_speed

# Tells which package it would import, as a number: 1 for the one in this checkout, 2 for the other commit's.
WORKER = """
import importlib.util, json, pathlib

def make(folder):
    pathlib.Path(folder, "made").touch()

def measure(folder):
    assert pathlib.Path(folder, "made").exists()
    package = pathlib.Path(importlib.util.find_spec("modeling_longcat_lite").origin).parents[1]
    print(json.dumps({"load": 1.0 if str(package) == "ROOT" else 2.0}))
"""


def run(tmp_path, *options):
    commit_speed.main(commit_speed.make_parser().parse_args(["--output", str(tmp_path), *options]))
    return json.loads((tmp_path / "commit_speed.json").read_text())


def test_each_commit_runs_with_its_own_package(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(WORKER.replace("ROOT", str(commit_speed.ROOT)))
    monkeypatch.setattr(commit_speed, "WORKERS", tmp_path)
    written = run(tmp_path, "--base", "HEAD", "--repeats", "2")
    assert written["cases"] == {"load": {"before": [2.0, 2.0], "now": [1.0, 1.0], "ratio": 0.5}}
    assert "| load | 2.000 | 1.000 | 0.500 |" in (tmp_path / "commit_speed.md").read_text()


def test_a_commit_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match="`--base` is no-such-commit, which is not a commit of this checkout"):
        run(tmp_path, "--base", "no-such-commit")


def test_the_ratio_is_the_median_of_pairs(monkeypatch, tmp_path):
    values = {"now": iter([2.0, 9.0, 40.0]), "before": iter([1.0, 3.0, 10.0])}

    def worker(package, function, model):
        side = "before" if package == tmp_path else "now"
        return json.dumps({"save": next(values[side])}) if function == "measure" else ""

    monkeypatch.setattr(commit_speed, "run_worker", worker)
    case = commit_speed.compare(tmp_path, repeats=3)["save"]
    assert case["ratio"] == median([2.0, 3.0, 4.0])
