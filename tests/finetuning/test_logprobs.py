# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of generation equal those of training on the same tokens: what a reward is weighed with is right.

Generation decodes from a cache, left-padded or compiled; training runs packed rows through TRL's own language-model
head. GRPO divides one by the other.
"""

import pytest
import torch
from conftest import randomize, tiny_config
from transformers import CompileConfig
from trl.trainer.utils import add_fused_lm_head

from modeling_longcat_lite import LongCatLiteForCausalLM

TOLERANCE = 1e-5
NEW_TOKENS = 8
PROMPTS = [[5, 9, 13, 9, 5], [21, 22, 23, 21, 22, 23, 21, 22, 40, 41, 42], [60]]
EAGER_COMPILED = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
EAGER_COMPILED._compile_all_devices = True
GENERATION = {
    "cached": {},
    "static": {"cache_implementation": "static"},
    "compiled": {"cache_implementation": "static", "compile_config": EAGER_COMPILED},
    "uncached": {"use_cache": False},
}


@pytest.fixture(scope="module")
def model() -> LongCatLiteForCausalLM:
    return randomize(LongCatLiteForCausalLM(tiny_config(eos_token_id=None, pad_token_id=3))).eval()


def generated(model, prompts: list[list[int]], **options) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Sampled completions, each after its prompt, and log-probabilities `[B, NEW_TOKENS]` of the sampled tokens."""
    width = max(map(len, prompts))
    ids = torch.tensor([[3] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    torch.manual_seed(0)
    drawn = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=True,
        top_k=0,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    tokens = drawn.sequences[:, width:]
    logprobs = torch.stack(drawn.logits, dim=1).log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    rows = [torch.cat([torch.tensor(prompt), row]) for prompt, row in zip(prompts, tokens, strict=True)]
    return rows, logprobs


def of_training(model, rows: list[torch.Tensor]) -> torch.Tensor:
    """Log-probabilities `[B, NEW_TOKENS]` by the training forward, all rows packed into one."""
    trained = LongCatLiteForCausalLM(model.config).train()
    trained.load_state_dict(model.state_dict())
    add_fused_lm_head(trained)
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    ids = torch.cat(rows)[None]
    labels = ids.masked_fill(positions == 0, -100)
    logprobs = trained(input_ids=ids, position_ids=positions, labels=labels, fused_lm_head=True).log_probs[0]
    ends = torch.tensor([len(row) for row in rows]).cumsum(0)
    # The one at t - 1 is of token t.
    return torch.stack([logprobs[end - 1 - NEW_TOKENS : end - 1] for end in ends])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("way", ["cached", "static", pytest.param("compiled", marks=pytest.mark.slow), "uncached"])
def test_generation_and_training_agree(model, way, attention):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.set_attn_implementation(attention)
    rows, logprobs = generated(model, PROMPTS, **GENERATION[way])
    assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == (way == "compiled")
    assert logprobs.std() > 0.1  # the model is sure of some tokens, and not of others
    torch.testing.assert_close(logprobs, of_training(model, rows), atol=TOLERANCE, rtol=0)


def test_a_row_alone_agrees_with_the_padded_batch(model):
    rows, _ = generated(model, PROMPTS)
    together = of_training(model, rows)
    for i in range(len(rows)):
        torch.testing.assert_close(together[i : i + 1], of_training(model, rows[i : i + 1]), atol=TOLERANCE, rtol=0)
