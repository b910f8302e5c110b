# SPDX-License-Identifier: Apache-2.0
"""What a model really takes, measured in a process of its own; run by `test_fit_memory.py`.

    PYTHONPATH=. python tests/evaluation/fit_measurement.py CHECKPOINT PLACEMENT CONTEXT BATCH CHUNK

Prints JSON: bytes of tensors, and growth of the process's anonymous memory over what it had after a first tiny model
(libraries, thread pools), for the loaded model, and for the peak of a prefill with the cache.
"""

import gc
import json
import sys
import tempfile
from pathlib import Path

import torch
from conftest import randomize, tiny_config

from modeling_longcat_lite import LongCatLiteForCausalLM

DTYPE = torch.float32  # the files are in bfloat16: nothing stays mapped, all is anonymous memory
ROLLUP = Path("/proc/self/smaps_rollup")


def anonymous_bytes() -> int:
    """Anonymous memory of this process that is really there."""
    line = next(line for line in ROLLUP.read_text().splitlines() if line.startswith("Anonymous:"))
    return int(line.split()[1]) * 1024


def forget_peak():
    """Has the kernel count the most resident memory anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_anonymous_bytes() -> int:
    """The most anonymous memory since then: of all resident memory, less the pages of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    most, of_files, shared = (1024 * int(lines[name].split()[0]) for name in ("VmHWM", "RssFile", "RssShmem"))
    return most - of_files - shared


def prefill(model, context: int, batch: int, chunk: int):
    """A prompt of `context` tokens a row, through `generate`; returns the cache."""
    tokens = torch.randint(4, model.config.vocab_size, (batch, context), generator=torch.Generator().manual_seed(0))
    options = {"prefill_chunk_size": chunk} if chunk < context else {}
    with torch.no_grad():
        output = model.generate(
            tokens, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, pad_token_id=3, **options
        )
    return output.past_key_values


def load(folder: str, placement: str):
    return LongCatLiteForCausalLM.from_pretrained(folder, dtype=DTYPE, ngram_tables=placement).eval()


def warm_up(placement: str):
    """Imports, buffers of the libraries and thread stacks, with a model too small to count."""
    with tempfile.TemporaryDirectory() as folder:
        randomize(LongCatLiteForCausalLM(tiny_config())).to(torch.bfloat16).save_pretrained(folder)
        model = load(folder, placement)
        prefill(model, 16, 1, 16)
        prefill(model, 16, 1, 8)


def measure(folder: str, placement: str, context: int, batch: int, chunk: int) -> dict:
    warm_up(placement)
    gc.collect()
    before = anonymous_bytes()
    model = load(folder, placement)
    gc.collect()
    loaded = anonymous_bytes() - before
    forget_peak()
    cache = prefill(model, context, batch, chunk)
    peak = peak_anonymous_bytes() - before
    gc.collect()
    latents = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    tables = model.model.ngram_embeddings.tables
    return {
        "loaded": loaded,
        "peak": peak,
        "weights": sum(t.numel() * t.itemsize for t in [*model.parameters(), *model.buffers()]),
        "tables": sum(rows.numel() for rows in tables.rows) if placement == "host" else 0,
        "cache": sum(t.numel() * t.itemsize for t in [*latents, cache.token_history]),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))))
