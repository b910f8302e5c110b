# SPDX-License-Identifier: Apache-2.0
"""Tables train while they stay on host or disk: the bits of resident ones, and a small file of what changed."""

import copy
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from row_training import BY_ROWS, LORA, logged, trained
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_chat import write_tiny_chat

from eval.checkpoints import merge_rows as merge_row_deltas
from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.ngram_row_files import read_row_delta, write_row_delta

DELTA = "ngram_row_delta.safetensors"
placement = pytest.mark.parametrize("placement", ["host", "disk"])
everywhere = pytest.mark.parametrize("placement", ["resident", "host", "disk"])


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def resident(chat, tmp_path_factory):
    return trained(chat, tmp_path_factory.mktemp("resident"), tables=BY_ROWS, save_strategy="steps", save_steps=2)


def load(folder: Path, placement: str = "resident", **kwargs):
    return LongCatLiteForCausalLM.from_pretrained(folder, ngram_tables=placement, dtype=torch.float32, **kwargs)


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def merge_rows(arguments: list[str]):
    merge_row_deltas.main(merge_row_deltas.make_parser().parse_args(arguments))


def made_delta(path: Path, config, seed: int, parity: int | None = None, scale: float = 1.0) -> Path:
    """Half of the rows of every table, at random; of one parity, so that two deltas can be disjoint."""
    generator, tables = torch.Generator().manual_seed(seed), []
    for size in config.subtable_sizes:
        ids = torch.randperm(size, generator=generator)[: size // 2].sort().values
        ids = ids if parity is None else ids[ids % 2 == parity]
        tables.append((ids, scale * torch.randn(len(ids), config.subtable_width, generator=generator)))
    write_row_delta(path, config, tables, "base")
    return path


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(torch.arange(5, 45)[None]).logits


@placement
def test_training_equals_that_of_resident_tables_to_the_bit(chat, resident, tmp_path, placement):
    before = digest(chat / "model")
    trainer = trained(chat, tmp_path, tables=BY_ROWS, init={"ngram_tables": placement})
    assert logged(trainer, "loss") == logged(resident, "loss")
    assert logged(trainer, "grad_norm") == logged(resident, "grad_norm")
    assert digest(chat / "model") == before
    trainer.save_model(tmp_path / "saved")
    expected = resident.model.state_dict()
    base_and_delta = load(tmp_path / "saved").state_dict()  # copies the rows into resident tables
    for name, weights in expected.items():
        assert torch.equal(base_and_delta[name], weights), name
    changed = sum(
        int((table.weight != old.weight).any(dim=1).sum())
        for table, old in zip(
            resident.model.model.ngram_embeddings.embedders,
            load(chat / "model").model.ngram_embeddings.embedders,
            strict=True,
        )
    )
    stored = sum(len(ids) for ids, _ in read_row_delta(tmp_path / "saved", trainer.model.config))
    assert changed <= stored < sum(trainer.model.config.subtable_sizes)
    row = 8 + 4 * trainer.model.config.subtable_width
    assert (tmp_path / "saved" / DELTA).stat().st_size < stored * row + 8192


def test_rows_of_bfloat16_are_equal_to_the_bit_too(chat, tmp_path):
    runs = [
        trained(chat, tmp_path / where, tables=BY_ROWS, init={"ngram_tables": where, "dtype": torch.bfloat16})
        for where in ("resident", "disk")
    ]
    assert logged(runs[0], "loss") == logged(runs[1], "loss")
    assert torch.equal(*(logits(run.model.eval()) for run in runs))


def test_tables_of_few_bits_train_beside_them(tmp_path):
    chat = write_tiny_chat(tmp_path, ngram_table_bits=8)
    trainer = trained(chat, tmp_path / "run", tables=BY_ROWS, init={"ngram_tables": "disk"}, max_steps=8)
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]
    trainer.save_model(tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved", "host")), logits(trainer.model.eval()))
    with pytest.raises(ValueError, match="8 bits take no changed rows"):
        load(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"`--model`.*8 bits"):
        merge_rows(["--model", str(tmp_path / "saved"), "--output", str(tmp_path / "merged")])


def test_resuming_repeats_the_uninterrupted_run_bit_for_bit(chat, resident, tmp_path):
    on_disk = {"tables": BY_ROWS, "init": {"ngram_tables": "disk"}}
    trained(chat, tmp_path, **on_disk, save_strategy="steps", save_steps=2)
    resumed = trained(chat, tmp_path, **on_disk, resume=str(tmp_path / "checkpoint-2"))
    assert logged(resumed, "loss") == logged(resident, "loss")
    expected = trained(chat, tmp_path / "whole", **on_disk)
    assert torch.equal(logits(resumed.model), logits(expected.model))


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_the_best_model_has_its_rows(chat, tmp_path, lora):
    every_step = {f"{what}_strategy": "steps" for what in ("eval", "save")} | {"eval_steps": 1, "save_steps": 1}
    # The loss falls, so the one that is called best here is the first.
    first = {"metric_for_best_model": "loss", "greater_is_better": True, "load_best_model_at_end": True}
    on_disk = {"tables": BY_ROWS, "init": {"ngram_tables": "disk"}, "peft_config": lora}
    trainer = trained(chat, tmp_path, **on_disk, **every_step, **first)
    best = trainer.state.best_model_checkpoint
    assert best.endswith("checkpoint-1")
    trainer.save_model(tmp_path / "saved")
    saved, kept = (read_row_delta(folder, trainer.model.config) for folder in (tmp_path / "saved", best))
    for (ids, rows), (best_ids, best_rows) in zip(saved, kept, strict=True):
        assert torch.equal(ids, best_ids) and torch.equal(rows, best_rows)


def test_rows_travel_beside_an_adapter(chat, tmp_path):
    trainer = trained(chat, tmp_path, tables=BY_ROWS, init={"ngram_tables": "disk"}, peft_config=LORA)
    trainer.save_model(tmp_path / "adapter")
    card = (tmp_path / "adapter" / "ngram_row_delta.md").read_text()
    stored = sum(len(ids) for ids, _ in read_row_delta(tmp_path / "adapter", trainer.model.config))
    assert f"{stored:,} rows" in card and "load_ngram_rows" in card and str(chat / "model") in card
    assert {DELTA, "adapter_model.safetensors"} <= {path.name for path in (tmp_path / "adapter").iterdir()}
    for where in ("resident", "disk"):
        base = load(chat / "model", where)
        without = logits(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter"))
        base.load_ngram_rows(tmp_path / "adapter")
        found = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"))
        assert torch.equal(found, logits(trainer.model.eval()))
        assert not torch.equal(found, without)


@everywhere
def test_deltas_stack(chat, tmp_path, placement):
    base, config = digest(chat / "model"), load(chat / "model").config
    even = made_delta(tmp_path / "even.safetensors", config, 0, parity=0)
    odd = made_delta(tmp_path / "odd.safetensors", config, 1, parity=1)
    late = made_delta(tmp_path / "late.safetensors", config, 0, scale=2.0)
    orders = []
    for order in ([even, odd], [odd, even], [even, odd, late], [late, even, odd]):
        model = load(chat / "model", placement)
        model.load_ngram_rows(*order)
        orders.append(logits(model))
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[3])
    assert not torch.equal(orders[2], orders[3])
    reference = load(chat / "model")
    for delta in (even, odd, late):
        for table, (ids, rows) in zip(
            reference.model.ngram_embeddings.embedders, read_row_delta(delta, config), strict=True
        ):
            table.weight.data[ids] = rows
    assert torch.equal(orders[2], logits(reference))
    assert digest(chat / "model") == base


@placement
def test_copies_saving_and_merging_keep_the_rows(chat, tmp_path, placement):
    model = load(chat / "model", placement)
    delta = made_delta(tmp_path / "delta.safetensors", model.config, 0)
    model.load_ngram_rows(delta)
    expected = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), expected)
    model.save_pretrained(tmp_path / "saved")
    for where in ("resident", "host", "disk"):
        assert torch.equal(logits(load(tmp_path / "saved", where)), expected)
    merge_rows(["--model", str(tmp_path / "saved"), "--output", str(tmp_path / "merged")])
    merge_rows(["--model", str(chat / "model"), "--deltas", str(delta), "--output", str(tmp_path / "merged-too")])
    for merged in ("merged", "merged-too"):
        assert not (tmp_path / merged / DELTA).exists()
        assert torch.equal(logits(load(tmp_path / merged)), expected)
    # A model without changed rows, saved over one that had some, does not take them up.
    load(chat / "model").save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved")), logits(load(chat / "model")))


def rewritten(path: Path, tensors: dict | None = None, metadata: dict | None = None) -> None:
    with safe_open(path, framework="pt") as file:
        old = file.metadata()
    save_file({**load_file(path), **(tensors or {})}, path, metadata={**old, **(metadata or {})})


@everywhere
@pytest.mark.parametrize(
    ("tensors", "metadata", "problem"),
    [
        ({}, {"max_ngram_order": "3"}, "max_ngram_order` is 3, but 4 in the config"),
        ({}, {"subtable_sizes": json.dumps([1, 2])}, "subtable_sizes"),
        ({"table_0.row_ids": torch.tensor([0, 10**6])}, {}, "table_0.row_ids` has row 1000000"),
        ({"table_0.row_ids": torch.tensor([-1, 1])}, {}, "has row -1"),
        ({"table_0.row_ids": torch.tensor([1, 1])}, {}, "twice"),
        ({"table_0.row_ids": torch.tensor([1.0, 2.0])}, {}, "table_0.row_ids` is torch.float32"),
        ({"table_0.rows": torch.zeros(2, 3)}, {}, r"table_0.rows` has shape \[2, 3\], and must have \[2, 4\]"),
        ({"table_0.rows": torch.zeros(2, 4, dtype=torch.int32)}, {}, "table_0.rows` is torch.int32"),
        ({"table_99.rows": torch.zeros(2, 4)}, {}, "table_99.rows` is not a tensor"),
        ({"table_1.rows": torch.zeros(2, 4)}, {}, "table_1` lacks its row ids"),
    ],
)
def test_a_delta_of_another_model_is_named(chat, tmp_path, placement, tensors, metadata, problem):
    model = load(chat / "model", placement)
    assert model.config.subtable_width == 4
    empty = (torch.empty(0, dtype=torch.int64), torch.empty(0, 4))
    rows = [(torch.tensor([1, 2]), torch.zeros(2, 4)), *[empty] * (model.config.num_subtables - 1)]
    write_row_delta(tmp_path / "delta.safetensors", model.config, rows, "base")
    model.load_ngram_rows(tmp_path / "delta.safetensors")
    rewritten(tmp_path / "delta.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match=f"delta.safetensors.*{problem}"):
        model.load_ngram_rows(tmp_path / "delta.safetensors")


def test_a_missing_delta_is_named(chat, tmp_path):
    with pytest.raises(ValueError, match=f"{DELTA}.*not a file of changed rows"):
        load(chat / "model").load_ngram_rows(tmp_path)


def test_merging_names_what_it_cannot_do(chat, tmp_path):
    with pytest.raises(ValueError, match="no changed rows"):
        merge_rows(["--model", str(chat / "model"), "--output", str(tmp_path / "out")])
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"--output.*is there"):
        merge_rows(["--model", str(chat / "model"), "--deltas", str(tmp_path), "--output", str(tmp_path / "out")])
    shutil.rmtree(tmp_path / "out")
