# SPDX-License-Identifier: Apache-2.0
"""Runs of `eval.checkpoints.verify`, and checkpoints to change for them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import CONFORMANCE
from safetensors.torch import load_file, save_file

from eval.checkpoints import verify as verify_checkpoint

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def verify(folder: Path, *options: str) -> dict:
    """The report of a run, beside the folder; its exit status is in it."""
    output = folder.parent / f"{folder.name}-report"
    parsed = verify_checkpoint.make_parser().parse_args([str(folder), "--output", str(output), *options])
    status = verify_checkpoint.main(parsed)
    results = json.loads((output / "verify_checkpoint.json").read_text())
    assert status == results["status"]
    return results


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(CONFORMANCE / name, folder / name))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], file: str = WEIGHTS):
    weights = load_file(folder / file)
    change(weights)
    save_file(weights, folder / file, metadata={"format": "pt"})


def edit_json(path: Path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def only_problem(results: dict) -> dict:
    assert results["status"] == 1
    (problem,) = results["problems"]
    assert problem["fix"]
    return problem
