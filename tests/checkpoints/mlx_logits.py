# SPDX-License-Identifier: Apache-2.0
"""Logits of a checkpoint in mlx-lm, for `test_mlx.py`: runs in mlx's own environment, without this package.

.venv-mlx/bin/python tests/checkpoints/mlx_logits.py CHECKPOINT OUTPUT.safetensors --input-ids FILE.safetensors
.venv-mlx/bin/python tests/checkpoints/mlx_logits.py CHECKPOINT OUTPUT.safetensors --question "What does str.join do?"
"""

import argparse
from pathlib import Path

import mlx.core as mx
from mlx_lm import load
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model


def main(arguments: argparse.Namespace) -> None:
    """Writes `input_ids` [B, T], `logits` [B, T, V] of one forward, and `step_by_step`, the same through a cache."""
    mx.set_default_device(mx.cpu)
    if arguments.question is None:
        model, _ = load_model(arguments.checkpoint)
        input_ids = mx.load(str(arguments.input_ids))["input_ids"]
    else:
        model, tokenizer = load(str(arguments.checkpoint))
        messages = [{"role": "user", "content": arguments.question}]
        input_ids = mx.array([tokenizer.apply_chat_template(messages, add_generation_prompt=True)])
    cache = make_prompt_cache(model)
    steps = [model(input_ids[:, t : t + 1], cache=cache) for t in range(input_ids.shape[1])]
    logits = {"logits": model(input_ids), "step_by_step": mx.concatenate(steps, axis=1)}
    mx.save_safetensors(str(arguments.output), {"input_ids": input_ids.astype(mx.int64), **logits})


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder")
    parser.add_argument("output", type=Path, help="safetensors file to write")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input-ids", type=Path, help="safetensors file with `input_ids`")
    source.add_argument("--question", help="asked through the tokenizer and chat template of the folder")
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())
