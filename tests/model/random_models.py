# SPDX-License-Identifier: Apache-2.0
"""Tiny models for random cases, each in every form that tables can take, and the plain resident model they must equal.

The reference of a form is a model whose tables are resident, in float32, with the values that the form stands for:
packed rows unpacked, and changed rows written in their place.
"""

import copy
import functools
import tempfile
from pathlib import Path

import torch
from conftest import CONFORMANCE, YARN_ROPE, randomize, tiny_config

from modeling_longcat_lite import LongCatLiteForCausalLM, ngram_row_ids, write_hot_rows
from modeling_longcat_lite.ngram_quantization import dequantize_rows, quantize_rows
from modeling_longcat_lite.ngram_row_files import read_row_delta, write_row_delta

# Orders, segment ends, scales and drafts differ; all have a draft head.
MODELS: dict[str, dict] = {
    "four_grams": {},
    "bigrams": {"emb_neighbor_num": 2, "emb_split_num": 3, "num_layers": 1},
    "trigrams": {
        "emb_neighbor_num": 3,
        "ngram_eos_token_id": [2, 5],
        "scale_word_embedding": False,
        "embedding_amplification": "layer_norm",
        "tie_word_embeddings": True,
        "mtp_use_ngram_embedding": True,
    },
    "five_grams_yarn": {
        "emb_neighbor_num": 5,
        "emb_split_num": 3,
        "rope_parameters": dict(YARN_ROPE),
        "mtp_use_ngram_embedding": True,
    },
    "released": {},  # the folder of that name in conformance/
}
PAD = 3


@functools.cache
def folder() -> Path:
    """Where the models lie while the tests run."""
    folder.kept = tempfile.TemporaryDirectory(prefix="random_models_")  # type: ignore[attr-defined]
    return Path(folder.kept.name)  # type: ignore[attr-defined]


@functools.cache
def original(name: str) -> LongCatLiteForCausalLM:
    if name == "released":
        return LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / name, dtype=torch.float32)
    seed = list(MODELS).index(name)
    return randomize(
        LongCatLiteForCausalLM(tiny_config(num_nextn_predict_layers=1, **copy.deepcopy(MODELS[name]))), seed
    ).eval()


@functools.cache
@torch.no_grad()
def saved(name: str, bits: int) -> Path:
    """The folder of a model with tables of 16, 8 or 4 bits."""
    path, model = folder() / f"{name}-{bits}", original(name)
    if bits < 16:
        config = copy.deepcopy(model.config)
        config.ngram_table_bits = bits
        packed = LongCatLiteForCausalLM(config).eval()
        packed.load_state_dict({k: v for k, v in model.state_dict().items() if "embedders" not in k}, strict=False)
        for table, rows in zip(
            packed.model.ngram_embeddings.embedders, model.model.ngram_embeddings.embedders, strict=True
        ):
            table.packed.copy_(quantize_rows(rows.weight, bits))
        model = packed
    model.save_pretrained(path)
    return path


@functools.cache
def delta(name: str) -> Path:
    """Half of the rows of every table, drawn anew."""
    config, path = original(name).config, folder() / f"{name}-delta.safetensors"
    generator, tables = torch.Generator().manual_seed(7), []
    for size in config.subtable_sizes:
        ids = torch.randperm(size, generator=generator)[: size // 2].sort().values
        tables.append((ids, 0.2 * torch.randn(len(ids), config.subtable_width, generator=generator)))
    write_row_delta(path, config, tables, "base")
    return path


@functools.cache
def hot_rows(name: str) -> Path:
    config, path = original(name).config, folder() / f"{name}-hot.safetensors"
    text = torch.randint(config.vocab_size, (1, 400), generator=torch.Generator().manual_seed(5))
    write_hot_rows(path, config, ngram_row_ids(config, text).flatten(1), 40)
    return path


@functools.cache
def loaded(name: str, bits: int, placement: str, has_delta: bool, is_hot: bool) -> LongCatLiteForCausalLM:
    """The model of a case."""
    model = LongCatLiteForCausalLM.from_pretrained(saved(name, bits), ngram_tables=placement, dtype=torch.float32)
    if has_delta:
        model.load_ngram_rows(delta(name))
    if is_hot:
        model.keep_ngram_rows(hot_rows(name))
    return model


@functools.cache
@torch.no_grad()
def reference_model(name: str, bits: int, has_delta: bool) -> LongCatLiteForCausalLM:
    """What a form must equal: resident tables of plain float32 numbers."""
    model = copy.deepcopy(original(name))
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    changed = read_row_delta(delta(name), model.config) if has_delta else None
    for i, table in enumerate(model.model.ngram_embeddings.embedders):
        if bits < 16:
            table.weight.copy_(dequantize_rows(quantize_rows(table.weight, bits), bits, torch.float32))
        if changed is not None:
            table.weight[changed[i][0]] = changed[i][1]
    return model


@functools.cache
def assistant(vocab_size: int) -> LongCatLiteForCausalLM:
    """Another model of the same vocabulary, of another n-gram order."""
    config = tiny_config(vocab_size=vocab_size, num_layers=1, emb_neighbor_num=2, emb_split_num=3)
    return randomize(LongCatLiteForCausalLM(config), seed=11).eval()
