# SPDX-License-Identifier: Apache-2.0
"""The n-gram embedding inside the model: golden outputs, amplification, gradients, and ids that never change."""

import pytest
import torch
from conftest import CONFORMANCE, randomize, tiny_config
from naive_ngram import naive_ngram_ids
from safetensors.torch import load_file
from torch import nn

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM, LongCatLiteModel
from modeling_longcat_lite.ngram_hashing import HIDDEN, encode_tokens

TOKENS = torch.tensor([[7, 50, 2, 9, 0, 63, 8, 8, 2, 2, 5], [2, 11, 12, 13, 14, 15, 11, 12, 13, 14, 2]])


def embeddings(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """What enters the first layer, `[B, T, D]`."""
    return model(tokens, output_hidden_states=True).hidden_states[0]


def ids_of(model: LongCatLiteForCausalLM, tokens: torch.Tensor) -> list:
    """`[row][sub-table][token]`."""
    codes = nn.functional.pad(encode_tokens(tokens), (model.config.max_ngram_order - 1, 0), value=HIDDEN)
    return model.model.ngram_embeddings.ids(codes).transpose(0, 1).tolist()


def naive_ids(config: LongCatLiteConfig, tokens: torch.Tensor, eos: tuple[int, ...] = (2,)) -> list:
    sizes, base, order = config.subtable_sizes, config.ngram_base_vocab_size, config.max_ngram_order
    return [naive_ngram_ids(row, sizes, base, order, eos) for row in tokens.tolist()]


def test_golden_embeddings(conformance_folder):
    model = LongCatLiteForCausalLM.from_pretrained(conformance_folder, dtype=torch.float32)
    golden = load_file(conformance_folder / "golden.safetensors")
    with torch.no_grad():
        found = embeddings(model, golden["input_ids"])
    torch.testing.assert_close(found, golden["embeddings"], atol=1e-5, rtol=0)


def test_is_the_mean_of_word_row_and_projected_rows():
    model = randomize(LongCatLiteModel(tiny_config(emb_neighbor_num=3, emb_split_num=2)))
    ngram, rows = model.ngram_embeddings, naive_ids(model.config, TOKENS)
    width = model.config.subtable_width
    for b, t in [(0, 0), (0, 3), (1, 9)]:
        total = model.embed_tokens.weight[TOKENS[b, t]]
        for i, table in enumerate(ngram.embedders):
            projection = ngram.post_proj.weight[:, i * width : (i + 1) * width]
            total = total + projection @ table.weight[rows[b][i][t]]
        torch.testing.assert_close(embeddings(model, TOKENS)[b, t], total / 5, atol=1e-6, rtol=0)


def test_without_ngrams_only_the_word_row_is_left():
    model = LongCatLiteModel(tiny_config(use_ngram_embedding=False))
    assert model.ngram_embeddings is None
    assert torch.equal(embeddings(model, TOKENS), model.embed_tokens(TOKENS))


@pytest.mark.parametrize("use_ngram_embedding", [True, False])
def test_amplification(use_ngram_embedding):
    def make(amplification):
        config = tiny_config(embedding_amplification=amplification, use_ngram_embedding=use_ngram_embedding)
        return LongCatLiteModel(config)

    plain, scaled, normed = make("none"), make("sqrt_d"), make("layer_norm")
    randomize(plain)
    scaled.load_state_dict(plain.state_dict())
    randomize(normed)  # the norm's own weight and bias too
    normed.load_state_dict(plain.state_dict(), strict=False)
    expected = embeddings(plain, TOKENS)
    torch.testing.assert_close(embeddings(scaled, TOKENS), expected * 48**0.5, atol=1e-6, rtol=0)

    norm = normed.embedding_amplification.norm
    centred = (expected - expected.mean(-1, keepdim=True)).double()
    unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = unit * norm.weight.double() + norm.bias.double()
    torch.testing.assert_close(embeddings(normed, TOKENS).double(), expected, atol=1e-6, rtol=1e-6)


def test_layer_norm_survives_save_and_load(tmp_path):
    model = randomize(LongCatLiteForCausalLM(tiny_config(embedding_amplification="layer_norm")))
    model.save_pretrained(tmp_path)
    loaded = LongCatLiteForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(embeddings(loaded, TOKENS), embeddings(model, TOKENS))


def test_layer_norm_on_a_checkpoint_without_one_starts_neutral():
    model = LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "bigram", embedding_amplification="layer_norm")
    norm = model.model.embedding_amplification.norm
    assert torch.equal(norm.weight, torch.ones(96))
    assert torch.equal(norm.bias, torch.zeros(96))


def test_gradient_reaches_the_rows_that_were_read_and_the_projections():
    model = randomize(LongCatLiteForCausalLM(tiny_config()))
    model(TOKENS, labels=TOKENS).loss.backward()
    ngram, rows = model.model.ngram_embeddings, naive_ids(model.config, TOKENS)
    for i, table in enumerate(ngram.embedders):
        touched = table.weight.grad.abs().sum(-1).nonzero().flatten().tolist()
        # The loss ends one token before the sequence does.
        assert touched == sorted({row for b in range(2) for row in rows[b][i][:-1]})
    width = model.config.subtable_width
    for projection in ngram.post_proj.weight.grad.split(width, dim=1):
        assert projection.abs().min() > 0


@pytest.mark.parametrize("cls", [LongCatLiteForCausalLM, LongCatLiteModel])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hash_constants_after_loading(cls, dtype):
    """Loading builds the model without memory; no checkpoint holds the constants of the hash."""
    model = cls.from_pretrained(CONFORMANCE / "released", dtype=dtype)
    ngram = (model.model if cls is LongCatLiteForCausalLM else model).ngram_embeddings
    rows = [7 * 256 + 2 * i + 1 for i in range(12)]
    assert ngram.sizes.tolist() == rows
    assert ngram.residues.tolist() == [
        [pow(256, d, r) if i >= 4 * (d - 1) else 0 for i, r in enumerate(rows)] for d in (1, 2, 3)
    ]
    assert ngram.sizes.dtype == ngram.residues.dtype == torch.int64


def test_hash_constants_survive_a_cast():
    model = LongCatLiteForCausalLM(tiny_config())
    expected = ids_of(model, TOKENS)
    assert expected == naive_ids(model.config, TOKENS)
    assert ids_of(model.to(torch.bfloat16), TOKENS) == expected


@pytest.mark.parametrize("vocab_size", [70, 60])
def test_resizing_the_vocabulary_changes_no_id(vocab_size, tmp_path):
    model = randomize(LongCatLiteForCausalLM(tiny_config()))
    tokens = TOKENS.clamp(max=59)
    ids, before = ids_of(model, tokens), embeddings(model, tokens)
    assert ids == naive_ids(model.config, tokens)
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    assert ids_of(model, tokens) == ids
    model.save_pretrained(tmp_path)
    loaded = LongCatLiteForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == vocab_size
    assert ids_of(loaded, tokens) == ids
    assert torch.equal(embeddings(loaded, tokens), before)


def test_added_tokens_hash_with_the_old_base():
    model = LongCatLiteForCausalLM(tiny_config())
    model.resize_token_embeddings(80, mean_resizing=False)
    added = torch.tensor([[79, 5, 64, 70, 71]])
    assert ids_of(model, added) == [naive_ngram_ids(added[0].tolist(), model.config.subtable_sizes, 64, 4, {2})]


def test_a_trainer_that_rewrites_eos_changes_no_id(tmp_path):
    model = LongCatLiteForCausalLM(tiny_config())
    ids = ids_of(model, TOKENS)
    model.config.eos_token_id = 11
    model.save_pretrained(tmp_path)
    assert ids_of(LongCatLiteForCausalLM.from_pretrained(tmp_path), TOKENS) == ids


@pytest.mark.parametrize(("ends", "closing"), [([2, 13], (2, 13)), (13, (13,))], ids=str)
def test_the_configured_tokens_end_a_segment(ends, closing):
    model = LongCatLiteForCausalLM(tiny_config(ngram_eos_token_id=ends))
    assert ids_of(model, TOKENS) == naive_ids(model.config, TOKENS, closing)


def test_no_end_of_sequence_token_at_all():
    model = LongCatLiteForCausalLM(tiny_config(eos_token_id=None))
    assert ids_of(model, TOKENS) == naive_ids(model.config, TOKENS, ())
