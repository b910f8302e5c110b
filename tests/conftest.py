# SPDX-License-Identifier: Apache-2.0
"""What the test files share: no network, one thread per worker, a tiny configuration, the conformance folders."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported

import pytest
import setuptools  # noqa: F401 (before a test reads the library's documentation: the compiler refuses its own distutils)
import torch
from transformers import LongcatFlashConfig
from transformers.utils import logging

from modeling_longcat_lite import LongCatLiteConfig
from modeling_longcat_lite.rms_norm import LongCatLiteRMSNorm

torch.set_num_threads(1)
logging.disable_progress_bar()

CONFORMANCE = Path(__file__).parent / "conformance"
CONFORMANCE_FOLDERS = sorted(path for path in CONFORMANCE.iterdir() if path.is_dir())

TINY = {
    "vocab_size": 64,
    "hidden_size": 48,
    "num_layers": 2,
    "num_attention_heads": 2,
    "ffn_hidden_size": 40,
    "expert_ffn_hidden_size": 16,
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 6,
    "zero_expert_num": 3,
    "moe_topk": 3,
    "ngram_vocab_size_ratio": 3.3,
    "max_position_embeddings": 256,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def tiny_config(**overrides) -> LongCatLiteConfig:
    """A model of 84,000 parameters, most dimensions different from each other; N = 4 and K = 4 as released."""
    return LongCatLiteConfig(**{**TINY, "rope_parameters": dict(PLAIN_ROPE), **overrides})


def their_config(config: LongCatLiteConfig) -> LongcatFlashConfig:
    """The same architecture, less the n-grams, for the LongcatFlash classes of transformers."""
    theirs = LongcatFlashConfig(
        **{name: getattr(config, name) for name in TINY if name != "ngram_vocab_size_ratio"},
        num_key_value_heads=config.num_attention_heads,
        head_dim=config.qk_rope_head_dim,
        routed_scaling_factor=config.routed_scaling_factor,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters=dict(config.rope_parameters),
    )
    theirs._attn_implementation = "eager"
    return theirs


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draws all weights anew: norms about 1, selection biases small against a softmax over experts, the rest about 0.

    As initialised, norms and biases are 1 and 0, and a test would not notice that one is left out.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                is_norm = "norm" in name or isinstance(module, LongCatLiteRMSNorm)
                tensor.copy_(1 + 0.2 * noise if is_norm else 0.02 * noise if "bias" in name else 0.2 * noise)
    return module


@pytest.fixture(params=CONFORMANCE_FOLDERS, ids=lambda path: path.name)
def conformance_folder(request) -> Path:
    """Each folder of `conformance/` in turn."""
    return request.param
