# SPDX-License-Identifier: Apache-2.0
"""Two processes train as one does: the same losses, the same weights after some steps, the same tokens afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import randomize, tiny_config
from distributed_worker import OPTIMIZER, STEPS, WAYS
from safetensors.torch import load_file

from modeling_longcat_lite import LongCatLiteForCausalLM

WORKER = str(Path(__file__).parent / "distributed_worker.py")
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The results of one process and of two, of every way."""
    folder = tmp_path_factory.mktemp("distributed")
    randomize(LongCatLiteForCausalLM(tiny_config())).save_pretrained(folder / "model")
    two_processes = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for launch in ([], two_processes):
        command = [sys.executable, *launch, WORKER, str(folder)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
    return folder


def reference(folder: Path, way: str) -> dict[str, torch.Tensor]:
    frozen = way in ("fsdp_tables_excluded", "accelerate_fsdp2")
    return load_file(folder / ("alone_frozen.safetensors" if frozen else "alone.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_and_generate_as_one(folder, way):
    expected, found = reference(folder, way), load_file(folder / f"{way}.safetensors")
    assert found.keys() == expected.keys()
    assert torch.equal(found["tokens"], expected["tokens"])
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: name + text)


@pytest.mark.slow
def test_the_steps_moved_every_weight(folder):
    # Far more than the tolerance above; or else it would compare weights that nothing has trained.
    before = LongCatLiteForCausalLM.from_pretrained(folder / "model").state_dict()
    after = load_file(folder / "alone.safetensors")
    assert len(after["losses"]) == STEPS and after["losses"][-1] < after["losses"][0]
    for name, weights in before.items():
        if "e_score_correction_bias" not in name:
            assert (after[name] - weights).abs().max() > OPTIMIZER["lr"], name
    frozen = load_file(folder / "alone_frozen.safetensors")
    assert all(torch.equal(frozen[name], before[name]) for name in before if ".embedders." in name)


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if way.endswith(("parallel", "native"))])
def test_what_two_processes_save_is_an_ordinary_checkpoint(folder, way):
    saved = LongCatLiteForCausalLM.from_pretrained(folder / f"{way}_saved").state_dict()
    trained = load_file(folder / f"{way}.safetensors")
    for name, weights in saved.items():
        assert torch.equal(weights, trained[name]), name


def test_plans_name_what_the_model_has():
    # transformers warns of rules that match nothing; a model without tables or draft head has none for them.
    for overrides in ({}, {"num_nextn_predict_layers": 1}, {"use_ngram_embedding": False}, {"ngram_table_bits": 8}):
        model = LongCatLiteForCausalLM(tiny_config(**overrides))
        names = [name for name, _ in [*model.named_modules(), *model.named_parameters()]]
        wild = {".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names}
        for plan in (model.tp_plan, model.ep_plan, model.fsdp_plan):
            assert plan and plan.keys() <= wild, plan.keys() - wild
