# SPDX-License-Identifier: Apache-2.0
"""Which tokens belong to one document, with and without padding between them."""

from pathlib import Path

import pytest
import torch

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.visible_tokens import document_indices

BASE = Path(__file__).parents[1] / "conformance" / "base"


@pytest.mark.parametrize(
    ("visible", "positions", "documents"),
    [
        ([1, 1, 1, 1], [0, 1, 2, 3], [0, 0, 0, 0]),
        ([1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1]),
        (None, [5, 6, 9, 10], [0, 0, 1, 1]),
        # Skipped positions (PoSE): a mask that shows every token keeps them in one document.
        ([1, 1, 1, 1], [5, 6, 9, 10], [0, 0, 0, 0]),
        ([1, 1, 1, 1], [5, 6, 6, 10], [0, 0, 1, 1]),
        ([0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]),
        ([1, 1, 0, 1, 1, 1], [0, 1, 0, 2, 0, 1], [0, 0, 0, 0, 1, 1]),
        ([1, 1, 0, 1, 1, 1], [0, 1, 2, 3, 0, 1], [0, 0, 0, 0, 1, 1]),
        ([1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_document_indices(visible, positions, documents):
    mask = None if visible is None else torch.tensor([visible]).bool()
    found = document_indices(torch.tensor([positions]), mask)
    assert found.tolist() == [documents]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_hidden_token_in_the_middle_is_no_boundary(attention):
    # `generate` hides every pad id in a prompt, and its positions skip them: still one document, cached or not.
    model = LongCatLiteForCausalLM.from_pretrained(BASE, attn_implementation=attention)
    ids = torch.tensor([[5, 9, 3, 7, 11, 6]])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "attention_mask": ids != 3}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))
    with torch.no_grad():
        plain = model(ids, attention_mask=(ids != 3).long()).logits
        explicit = model(
            ids, attention_mask=(ids != 3).long(), position_ids=torch.arange(6)[None], use_cache=False
        ).logits
    torch.testing.assert_close(explicit[:, -1], plain[:, -1], atol=1e-5, rtol=0)
