# SPDX-License-Identifier: Apache-2.0
"""What a few rows of a checkpoint's tables, and its small tensors, show about their values.

Rows are read in blocks of 8, with the first and the last of each table; on the Hub, a block is one request.

Shapes: E routed experts, Z zero experts, W width of a table row.
"""

from collections.abc import Sequence
from typing import Any

import torch

from eval.checkpoints.files import StoredRows
from eval.checkpoints.problems import Problem
from modeling_longcat_lite import LongCatLiteConfig
from modeling_longcat_lite.checkpoint_names import is_ngram_table

BLOCK = 8  # rows read at a time
WORDS, DRAFT_WORDS = "model.embed_tokens.weight", "model.mtp.embed_tokens.weight"
LATENT_NORMS = ("q_a_layernorm", "kv_a_layernorm")


def blocks_of(rows: int, count: int, wanted: Sequence[int]) -> list[tuple[int, int]]:
    """Blocks with about `count` of `rows` rows, among them `wanted` and the last ones: first row and number."""
    firsts = {0, max(rows - BLOCK, 0), *(row // BLOCK * BLOCK for row in wanted if row < rows)}
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, max(rows // BLOCK, 1), (count // BLOCK,), generator=generator) * BLOCK
    for first in drawn.tolist():
        if len(firsts) * BLOCK < count:
            firsts.add(first)
    return [(first, min(BLOCK, rows - first)) for first in sorted(firsts)]


def read_sample(stored: StoredRows, name: str, count: int, wanted: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampled row ids `[n]`, and their rows `[n, W]` in float32."""
    blocks = blocks_of(stored.rows(name), count, wanted)
    ids = torch.cat([torch.arange(first, first + length) for first, length in blocks])
    rows = torch.cat([stored.read(name, first, length).float() for first, length in blocks])
    return ids, rows


def describe_table(name: str, ids: torch.Tensor, rows: torch.Tensor, pad: int | None) -> dict[str, Any]:
    """Facts about the sampled rows of a table."""
    is_zero = (rows == 0).all(dim=1)
    pad_rows = is_zero[ids == pad] if pad is not None else is_zero[:0]
    finite = rows.isfinite().all(dim=1)
    return {
        "tensor": name,
        "rows": len(ids),
        "zero_rows": int(is_zero.sum()),
        "not_finite_rows": ids[~finite].tolist(),
        "row_of_pad_is_zero": bool(pad_rows.all()) if len(pad_rows) else None,
        "mean_norm": float(rows[finite].norm(dim=1).mean()) if finite.any() else None,
    }


def table_problems(table: dict[str, Any], file: str) -> list[Problem]:
    """Values that no trained table has."""
    where, problems = f"`{table['tensor']}`", []
    if bad := table["not_finite_rows"]:
        found = f"NaN or infinity in {len(bad)} of {table['rows']} sampled rows, first {bad[0]}"
        problems.append(
            Problem(file, where, "finite numbers", found, "Download the file again, or train from before.")
        )
    if table["zero_rows"] == table["rows"]:
        fix = "Download the file again: its data is blank."
        problems.append(Problem(file, where, "trained rows", f"{table['rows']} sampled rows, all zero", fix))
    return problems


def sampled_tables(
    stored: StoredRows, config: LongCatLiteConfig, count: int, names: Sequence[str]
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Samples of the tables `names`, and what is wrong with them."""
    described, problems = [], []
    pad = config.pad_token_id
    for name in names:
        ids, rows = read_sample(stored, name, count, [] if pad is None else [pad])
        described.append(describe_table(name, ids, rows, pad))
        problems += table_problems(described[-1], stored.places[name][0])
    return described, problems


def table_names(stored: StoredRows) -> list[str]:
    """Tables that can be sampled: words, n-grams, the draft head's words, the language-model head."""
    others = ("embed_tokens.weight", "lm_head.weight")
    tables = [name for name, (_, tensor) in stored.places.items() if len(tensor.shape) == 2 and name in stored]
    return [name for name in tables if is_ngram_table(name) or name.endswith(others)]


def draft_words(stored: StoredRows, count: int) -> float | None:
    """Share of sampled rows that are equal in the draft head's word table and the model's; `None` without both."""
    if WORDS not in stored or DRAFT_WORDS not in stored or stored.rows(WORDS) != stored.rows(DRAFT_WORDS):
        return None
    (_, own), (_, model) = (read_sample(stored, name, count, []) for name in (DRAFT_WORDS, WORDS))
    return float((own == model).all(dim=1).float().mean())


def router_biases(stored: StoredRows, config: LongCatLiteConfig) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Selection biases of every layer, read whole: `[E + Z]` each."""
    described, problems = [], []
    for layer in range(config.num_layers):
        name = f"model.layers.{layer}.mlp.router.e_score_correction_bias"
        if name not in stored:
            continue
        file, place = stored.places[name]
        bias = stored.read(name, 0, stored.rows(name)).float()
        zero_experts = bias[config.n_routed_experts :]
        described.append(
            {
                "layer": layer,
                "dtype": place.dtype,
                "min": float(bias.min()),
                "max": float(bias.max()),
                "zero_experts_all_zero": bool((zero_experts == 0).all()),
            }
        )
        if not bias.isfinite().all():
            problems.append(Problem(file, f"`{name}`", "finite numbers", "NaN or infinity", "Download it again."))
    return described, problems


def latent_norms(stored: StoredRows, config: LongCatLiteConfig) -> list[dict[str, Any]]:
    """Mean weights of the latent norms in the first, a middle and the last layer, and the factor applied after them.

    A mean near the factor would mean that the released weights contain it already.
    """
    factors = {"q_a_layernorm": config.q_lora_rank, "kv_a_layernorm": config.kv_lora_rank}
    described = []
    for layer in sorted({0, config.num_layers // 2, config.num_layers - 1}):
        for norm in LATENT_NORMS:
            name = f"model.layers.{layer}.self_attn.0.{norm}.weight"
            if name in stored:
                weight = stored.read(name, 0, stored.rows(name)).float()
                factor = (config.hidden_size / factors[norm]) ** 0.5
                described.append(
                    {"layer": layer, "norm": norm, "mean_weight": float(weight.mean()), "factor": round(factor, 4)}
                )
    return described


__all__ = ["draft_words", "latent_norms", "router_biases", "sampled_tables", "table_names"]
