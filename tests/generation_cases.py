# SPDX-License-Identifier: Apache-2.0
"""The models, prompts, modes and caches that generation is tested on."""

import copy
import functools
from pathlib import Path

import torch
from conftest import tiny_config
from safetensors.torch import load_file

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from training.run.draft_loss import draft_loss

CONFORMANCE = Path(__file__).parent / "conformance"
NEW_TOKENS = 10
CASES = ["base", "yarn", "bigram", "fractional", "released", "trained"]
MODES = {
    "greedy": {},
    "beam": {"num_beams": 4},
    "beam_returns_3": {"num_beams": 4, "num_return_sequences": 3},
    "sample_returns_3": {"do_sample": True, "temperature": 1.0, "num_return_sequences": 3},
    "prompt_lookup": {"prompt_lookup_num_tokens": 3},
}
CACHES = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "dynamic_chunked": {"prefill_chunk_size": 3},
    "static_chunked": {"cache_implementation": "static", "prefill_chunk_size": 3},
}

TEXT = torch.tensor([list((CONFORMANCE.parent / "conftest.py").read_bytes())])  # tokens are bytes


@functools.cache
def trained_weights() -> tuple[LongCatLiteConfig, dict[str, torch.Tensor]]:
    """A small model that has learned something: unlike random ones it repeats itself and is sure of its tokens."""
    torch.manual_seed(0)
    # A line break ends an n-gram segment.
    config = tiny_config(vocab_size=256, eos_token_id=10, num_nextn_predict_layers=1)
    model = LongCatLiteForCausalLM(config).train()

    def train(parameters, steps: int, loss_of) -> float:
        optimizer = torch.optim.AdamW(parameters, lr=5e-3)
        for _ in range(steps):
            starts = torch.randint(TEXT.shape[1] - 64, (8,))
            loss = loss_of(torch.stack([TEXT[0, start : start + 64] for start in starts]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    def head_loss(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            states = model.model(ids).last_hidden_state
        return draft_loss(model, states, ids, ids, distill=True)

    trunk = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert train(trunk, 150, lambda ids: model(ids, labels=ids).loss) < 2.5  # 5.5 untrained
    train(model.model.mtp.requires_grad_(True).parameters(), 150, head_loss)
    return config, model.state_dict()


def load(case: str, **kwargs) -> LongCatLiteForCausalLM:
    if case != "trained":
        return LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / case, dtype=torch.float32, **kwargs)
    config, weights = trained_weights()
    # A copy: the model writes its implementation of experts and attention into its config.
    model = LongCatLiteForCausalLM._from_config(copy.deepcopy(config), **kwargs).eval()
    model.load_state_dict(weights)
    return model


def prompts(case: str) -> torch.Tensor:
    if case != "trained":
        return load_file(CONFORMANCE / case / "golden.safetensors")["prompts"]
    return torch.stack([TEXT[0, start : start + 9] for start in (0, 120, 700, 1500)])


def left_padded(tokens: torch.Tensor, pad: int = 3) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Rows of different length, padded on the left: ids, mask, and each row alone."""
    rows = [row[: len(row) - cut] for row, cut in zip(tokens, (0, 3, 6, 1), strict=True)]
    ids, mask = torch.full((len(rows), 12), pad), torch.zeros(len(rows), 12, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, -len(row) :], mask[i, -len(row) :] = row, 1
    return ids, mask, rows


def run(model, ids, mask, **kwargs) -> torch.Tensor:
    torch.manual_seed(0)
    kwargs = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None, **kwargs}
    return model.generate(ids, attention_mask=mask, **kwargs)[:, ids.shape[1] :]
