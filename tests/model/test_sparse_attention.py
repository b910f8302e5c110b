# SPDX-License-Identifier: Apache-2.0
"""Models with an indexer: dense attention is theirs up to `index_topk` tokens, and more are refused by name."""

from pathlib import Path

import pytest
import torch
from conftest import randomize, tiny_config
from oe_checkpoints import LONGCAT_2, SPARSE, TOKENS, TOPK, logits, write
from safetensors.torch import load_file, save_file
from transformers import CompileConfig
from without_the_package import run_without_the_package

from modeling_longcat_lite import LongCatLiteForCausalLM


@pytest.fixture(scope="module", params=[SPARSE, LONGCAT_2], ids=["sparse", "2.0"])
def published(request, tmp_path_factory) -> tuple[LongCatLiteForCausalLM, Path]:
    return write(tmp_path_factory.mktemp("oe"), request.param)


def test_selecting_among_no_more_than_topk_keys_keeps_them_all():
    """The claim behind `index_topk`, with the selection written out: any score, first and last keys always kept."""
    scores = torch.randn(TOPK, TOPK, generator=torch.Generator().manual_seed(0))
    for query in range(TOPK):
        seen = scores[query, : query + 1].clone()
        seen[:2] = seen[-4:] = float("inf")
        kept = seen.topk(min(TOPK, len(seen))).indices
        assert sorted(kept.tolist()) == list(range(query + 1))


def test_a_sequence_above_topk_is_refused_by_name(published):
    model, _ = published
    assert logits(model).shape[1] == TOPK
    longer = torch.cat([TOKENS, TOKENS[:, :1]], dim=1)
    with pytest.raises(ValueError, match=rf"{TOPK + 1} tokens, above `index_topk` \({TOPK}\)"):
        logits(model, longer)
    with torch.no_grad():
        cache = model(TOKENS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=f"{TOPK + 1} tokens"):  # the history counts
        logits(model, TOKENS[:, :1], past_key_values=cache)
    for options in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        with pytest.raises(ValueError, match="`index_topk`"):  # before the first token
            model.generate(TOKENS[:, :8], max_new_tokens=TOPK, **options)


def test_packed_documents_count_one_by_one(published):
    model, _ = published
    packed, positions = torch.cat([TOKENS, TOKENS], dim=1), torch.arange(TOPK).repeat(2)[None]
    expected = logits(model).repeat(1, 2, 1)
    found = logits(model, packed, position_ids=positions, use_cache=False)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    mask = torch.ones_like(packed)
    torch.testing.assert_close(
        logits(model, packed, position_ids=positions, attention_mask=mask, use_cache=False),
        expected,
        atol=1e-5,
        rtol=0,
    )
    with pytest.raises(ValueError, match=f"{2 * TOPK} tokens"):
        logits(model, packed, use_cache=False)
    with pytest.raises(ValueError, match=f"{2 * TOPK} tokens"):  # of a 4D mask nothing is known
        whole = torch.zeros(1, 1, 2 * TOPK, 2 * TOPK)
        logits(model, packed, position_ids=positions, attention_mask=whole, use_cache=False)
    part = {"ngram_row_ids": torch.zeros(1, TOPK, model.config.num_subtables, dtype=torch.long), "use_cache": False}
    with pytest.raises(ValueError, match=f"{2 * TOPK} tokens"):  # the second half of a row that was split
        logits(model, TOKENS, position_ids=torch.arange(TOPK, 2 * TOPK)[None], **part)


@pytest.mark.slow  # compiles
def test_compiled_decoding_up_to_topk():
    model = randomize(LongCatLiteForCausalLM(tiny_config(attention_method="LSA", index_topk=TOPK))).eval()
    compiled = CompileConfig(fullgraph=True, backend="eager", mode=None)
    compiled._compile_all_devices = True
    options = {"do_sample": False, "eos_token_id": None}
    found = model.generate(
        TOKENS[:, :9], max_new_tokens=8, cache_implementation="static", compile_config=compiled, **options
    )
    assert torch.equal(found, model.generate(TOKENS[:, :9], max_new_tokens=8, **options))


def test_dense_attention_above_topk_on_request(published):
    loaded = LongCatLiteForCausalLM.from_pretrained(published[1], index_topk=64)
    assert logits(loaded, TOKENS.repeat(1, 3)).shape[1] == 3 * TOPK


REMOTE = """
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
assert "transformers_modules" in type(model).__module__
with torch.no_grad():
    assert torch.equal(model(golden["tokens"]).logits, golden["logits"])
try:
    model(golden["tokens"].repeat(1, 2))
except ValueError as error:
    assert "`index_topk`" in str(error)
else:
    raise AssertionError("32 tokens")
"""


@pytest.mark.slow  # a process of its own
def test_as_remote_code(tmp_path):
    config = tiny_config(scale_word_embedding=False, attention_method="LSA", index_topk=TOPK)
    model = randomize(LongCatLiteForCausalLM(config)).eval()
    model.save_pretrained(tmp_path / "model")
    save_file({"tokens": TOKENS, "logits": logits(model)}, tmp_path / "golden.safetensors")
    run_without_the_package(REMOTE, tmp_path / "model", tmp_path / "golden.safetensors", cache=tmp_path)


def test_an_indexer_without_the_index_of_a_sublayer_is_left_out_too(tmp_path):
    model = randomize(LongCatLiteForCausalLM(tiny_config(attention_method="LSA", index_topk=TOPK))).eval()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors") | {
        "model.layers.0.self_attn.indexer.wk.weight": torch.ones(2, 2)
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = LongCatLiteForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, TOKENS), logits(model, TOKENS))
