# SPDX-License-Identifier: Apache-2.0
"""Parts of a row with n-grams of the whole: the embeddings, and the trainer's hooks for context parallelism."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from conftest import randomize, tiny_config
from trl import SFTTrainer

from modeling_longcat_lite import LongCatLiteForCausalLM, ngram_row_ids
from training.context.shards import ShardedRowsSFTTrainer, WholeRowNgrams, drop_masks


@pytest.fixture(scope="module")
def model():
    return randomize(LongCatLiteForCausalLM(tiny_config()).eval())


def embeddings(model, input_ids, **inputs):
    """What the first layer reads, `[B, T, D]`."""
    seen = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with hook:
        model(input_ids, use_cache=False, **inputs)
    return seen[0]


def halves(row):
    return row.chunk(2, dim=1)


def head_and_tail(row):
    """As context parallelism of torch splits over two processes."""
    first, second, third, fourth = row.chunk(4, dim=1)
    return torch.cat([first, fourth], dim=1), torch.cat([second, third], dim=1)


@pytest.mark.parametrize("split", [halves, head_and_tail])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_parts_of_a_row_read_the_rows_of_the_whole(model, split, packed, training):
    input_ids = torch.randint(4, 64, (2, 32), generator=torch.Generator().manual_seed(0))
    input_ids[0, 13] = model.config.eos_token_id
    positions = torch.arange(32).expand(2, 32)
    positions = torch.where(positions >= 10, positions - 10, positions) if packed else positions
    row_ids = ngram_row_ids(model.config, input_ids, positions).movedim(0, -1)
    with torch.set_grad_enabled(training):
        whole = embeddings(model, input_ids, position_ids=positions)
        parts = zip(split(input_ids), split(positions), split(row_ids), strict=True)
        each = [embeddings(model, ids, position_ids=at, ngram_row_ids=rows) for ids, at, rows in parts]
    for part, expected in zip(each, split(whole), strict=True):
        torch.testing.assert_close(part, expected)
    without = embeddings(model, split(input_ids)[1], position_ids=split(positions)[1])
    assert not torch.allclose(without, split(whole)[1], atol=1e-3), "the test has to notice missing history"


def test_row_ids_that_do_not_fit_are_named(model):
    input_ids = torch.randint(4, 64, (1, 8))
    row_ids = ngram_row_ids(model.config, input_ids).movedim(0, -1)
    with pytest.raises(ValueError, match=r"ngram_row_ids.*\[1, 7, 12\].*\[1, 8, 12\]"):
        model(input_ids, use_cache=False, ngram_row_ids=row_ids[:, 1:])
    with pytest.raises(ValueError, match="use_cache"):
        model(input_ids, use_cache=True, ngram_row_ids=row_ids)


def test_the_collator_looks_at_whole_rows(model):
    input_ids = torch.randint(4, 64, (1, 8))
    batch = WholeRowNgrams(lambda rows: {"input_ids": rows}, model.config)(input_ids)
    assert torch.equal(batch["ngram_row_ids"], ngram_row_ids(model.config, input_ids).movedim(0, -1))
    assert batch["ngram_row_ids"].is_contiguous()


def test_row_ids_are_split_with_the_tokens(monkeypatch):
    monkeypatch.setattr(
        SFTTrainer, "_prepare_context_parallel_inputs", lambda self, model, inputs: (contextlib.nullcontext, inputs)
    )
    split = []
    trainer = ShardedRowsSFTTrainer.__new__(ShardedRowsSFTTrainer)
    trainer.accelerator = SimpleNamespace(maybe_context_parallel=lambda **options: split.append(options))
    inputs = {name: torch.zeros(1, 8) for name in ("input_ids", "labels", "shift_labels", "position_ids")}
    context, same = trainer._prepare_context_parallel_inputs(None, inputs | {"ngram_row_ids": torch.zeros(1, 8, 12)})
    context()
    (options,) = split
    for name in (*inputs, "ngram_row_ids"):
        assert any(buffer is same[name] for buffer in options["buffers"]), name
    assert options["buffer_seq_dims"] == [1] * 5 and options["no_restore_buffers"] == set(options["buffers"])
    # Without context parallelism the collator adds no row ids, and the context is the Trainer's.
    assert trainer._prepare_context_parallel_inputs(None, inputs)[0] is contextlib.nullcontext


def test_attention_without_masks_is_causal():
    plain = randomize(LongCatLiteForCausalLM(tiny_config(attn_implementation="sdpa")).eval())
    hooked = randomize(LongCatLiteForCausalLM(tiny_config(attn_implementation="sdpa")).eval())
    drop_masks(hooked)
    input_ids = torch.randint(4, 64, (1, 16))
    expected = plain(input_ids, use_cache=False).logits
    torch.testing.assert_close(hooked(input_ids, use_cache=False).logits, expected)
    # The positions of a head-and-tail part jump, which reads as a packed row and would get a mask.
    jump = torch.tensor([[*range(8), *range(24, 32)]])
    row_ids = ngram_row_ids(plain.config, input_ids).movedim(0, -1)
    masked, whole = (m(input_ids, position_ids=jump, use_cache=False, ngram_row_ids=row_ids) for m in (plain, hooked))
    torch.testing.assert_close(masked.logits[:, :8], whole.logits[:, :8])
    assert not torch.allclose(masked.logits[:, 8:], whole.logits[:, 8:], atol=1e-3)
