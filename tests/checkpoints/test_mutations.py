# SPDX-License-Identifier: Apache-2.0
"""Damaged checkpoints: loading, quantizing, merging and verifying refuse them alike, or give the right numbers.

300 are tried with the other tests, 2,000 by `make test-mutations`.
"""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from mutated_checkpoints import MUTATIONS, shards, write_checkpoints
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from eval.checkpoints.files import CheckpointFiles
from eval.checkpoints.merge_rows import merge
from eval.checkpoints.quantize import convert
from eval.checkpoints.verify import verify
from modeling_longcat_lite import LongCatLiteForCausalLM

Result: TypeAlias = dict[str, torch.Tensor]
COUNTS = [300, pytest.param(2000, marks=pytest.mark.mutations)]


def load(folder: Path, placement: str) -> dict[str, torch.Tensor]:
    """Weights as a model has them; a forward tells what the config makes of them."""
    model = LongCatLiteForCausalLM.from_pretrained(folder, ngram_tables=placement).eval()
    with torch.no_grad():
        logits = model(torch.arange(1, 9)[None]).logits
    assert logits.isfinite().all()
    tables = model.model.ngram_embeddings.tables if placement != "resident" else None
    state = {} if tables is None else {f"table {i}": table.clone() for i, table in enumerate(tables.tensors())}
    return state | dict(model.state_dict())


def written(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in shards(folder) for name, tensor in load_file(path).items()}


def merge_into(source: Path, output: Path, delta: Path):
    merge(source, [delta], output)


def refusal_or(command: Callable[[], Result]) -> Result | str:
    """What a command gives, or the sentence with which it refuses a checkpoint; an error of another kind passes."""
    try:
        return command()
    except ValueError as error:
        return str(error) or "no reason given"
    except OSError as error:  # transformers' own, of a folder without any weights
        if "no file named model.safetensors" not in str(error):
            raise
        return str(error)


def run_all(source: Path, output: Path, delta: Path, placement: str) -> dict[str, Result | str]:
    """What each command makes of a checkpoint; those that write make folders in `output`, or leave nothing there."""

    def written_by(command: Callable[..., object], *arguments) -> Result | str:
        place = output / command.__name__
        result = refusal_or(lambda: [command(source, place, *arguments), written(place)][1])
        assert isinstance(result, str) is not place.exists()
        return result

    output.mkdir()
    results = {
        "loading": refusal_or(lambda: load(source, placement)),
        "quantizing": written_by(convert, 8, 2**20),
        "merging": written_by(merge_into, delta),
    }
    assert {path.name for path in output.iterdir()} <= {"convert", "merge_into"}
    problems = refusal_or(lambda: {"": verify(CheckpointFiles(str(source)), 4)["problems"]})
    results["verifying"] = problems if isinstance(problems, str) else str(problems[""]) if problems[""] else {}
    return results


def is_accepted(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return True
    except SafetensorError:
        return False


@pytest.mark.parametrize("count", COUNTS)
def test_no_damage_gives_other_numbers(count, tmp_path):
    sources, expected = write_checkpoints(tmp_path / "sources"), {}
    deltas = {source: source.with_name(f"{source.name}-delta") for source in sources}
    for source in sources:
        for placement in ("resident", "disk"):
            output = tmp_path / f"{source.name}-{placement}"
            expected[source, placement] = run_all(source, output, deltas[source], placement)
            refused_undamaged = ["quantizing", "merging"] if source.name == "packed" else []
            assert [name for name, r in expected[source, placement].items() if isinstance(r, str)] == refused_undamaged
    refused = Counter()
    for number in range(count):
        draw = random.Random(number)
        source, placement = draw.choice(sources), draw.choice(["resident", "resident", "disk"])
        mutate = MUTATIONS[number % len(MUTATIONS)]
        folder = Path(shutil.copytree(source, tmp_path / "mutated"))
        mutate(folder, draw)
        found = run_all(folder, tmp_path / "output", deltas[source], placement)
        what = f"{mutate.__name__} {number} of {source.name}"
        check(found, expected[source, placement], what)
        refused_by_library = not all(is_accepted(path) for path in shards(folder))
        assert not refused_by_library or all(isinstance(result, str) for result in found.values()), what
        refused[mutate] += isinstance(found["loading"], str)
        for folder in (tmp_path / "mutated", tmp_path / "output"):
            shutil.rmtree(folder)
    for mutate in MUTATIONS:
        assert refused[mutate] > count / len(MUTATIONS) / 2, f"{mutate.__name__}: {refused[mutate]} were damaged"


def check(found: dict, expected: dict, what: str):
    """Refused by all, or right for each; what a command refuses when undamaged, it may refuse."""
    is_refused = isinstance(found["loading"], str)
    for command, result in found.items():
        if is_refused:
            assert isinstance(result, str), f"{what}: {command} takes what loading refuses: {found['loading']}"
        elif not isinstance(result, str):
            assert not isinstance(expected[command], str), f"{what}: {command}"
            assert result.keys() == expected[command].keys(), f"{what}: {command}"
            for name, tensor in expected[command].items():
                assert result[name].dtype == tensor.dtype and torch.equal(result[name], tensor), f"{what}: {name}"
        else:
            assert isinstance(expected[command], str), f"{what}: loading takes what {command} refuses: {result}"
