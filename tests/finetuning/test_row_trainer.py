# SPDX-License-Identifier: Apache-2.0
"""Tables in the trainer: frozen, by rows, or as any other weight; clipping, accumulation, exact resume."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerated_model import launch_environment
from row_training import BY_ROWS, LORA, logged, made, trained
from safetensors.torch import load_file
from tiny_chat import write_tiny_chat

from modeling_longcat_lite import LongCatLiteForCausalLM

CONFIGS = Path(__file__).parents[2] / "training" / "accelerate_configs"


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("chat"))


def test_frozen_tables_stay(chat, tmp_path):
    trainer = trained(chat, tmp_path, tables={"tables": "frozen"})
    before = LongCatLiteForCausalLM.from_pretrained(chat / "model").state_dict()
    for name, weights in trainer.model.state_dict().items():
        if name.startswith("model.layers.0.self_attn") or "embedders" in name:
            assert torch.equal(weights, before[name]) == ("embedders" in name), name


@pytest.mark.parametrize("max_grad_norm", [0.1, 0.0])
def test_losses_and_norms_of_the_first_step_are_those_of_dense_gradients(chat, tmp_path, max_grad_norm):
    options = {"max_grad_norm": max_grad_norm, "max_steps": 2}
    dense = trained(chat, tmp_path / "dense", **options)
    sparse = trained(chat, tmp_path / "sparse", tables=BY_ROWS, **options)
    assert logged(sparse, "loss")[0] == logged(dense, "loss")[0]
    assert logged(sparse, "grad_norm")[0] == pytest.approx(logged(dense, "grad_norm")[0], rel=1e-5)


def test_rows_that_were_not_read_stay_and_state_is_small(chat, tmp_path):
    trainer = trained(chat, tmp_path, tables=BY_ROWS, max_steps=8)
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]
    before = LongCatLiteForCausalLM.from_pretrained(chat / "model").model.ngram_embeddings.embedders
    tables, optimizer = trainer.model.model.ngram_embeddings.embedders, trainer.optimizer.optimizer
    for table, old in zip(tables, before, strict=True):
        state = optimizer.state[table.weight]
        touched = state["stamp"] > 0
        assert 0 < touched.sum() < len(touched)
        assert torch.equal(table.weight[~touched], old.weight[~touched])
        learned = state["second_moment"] > 0  # a row may be read where nothing is learned from it
        assert torch.equal((table.weight != old.weight).any(dim=1), learned) and learned.sum() > touched.sum() / 2


def test_resuming_repeats_the_uninterrupted_run_bit_for_bit(chat, tmp_path):
    whole = trained(chat, tmp_path / "whole", tables=BY_ROWS)
    trained(chat, tmp_path / "parts", tables=BY_ROWS, save_strategy="steps", save_steps=2)
    resumed = trained(chat, tmp_path / "parts", tables=BY_ROWS, resume=str(tmp_path / "parts" / "checkpoint-2"))
    assert logged(resumed, "loss") == logged(whole, "loss")
    expected = whole.model.state_dict()
    for name, weights in resumed.model.state_dict().items():
        assert torch.equal(weights, expected[name]), name


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"tables": {"tables": "sparse"}}, "`tables` is one of frozen, row_sparse, all"),
        ({"tables": {"table_learning_rate": 1.0}}, "table_learning_rate"),
        ({"tables": {**BY_ROWS, "table_learning_rate": -1.0}}, "`table_learning_rate` is -1.0"),
        ({"tables": BY_ROWS, "optim": "adafactor"}, "`optim: adafactor`.*adamw_torch"),
        ({"tables": BY_ROWS, "peft_config": LORA}, "adapter would not carry"),
        ({"tables": BY_ROWS, "torch_compile": True, "init": {"ngram_tables": "disk"}}, "torch_compile"),
    ],
)
def test_mistakes_are_named(chat, tmp_path, arguments, problem):
    with pytest.raises(ValueError, match=problem):
        trained(chat, tmp_path, **arguments)


@pytest.mark.parametrize("file", ["fsdp2", "fsdp2_tables_sharded"])
def test_tables_that_no_process_would_average_are_not_trained(chat, tmp_path, file):
    # On a CPU accelerate makes no plugin of what its file says.
    plugin = SimpleNamespace(ignored_modules=launch_environment(CONFIGS / f"{file}.yaml").get("FSDP_IGNORED_MODULES"))

    def optimizer(**options):
        trainer = made(chat, tmp_path, **options)
        trainer.accelerator.state.fsdp_plugin = plugin
        try:
            trainer.create_optimizer()
        finally:
            del trainer.accelerator.state.fsdp_plugin

    refused = pytest.raises(ValueError, match=r"`.*embedders.*`.*--tables frozen.*fsdp2_tables_sharded")
    with refused if file == "fsdp2" else nullcontext():
        optimizer()
    optimizer(tables={"tables": "frozen"})
    optimizer(init={"ngram_tables": "disk"})
    optimizer(peft_config=LORA)


ON_EACH_RANK = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from safetensors.torch import save_file
from row_training import BY_ROWS, trained
trainer = trained(Path(sys.argv[1]), Path(sys.argv[2]), tables=BY_ROWS, gradient_accumulation_steps=1)
tables = trainer.accelerator.unwrap_model(trainer.model).model.ngram_embeddings.embedders.state_dict()
save_file(tables, Path(sys.argv[2]) / f"rank{{trainer.args.process_index}}.safetensors")
"""


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(chat, tmp_path):
    script = tmp_path / "on_each_rank.py"
    script.write_text(ON_EACH_RANK.format(tests=str(Path(__file__).parents[1])))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    root = Path(__file__).parents[2]
    subprocess.run(
        [*command, script, chat, tmp_path],
        check=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2)]
    one = trained(chat, tmp_path / "one", tables=BY_ROWS, gradient_accumulation_steps=1, per_device_train_batch_size=2)
    for name, table in one.model.model.ngram_embeddings.embedders.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], table, atol=1e-4, rtol=1e-3)
