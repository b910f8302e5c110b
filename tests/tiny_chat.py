# SPDX-License-Identifier: Apache-2.0
"""A tiny untrained chat model with its tokenizer and a data set, for tests of the training scripts."""

import json
from pathlib import Path

import torch
from conftest import tiny_config

from modeling_longcat_lite import LongCatLiteForCausalLM
from tokenization.train_tokenizer import train_tokenizer

ANSWERS = ("Return the length.", "Join the strings.", "Print to the standard stream.", "Sort the list in place.")
# Widths of a model that 4-bit kernels take: multiples of 64.
WIDTHS_OF_64 = {
    "hidden_size": 192,
    "ffn_hidden_size": 128,
    "expert_ffn_hidden_size": 64,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
}


def chat_rows(count: int) -> list[dict]:
    """Rows of one question and one answer."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What does function {index} do?"},
                {"role": "assistant", "content": ANSWERS[index % len(ANSWERS)]},
            ]
        }
        for index in range(count)
    ]


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write rows as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_tiny_chat(folder: Path, train_rows: int = 16, **overrides) -> Path:
    """Fill `folder` with `model` (weights and tokenizer) and `data` (train and test rows)."""
    tokenizer = train_tokenizer([*ANSWERS, "What does function do?"], vocab_size=280, model_max_length=256)
    torch.manual_seed(0)
    config = tiny_config(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **overrides,
    )
    LongCatLiteForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_rows(folder / "data" / "train.jsonl", chat_rows(train_rows))
    write_rows(folder / "data" / "test.jsonl", chat_rows(4))
    return folder
