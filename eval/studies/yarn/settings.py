# SPDX-License-Identifier: Apache-2.0
"""Sizes of the YaRN study. Nothing heavy is imported: libraries read their environment variables on import."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.demo.model import MODEL as DEMO_MODEL

RECIPE = Path("training/recipes/yarn_demo.yaml")
MODEL: dict[str, Any] = DEMO_MODEL | {
    "hidden_size": 96,
    "num_layers": 1,
    "ffn_hidden_size": 192,
    "expert_ffn_hidden_size": 48,
    "q_lora_rank": 64,
    "kv_lora_rank": 48,
    "v_head_dim": 24,
    "emb_neighbor_num": 2,
    "initializer_range": 0.1,  # about hidden_size ** -0.5; at a fifth of it, attention learns nothing for a long time
}
# Name of a variant: what differs from the recipe's stages.
VARIANTS: dict[str, dict[str, Any]] = {
    "YaRN": {},
    "YaRN, no short mix": {"long_share": 1.0},
    "plain RoPE": {"rope_type": "default"},
}


@dataclass(frozen=True)
class YarnSettings:
    """Sizes of the study.

    Args:
        stages (`Path`): Stages file of the extension, as `training.extend_context` reads it.
        curriculum (`tuple`): (row length in tokens, steps) of the base training; close pairs teach what to look for.
            The last length is the original one.
        tokens_per_step (`int`), learning_rate (`float`): For the base training.
        documents, long_documents, test_documents (`int`): Short and long ones to train on, short ones held out.
        longest (`int`): Words of a long document, and tokens of a row whose loss is measured.
        loss_rows (`int`): Held-out long documents.
        lengths, depths (`tuple`): Row lengths in tokens, and places of a needle as a share of the row.
        needles, distractors (`int`): Rows per length and depth, and further pairs in each.
        seed, vocabulary (`int`): Seed of everything; bytes, special tokens and all words of the documents.
    """

    stages: Path = Path("training/recipes/yarn_demo.stages.yaml")
    curriculum: tuple[tuple[int, int], ...] = ((64, 350), (128, 150), (256, 500))
    tokens_per_step: int = 1024
    learning_rate: float = 4e-3
    documents: int = 3000
    long_documents: int = 240
    test_documents: int = 96
    longest: int = 2048
    loss_rows: int = 32
    lengths: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 0.95)
    needles: int = 16
    distractors: int = 7
    seed: int = 0
    vocabulary: int = 377

    @property
    def original(self) -> int:
        """Tokens of a row that the base model is trained for."""
        return self.curriculum[-1][0]


__all__ = ["MODEL", "RECIPE", "VARIANTS", "YarnSettings"]
