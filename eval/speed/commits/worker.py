# SPDX-License-Identifier: Apache-2.0
"""One process of `eval.speed.commits`, which times the package that comes first on `PYTHONPATH`.

Nothing else from this repository is imported, so that this also runs with the package of an earlier commit.
"""

import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM

CONFIG: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 384,
    "num_layers": 4,
    "num_attention_heads": 6,
    "ffn_hidden_size": 512,
    "expert_ffn_hidden_size": 128,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 16,
    "zero_expert_num": 8,
    "moe_topk": 4,
    "ngram_vocab_size_ratio": 3.3,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
CALLS = 3  # the median counts


def seconds(function: Callable[[], object]) -> float:
    """Median of `CALLS` calls, after one that does not count."""
    function()
    times = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def make(folder: str):
    """Saves the model to be measured."""
    torch.manual_seed(0)
    LongCatLiteForCausalLM(LongCatLiteConfig(**CONFIG)).save_pretrained(folder)


def measure(folder: str):
    """Prints as JSON the seconds of each case, and the peak of resident memory in MB (2^20 bytes)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LongCatLiteForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(4, CONFIG["vocab_size"], (4, 512))
    padding = torch.arange(64) >= torch.tensor([[0], [10], [20], [30]])
    plain = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 48}

    def train():
        model.train().zero_grad()
        model(ids[:2, :256], labels=ids[:2, :256], use_cache=False).loss.backward()
        model.eval()

    def save():
        with tempfile.TemporaryDirectory() as target:
            model.save_pretrained(target)

    with torch.no_grad():
        found = {
            "load": seconds(lambda: LongCatLiteForCausalLM.from_pretrained(folder)),
            "save": seconds(save),
            "prefill of 512": seconds(lambda: model(ids[:1], use_cache=True)),
            "48 tokens, one row": seconds(lambda: model.generate(ids[:1, :64], **plain)),
            "48 tokens, 4 rows with left padding": seconds(
                lambda: model.generate(ids[:, :64], attention_mask=padding.long(), **plain)
            ),
            "48 tokens, static cache": seconds(
                lambda: model.generate(ids[:1, :64], cache_implementation="static", **plain)
            ),
        }
    found["training step"] = seconds(train)
    found["peak memory, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))


__all__ = ["make", "measure"]
