# SPDX-License-Identifier: Apache-2.0
"""The two models of the speed comparison, and caches that hold a context without having computed it.

Shapes: B batch, T tokens, L tokens of context, C and R widths of the key-value latent and of the rotated key.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from transformers import DynamicCache, LongcatFlashConfig, LongcatFlashForCausalLM
from transformers.cache_utils import Cache

from modeling_longcat_lite import (
    LongCatLiteConfig,
    LongCatLiteDynamicCache,
    LongCatLiteForCausalLM,
    LongCatLiteStaticCache,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EXPERTS = ("grouped_mm", "batched_mm", "eager")
COMPILABLE_EXPERTS = EXPERTS[:2]  # the plain loop asks which experts were selected, which no graph can
FIRST_PLAIN_TOKEN = 4  # after begin, end and padding


@dataclass(frozen=True)
class Shape:
    """Both models' sizes. The n-gram fields are ours alone: transformers' in-tree model has no n-gram embedding."""

    vocab_size: int = 8192
    hidden_size: int = 384
    num_layers: int = 4
    num_attention_heads: int = 8
    ffn_hidden_size: int = 768
    expert_ffn_hidden_size: int = 192
    q_lora_rank: int = 192
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    n_routed_experts: int = 16
    zero_expert_num: int = 8
    moe_topk: int = 4
    max_position_embeddings: int = 32768
    emb_neighbor_num: int = 4
    emb_split_num: int = 4
    ngram_vocab_size_ratio: float = 3.3

    def our_config(self) -> LongCatLiteConfig:
        rope = {"rope_type": "default", "rope_theta": 5_000_000.0}
        return LongCatLiteConfig(**asdict(self), rope_parameters=rope)

    def their_config(self) -> LongcatFlashConfig:
        ours = self.our_config()
        shared = {k: v for k, v in asdict(self).items() if not k.startswith(("emb_", "ngram_"))}
        return LongcatFlashConfig(
            **shared,
            head_dim=self.qk_rope_head_dim,
            routed_scaling_factor=ours.routed_scaling_factor,
            rms_norm_eps=ours.rms_norm_eps,
            rope_parameters=dict(ours.rope_parameters),
        )


def parse_shape(changes: list[str], base: Shape | None = None) -> Shape:
    """`["hidden_size=768"]` as changes to a shape, the default one unless given.

    Raises:
        `ValueError`: for a field that a shape does not have.
    """
    base = base or Shape()
    kinds = {name: type(value) for name, value in asdict(base).items()}
    values = {}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in kinds:
            raise ValueError(f"`--shape` has no field `{name}`; its fields are {', '.join(kinds)}.")
        values[name] = kinds[name](value)
    return replace(base, **values)


@dataclass(frozen=True)
class Models:
    """Ours once per implementation of the routed experts (switching one model would be timed too), and theirs."""

    ours: dict[str, LongCatLiteForCausalLM]
    theirs: LongcatFlashForCausalLM
    shape: Shape
    dtype: str


def build_models(shape: Shape, dtype: str, seed: int) -> Models:
    """Random weights, loaded from a checkpoint as a user loads them: some stay in float32 whatever `dtype` is."""
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        LongCatLiteForCausalLM(shape.our_config()).save_pretrained(folder)
        ours = {
            experts: LongCatLiteForCausalLM.from_pretrained(
                folder, dtype=DTYPES[dtype], experts_implementation=experts
            ).eval()
            for experts in EXPERTS
        }
    with tempfile.TemporaryDirectory() as folder:
        LongcatFlashForCausalLM(shape.their_config()).save_pretrained(folder)
        theirs = LongcatFlashForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
    return Models(ours, theirs, shape, dtype)


def random_tokens(shape: Shape, batch: int, length: int) -> torch.Tensor:
    """`[B, T]` tokens, none of them special."""
    return torch.randint(FIRST_PLAIN_TOKEN, shape.vocab_size, (batch, length))


def filled(cache: Cache, config, tokens: torch.Tensor, dtype: torch.dtype) -> Cache:
    """`cache` with random latents for `tokens` `[B, L]`: as costly to attend to as computed ones, at no cost."""
    if isinstance(cache, LongCatLiteDynamicCache | LongCatLiteStaticCache):
        cache.append_tokens(tokens, config.max_ngram_order - 1)
    batch, length = tokens.shape
    for sublayer in range(config.num_hidden_layers):
        latent = torch.randn(batch, 1, length, config.kv_lora_rank).to(dtype)
        rotated_key = torch.randn(batch, 1, length, config.qk_rope_head_dim).to(dtype)
        cache.update(latent, rotated_key, sublayer)
    return cache


def decode_step(forward: Callable, cache: Cache, token: torch.Tensor) -> Callable[[], object]:
    """One forward of one token a row. The cache grows by a token with every call."""

    def step():
        return forward(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)

    return step


def our_decode_step(
    model: LongCatLiteForCausalLM, tokens: torch.Tensor, capacity: int | None = None
) -> Callable[[], object]:
    """Our decode step behind the context `tokens` `[B, L]`.

    With a `capacity` the cache is a static one of so many tokens and the forward compiled; a growing cache otherwise.
    """
    cache: Cache
    if capacity is None:
        cache, forward = LongCatLiteDynamicCache(config=model.config), model.forward
    else:
        cache = LongCatLiteStaticCache(config=model.config, max_cache_len=capacity)
        forward = torch.compile(model.forward, fullgraph=True, dynamic=False)
    return decode_step(forward, filled(cache, model.config, tokens, model.dtype), tokens[:, -1:].clone())


def their_decode_step(model: LongcatFlashForCausalLM, tokens: torch.Tensor) -> Callable[[], object]:
    """The same for transformers' model, which has one experts implementation and cannot be compiled as one graph."""
    cache = filled(DynamicCache(config=model.config), model.config, tokens, model.dtype)
    return decode_step(model.forward, cache, tokens[:, -1:].clone())


def no_compiler_reason() -> str | None:
    """Why nothing can be compiled here; `None` where it can."""
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"no C++ compiler: `{compiler}` is not on the path"


__all__ = [
    "COMPILABLE_EXPERTS",
    "DTYPES",
    "EXPERTS",
    "Models",
    "Shape",
    "build_models",
    "no_compiler_reason",
    "our_decode_step",
    "parse_shape",
    "random_tokens",
    "their_decode_step",
]
