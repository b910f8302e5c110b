# SPDX-License-Identifier: Apache-2.0
"""Shapes of the models that are measured, the models themselves, and caches with a past that was never computed.

Shapes: B batch rows, T tokens, L tokens of the past, C rank of the key-value latent, Dr rotated width of a key.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import DynamicCache, LongcatFlashConfig, LongcatFlashForCausalLM
from transformers.cache_utils import Cache

from modeling_longcat_lite import (
    LongCatLiteConfig,
    LongCatLiteDynamicCache,
    LongCatLiteForCausalLM,
    LongCatLiteStaticCache,
)
from tokenization.number_options import check_number

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EXPERTS = ("grouped_mm", "batched_mm", "eager")
COMPILABLE_EXPERTS = EXPERTS[:2]  # the plain loop asks which experts were selected, which breaks a graph
FIRST_PLAIN_TOKEN = 4  # the ids before it are special tokens


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; the defaults are those of `eval.speed.generation`.

    The last three fields are used by our model only: the one in transformers has no n-gram embedding.
    """

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

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


# The model that `training.demo` trains.
DEMO = Shape(
    vocab_size=2048,
    hidden_size=192,
    num_layers=2,
    num_attention_heads=4,
    ffn_hidden_size=384,
    expert_ffn_hidden_size=96,
    q_lora_rank=96,
    qk_nope_head_dim=16,
    n_routed_experts=4,
    zero_expert_num=2,
    moe_topk=2,
    max_position_embeddings=2048,
    emb_split_num=2,
    ngram_vocab_size_ratio=5.37,
)
# Table rows of 512 bytes in 12 sub-tables, as released, with a backbone of one layer.
RELEASED_ROWS = Shape(
    hidden_size=3072,
    num_layers=1,
    ffn_hidden_size=1024,
    expert_ffn_hidden_size=256,
    q_lora_rank=256,
    kv_lora_rank=128,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    n_routed_experts=8,
    zero_expert_num=4,
)

# The option of commands that measure a `Shape`.
SHAPE_OPTION: dict[str, Any] = {
    "nargs": "+",
    "default": [],
    "metavar": "FIELD=VALUE",
    "help": f"fields of the model's shape to change: {', '.join(asdict(Shape()))}",
}


def parse_shape(changes: list[str], base: Shape) -> Shape:
    """`base` with the changes of `--shape`, for example `["hidden_size=768"]`.

    Raises:
        `ValueError`: naming a field that a shape does not have, or one whose value is not a number in its range.
    """
    kinds = {name: type(value) for name, value in asdict(base).items()}
    values = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in kinds:
            raise ValueError(f"`--shape` has no field `{name}`; its fields are {', '.join(kinds)}")
        try:
            values[name] = kinds[name](text)
        except ValueError:
            kind = "a whole number" if kinds[name] is int else "a number"
            raise ValueError(f"`--shape {name}` is `{text}`, but must be {kind}: write `{name}=VALUE`") from None
        least, above = (0, None) if name == "zero_expert_num" else (None, 0)
        check_number(f"--shape {name}", values[name], least=least, above=above)
    return replace(base, **values)


@dataclass(frozen=True)
class Models:
    """Ours, once per implementation of the routed experts (switching one model would be timed too), and theirs."""

    ours: dict[str, LongCatLiteForCausalLM]
    theirs: LongcatFlashForCausalLM
    shape: Shape
    dtype: str


def build_models(shape: Shape, dtype: str, seed: int) -> Models:
    """Random weights, loaded from a checkpoint as users do: some weights stay in float32 whatever `dtype` is."""
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


def random_tokens(vocab_size: int, batch: int, length: int) -> torch.Tensor:
    """`[B, T]` tokens, none of them special."""
    return torch.randint(FIRST_PLAIN_TOKEN, vocab_size, (batch, length))


def filled(cache: Cache, config, tokens: torch.Tensor, dtype: torch.dtype) -> Cache:
    """`cache` with random latents for `tokens` `[B, L]`: attending to them costs the same, making them nothing."""
    if isinstance(cache, LongCatLiteDynamicCache | LongCatLiteStaticCache):
        cache.append_tokens(tokens, config.max_ngram_order - 1)
    batch, past = tokens.shape
    for sublayer in range(config.num_hidden_layers):
        latent = torch.randn(batch, 1, past, config.kv_lora_rank).to(dtype)  # [B, 1, L, C]
        rotated_key = torch.randn(batch, 1, past, config.qk_rope_head_dim).to(dtype)  # [B, 1, L, Dr]
        cache.update(latent, rotated_key, sublayer)
    return cache


def decode_step(forward: Callable, cache: Cache, token: torch.Tensor) -> Callable[[], object]:
    """A forward of one token a row. Each call adds that token to the cache."""
    return lambda: forward(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)


def our_decode_step(
    model: LongCatLiteForCausalLM, tokens: torch.Tensor, capacity: int | None = None
) -> Callable[[], object]:
    """Our decode step after the context `tokens` `[B, L]`.

    With a `capacity`, the forward is compiled and its static cache has room for that many tokens; otherwise the cache
    grows.
    """
    cache: Cache
    if capacity is None:
        cache, forward = LongCatLiteDynamicCache(config=model.config), model.forward
    else:
        cache = LongCatLiteStaticCache(config=model.config, max_cache_len=capacity)
        forward = torch.compile(model.forward, fullgraph=True, dynamic=False)
    return decode_step(forward, filled(cache, model.config, tokens, model.dtype), tokens[:, -1:].clone())


def their_decode_step(model: LongcatFlashForCausalLM, tokens: torch.Tensor) -> Callable[[], object]:
    """The same for transformers' model, which has one experts implementation and does not compile as one graph."""
    cache = filled(DynamicCache(config=model.config), model.config, tokens, model.dtype)
    return decode_step(model.forward, cache, tokens[:, -1:].clone())


def no_compiler_reason() -> str | None:
    """Why nothing can be compiled here; `None` where it can."""
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"no C++ compiler: `{compiler}` is not on the path"


__all__ = [
    "COMPILABLE_EXPERTS",
    "DEMO",
    "DTYPES",
    "EXPERTS",
    "FIRST_PLAIN_TOKEN",
    "RELEASED_ROWS",
    "SHAPE_OPTION",
    "Models",
    "Shape",
    "build_models",
    "filled",
    "no_compiler_reason",
    "our_decode_step",
    "parse_shape",
    "random_tokens",
    "their_decode_step",
]
