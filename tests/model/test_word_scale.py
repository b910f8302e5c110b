# SPDX-License-Identifier: Apache-2.0
"""`scale_word_embedding`: the word row divided with the n-grams or added whole, term by term, on every path."""

import json

import pytest
import torch
from conftest import randomize, tiny_config
from naive_ngram import naive_ngram_ids

from eval.checkpoints.quantize import convert
from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.ngram_quantization import dequantize_rows, quantize_rows

TOKENS = torch.tensor([[7, 50, 2, 9, 0, 63, 8, 8, 2, 2, 5, 61, 3, 4, 7, 50]])


def word_plus_rest(model: LongCatLiteForCausalLM, tokens: torch.Tensor, divide_word: bool) -> torch.Tensor:
    """The embedding of one row of tokens, term by term, `[T, D]`."""
    config, ngram = model.config, model.model.ngram_embeddings
    ids = naive_ngram_ids(tokens.tolist(), config.subtable_sizes, config.ngram_base_vocab_size, 4, {2})
    words = model.model.embed_tokens.weight[tokens]
    total = torch.zeros_like(words)
    for i, table in enumerate(ngram.embedders):
        columns = ngram.post_proj.weight[:, i * config.subtable_width : (i + 1) * config.subtable_width]
        total = total + table.weight[ids[i]] @ columns.T
    terms = config.num_subtables + 1
    return (words + total) / terms if divide_word else words + total / terms


@pytest.mark.parametrize("divide_word", [True, False])
def test_the_word_row_divided_or_whole(divide_word, tmp_path, monkeypatch):
    model = randomize(LongCatLiteForCausalLM(tiny_config(scale_word_embedding=divide_word))).eval()
    expected = word_plus_rest(model, TOKENS[0], divide_word)[None]

    def embedded(model: LongCatLiteForCausalLM) -> torch.Tensor:
        return model(TOKENS, output_hidden_states=True).hidden_states[0]

    close = {"atol": 1e-6, "rtol": 0}
    torch.testing.assert_close(embedded(model), expected, **close)  # with gradients: the modules are called
    with torch.no_grad():
        torch.testing.assert_close(embedded(model), expected, **close)  # one product and sum
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["scale_word_embedding"] is divide_word
    with torch.no_grad():
        for placement in ("host", "disk"):
            loaded = LongCatLiteForCausalLM.from_pretrained(tmp_path, ngram_tables=placement)
            torch.testing.assert_close(embedded(loaded), expected, **close)

        convert(tmp_path, tmp_path / "int8", 8, 2**20)
        for placement in ("resident", "disk"):
            loaded = LongCatLiteForCausalLM.from_pretrained(tmp_path / "int8", ngram_tables=placement)
            rounded = randomize(LongCatLiteForCausalLM(tiny_config(scale_word_embedding=divide_word))).eval()
            for table in rounded.model.ngram_embeddings.embedders:
                table.weight.copy_(dequantize_rows(quantize_rows(table.weight, 8), 8, torch.float32))
            torch.testing.assert_close(
                embedded(loaded), word_plus_rest(rounded, TOKENS[0], divide_word)[None], **close
            )

        scope = type(model.model.ngram_embeddings).forward.__globals__  # the kernel gives rows, as the lookups do
        rows = model.model.ngram_embeddings._rows
        taken = []

        def gathered(codes, *_):
            taken.append(codes)
            with monkeypatch.context() as plain:
                plain.setitem(scope, "kernel_applies", lambda *_: False)
                return rows(model.model.embed_tokens(TOKENS), codes, None)

        monkeypatch.setitem(scope, "kernel_applies", lambda *_: True)
        monkeypatch.setitem(scope, "gather_ngram_rows", gathered)
        torch.testing.assert_close(embedded(model), expected, **close)
        assert taken


def test_the_gradient_of_a_whole_word_row():
    model = randomize(LongCatLiteForCausalLM(tiny_config(scale_word_embedding=False)))
    word = model.model.embed_tokens.weight
    (found,) = torch.autograd.grad(model(TOKENS, output_hidden_states=True).hidden_states[0].sum(), word)
    counts = torch.bincount(TOKENS[0], minlength=64).float()
    counts[3] = 0  # padding learns nothing
    torch.testing.assert_close(found, counts[:, None].expand(-1, 48), atol=1e-6, rtol=0)
