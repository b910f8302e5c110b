# SPDX-License-Identifier: Apache-2.0
"""A saved model as lm-eval takes it: loaded by this package, so that tables may lie where `ngram_tables` says.

lm-eval's `HFLM` does the rest. Scoring pads to the right without a mask, which a causal model does not see; generation
pads to the left with a mask, behind which the n-gram history begins. So no answer depends on the batch.
"""

import logging
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM

from eval.checkpoints import load
from eval.losses.text import longest_window
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM


class LongCatLiteLM(HFLM):
    """`HFLM`, less the progress bar that it draws for every batch of rolling windows."""

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        return super()._loglikelihood_tokens(
            requests, disable_tqdm=disable_tqdm or override_bs is not None, override_bs=override_bs
        )


def load_tokenizer(folder: Path):
    """The tokenizer saved in `folder`, whose tokens the model there has."""
    return load.load_tokenizer(str(folder), LongCatLiteConfig.from_pretrained(folder))


def load_model(
    folder: Path, batch_size: int, device: str = "auto", dtype: str = "auto", ngram_tables: str = "resident"
) -> LongCatLiteLM:
    """Load a model for lm-eval.

    Args:
        folder (`Path`): A saved model with its tokenizer.
        batch_size (`int`): Sequences a forward.
        device (`str`): `cpu`, `cuda`, `cuda:1`, ...; `auto` spreads the model over all accelerators, if there are any.
        dtype (`str`): `bfloat16`, `float32`, or `auto` for that of the file.
        ngram_tables (`str`): `resident`, `host` or `disk`.
    """
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    model = LongCatLiteForCausalLM.from_pretrained(
        folder, dtype=dtype, ngram_tables=ngram_tables, device_map=None if on_cpu else device
    ).eval()
    lm = LongCatLiteLM(
        pretrained=model,
        backend="causal",
        tokenizer=load_tokenizer(folder),
        batch_size=batch_size,
        max_length=longest_window(model.config),
        softmax_dtype="float32",  # log-likelihoods in bfloat16 are too coarse to compare
    )
    # Quiet until here, where it warns that it was given a model; from here on it tells of prompts that it cuts.
    logging.getLogger(HFLM.__module__).setLevel(logging.WARNING)
    return lm


__all__ = ["LongCatLiteLM", "load_model", "load_tokenizer"]
