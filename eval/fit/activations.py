# SPDX-License-Identifier: Apache-2.0
"""Bytes besides the weights: the cache of latents, and the most that one forward of a prefill holds.

The maximum is taken over the stages of a layer. The tensors of each stage are listed as the code makes them:
`modeling_longcat_lite/` with `sdpa` attention and the grouped experts of transformers (integrations/moe.py).

Shapes: B batch, T tokens of a row in a chunk, D hidden size.
"""

from dataclasses import dataclass

import torch

from modeling_longcat_lite import LongCatLiteConfig

HISTORY_BYTES = 8  # a token code of the history that n-grams need
INDEX_BYTES, FLOAT_BYTES = 8, 4


@dataclass(frozen=True)
class Workload:
    """What the model is asked to do: `context` tokens in each of `batch` rows, read `chunk` at a time.

    `bits` is the row format of the n-gram tables; that of the files if `None`.
    """

    context: int = 32768
    batch: int = 1
    chunk: int = 2048
    bits: int | str | None = None

    @property
    def prefill_tokens(self) -> int:
        """Tokens of a row in one forward."""
        return min(self.chunk, self.context)


def attention_cache_bytes(config: LongCatLiteConfig, run: Workload, dtype: torch.dtype) -> int:
    """Latents and rotated keys of one attention sublayer for all tokens."""
    return run.batch * run.context * (config.kv_lora_rank + config.qk_rope_head_dim) * dtype.itemsize


def history_bytes(config: LongCatLiteConfig, run: Workload) -> int:
    """The token history of the cache, with the N - 1 columns before the sequence."""
    return run.batch * (config.max_ngram_order - 1 + run.context) * HISTORY_BYTES


def cache_bytes(config: LongCatLiteConfig, run: Workload, dtype: torch.dtype) -> int:
    """The whole cache of `generate`."""
    return config.num_hidden_layers * attention_cache_bytes(config, run, dtype) + history_bytes(config, run)


def latents_are_cheaper(config: LongCatLiteConfig, run: Workload) -> bool:
    """Whether the last chunk attends to latents, as `LongCatLiteMLA` decides; the first never does."""
    length, history = run.prefill_tokens, run.context
    in_latents, expanded = attention_products(config, length, history)
    return length != history and in_latents < expanded


def attention_products(config: LongCatLiteConfig, length: int, history: int) -> tuple[int, int]:
    """Multiplications of a head for `length` tokens that see `history`: over latents, and over expanded heads."""
    latent, rotated = config.kv_lora_rank, config.qk_rope_head_dim
    width = config.qk_nope_head_dim + config.v_head_dim
    in_latents = length * (latent * width + history * (2 * latent + rotated))
    return in_latents, history * (latent * width + length * (width + rotated))


def experts_bytes(config: LongCatLiteConfig, tokens: int, itemsize: int) -> int:
    """Grouped experts: for every token and expert that it selects, input and output, and two float32 copies of the
    output, one weighted and one in the order of the tokens."""
    pairs = tokens * config.moe_topk
    states = pairs * config.hidden_size * (2 * itemsize + 2 * FLOAT_BYTES)
    # Sorted ids and two permutations; weights twice; the mask of zero experts. Then the router's logits.
    routing = pairs * (3 * INDEX_BYTES + 2 * FLOAT_BYTES + 1)
    return states + routing + tokens * (config.n_routed_experts + config.zero_expert_num) * FLOAT_BYTES


def attention_bytes(config: LongCatLiteConfig, run: Workload, itemsize: int) -> int:
    """One attention, over expanded heads or over latents, whichever is cheaper, with the mask of the chunk."""
    batch, length, history = run.batch, run.prefill_tokens, run.context
    heads, key_width = config.num_attention_heads, config.qk_head_dim
    query = batch * heads * length * key_width * itemsize
    mask = 0 if length == history else batch * length * history  # explicit, as booleans, after a history
    if latents_are_cheaper(config, run):
        absorbed = 2 * batch * heads * length * config.kv_lora_rank * itemsize
        scores = batch * heads * length * history * (2 * itemsize + FLOAT_BYTES)
        return query + mask + absorbed + scores
    row = batch * heads * history * itemsize
    expanded = row * (config.qk_nope_head_dim + config.v_head_dim)
    keys = values = row * key_width  # values are padded to the width of the keys
    # While values are padded, also the expanded heads; later the kernel's mask in the dtype of the scores, the output
    # and its copy.
    return query + mask + keys + values + max(expanded, itemsize * mask + 2 * query)


def stage_bytes(config: LongCatLiteConfig, run: Workload, dtype: torch.dtype) -> dict[str, int]:
    """Bytes that live in each stage of the last forward of a prefill; the largest is what has to be free."""
    itemsize, tokens = dtype.itemsize, run.batch * run.prefill_tokens
    states = tokens * config.hidden_size * itemsize  # one tensor [B, T, D]
    wide = tokens * config.hidden_size * FLOAT_BYTES
    lookup = 2 * config.num_subtables * tokens * config.subtable_width * itemsize
    return {
        # The n-gram rows, table by table and side by side, and the ids with their intermediates.
        "embedding": states + lookup + 4 * config.num_subtables * tokens * INDEX_BYTES,
        # Word rows, the layer's input, the residual stream and the normalised input live meanwhile.
        "experts": 4 * states + experts_bytes(config, tokens, itemsize),
        # In the second half also the output of the MoE, and the first half's normalised input and output.
        "attention": 7 * states + attention_bytes(config, run, itemsize),
        "dense MLP": 5 * states + 3 * tokens * config.ffn_hidden_size * itemsize,
        "norm": 6 * states + 2 * wide,
        # For the last position only; `generate` copies the logits to float32.
        "language-model head": 3 * states + run.batch * config.vocab_size * (itemsize + FLOAT_BYTES),
    }


def activation_bytes(config: LongCatLiteConfig, run: Workload, dtype: torch.dtype) -> int:
    """The largest stage."""
    return max(stage_bytes(config, run, dtype).values())


def staging_bytes(config: LongCatLiteConfig, run: Workload, row_bytes: int) -> int:
    """Host memory of one gather: every row of a chunk once, and ids, sorted and as they came."""
    return run.batch * run.prefill_tokens * config.num_subtables * (row_bytes + 6 * INDEX_BYTES)


__all__ = [
    "Workload",
    "activation_bytes",
    "attention_cache_bytes",
    "attention_products",
    "cache_bytes",
    "history_bytes",
    "latents_are_cheaper",
    "stage_bytes",
    "staging_bytes",
]
