# SPDX-License-Identifier: Apache-2.0
"""What does not fit in a checkpoint: files, index, names, shapes, dtypes, against what a model of its config needs.

The model is made on the meta device and its tensors are brought to released names: what is compared is what loading
would ask for. No weight is read.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from eval.checkpoints.files import CheckpointFiles
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.checkpoint_files import SAVE_ID, WHOLE_FILE, check_same_save, read_weights
from modeling_longcat_lite.checkpoint_header import FLOAT_DTYPES, StoredTensor
from modeling_longcat_lite.checkpoint_layout import of_another_format

OPTIONAL = ("model.embedding_amplification.norm.",)
INDEXER = ".indexer."
SCALES = "_scale_inv"
NO_FLOATS = {torch.uint8: "U8"}  # packed tables
FP8 = "F8_E4M3"
OE_NAMES = {"oe_embed_tokens": "ngram_embeddings.embedders.", "oe_embed_proj": "ngram_embeddings.post_projs."}


@dataclass(frozen=True)
class Problem:
    """Something that does not fit. `count`: how many things of this kind, of which `where` is the first."""

    file: str
    where: str  # tensor, field or token
    expected: str
    found: str
    fix: str
    count: int = 1


@dataclass(frozen=True)
class Headers:
    """All tensors of a checkpoint, by the name in the file, with their file."""

    places: dict[str, tuple[str, StoredTensor]]
    problems: list[Problem]


def released_name(name: str) -> str:
    """The released layout's name for a tensor that LongCat-Flash-Lite-Sparse or LongCat-2.0 calls otherwise."""
    for other, own in OE_NAMES.items():
        name = name.replace(other, own)
    return name


def read_headers(files: CheckpointFiles) -> Headers:
    """Headers of all weight files; what is cut off, missing or elsewhere than the index says."""
    names, weight_map = files.weight_files()
    weights = read_weights(names, weight_map, files.header)
    problems = [Problem(*fault) for fault in weights.faults]
    if weight_map and not problems:
        ids = {name: files.metadata[name].get(SAVE_ID) for name in names}
        try:
            check_same_save(ids, files.read_json(SAFE_WEIGHTS_INDEX_NAME)["metadata"])
        except ValueError as error:
            problems.append(Problem("-", WHOLE_FILE, "shards of one save", str(error), "Copy all shards again."))
    return Headers(weights.places, problems)


def needed_tensors(config: LongCatLiteConfig, has_draft_head: bool) -> dict[str, torch.Tensor]:
    """Every tensor of the released layout that a model of `config` needs, on the meta device."""
    with torch.device("meta"):
        model = LongCatLiteForCausalLM(config, has_draft_head=has_draft_head)
    needed = revert_weight_conversion(model, model.state_dict())
    return {name: tensor for name, tensor in needed.items() if name not in model.all_tied_weights_keys}


def tensor_problems(config: LongCatLiteConfig, headers: Headers) -> list[Problem]:
    """Names, shapes and dtypes that a model of `config` does not ask for, or asks for in vain."""
    found = {released_name(name): (name, *place) for name, place in headers.places.items()}
    is_fp8 = (getattr(config, "quantization_config", None) or {}).get("quant_method") == "fp8"
    has_draft_head = any(name.startswith("model.mtp.") for name in found)
    needed = needed_tensors(config, has_draft_head)
    unreadable = any(problem.where == WHOLE_FILE for problem in headers.problems)
    problems = []
    for name, tensor in needed.items():
        shape = list(tensor.shape)
        if name not in found:
            if not unreadable and not name.startswith(OPTIONAL):
                fix = "The shard that held it was not downloaded, or the config asks for more than was trained."
                problems.append(Problem("-", f"`{name}`", str(shape), "no such tensor", fix))
            continue
        own_name, file, stored = found[name]
        if list(stored.shape) != shape:
            fix = f"Correct {likely_field(name)} in config.json, or take the config of this checkpoint."
            problems.append(Problem(file, f"`{own_name}`", str(shape), str(list(stored.shape)), fix))
        if stored.dtype not in (dtypes := dtypes_of(name, tensor.dtype, is_fp8)):
            fix = "Take the file from the original repository: the conversion rounded it."
            problems.append(Problem(file, f"`{own_name}`", " or ".join(dtypes), stored.dtype, fix))
        if is_fp8 and stored.dtype == FP8:
            problems += scale_problems(config, found, name)
    for name, others in of_another_format(headers.places).items():
        file, stored = headers.places[name]
        fix = "Take the file from the original repository, or convert it to one 16-bit format."
        problems.append(Problem(file, f"`{name}`", f"{others}, as the other tensors", stored.dtype, fix))
    for name, (own_name, file, _) in found.items():
        belongs = name in needed or INDEXER in name or (is_fp8 and name.removesuffix(SCALES) in needed)
        if not belongs and not (name.startswith("model.mtp.") and config.num_nextn_predict_layers == 0):
            fix = "Correct config.json if it asks for too little; otherwise remove the tensor."
            problems.append(Problem(file, f"`{own_name}`", "no such tensor", "a tensor", fix))
    return problems


def scale_problems(config: LongCatLiteConfig, found: Mapping[str, tuple], name: str) -> list[Problem]:
    """What is wrong with the scales of an FP8 weight, one a block."""
    block = config.quantization_config.get("weight_block_size") or [128, 128]
    _, file, weight = found[name]
    grid = [-(-size // of_block) for size, of_block in zip(weight.shape, block, strict=False)]
    _, _, scales = found.get(name + SCALES, (None, None, None))
    if scales is not None and list(scales.shape) == grid:
        return []
    there = "no such tensor" if scales is None else str(list(scales.shape))
    fix = "Correct `weight_block_size` in `quantization_config`, or take the file from the original repository."
    return [Problem(file, f"`{name}{SCALES}`", str(grid), there, fix)]


def dtypes_of(name: str, dtype: torch.dtype, is_fp8: bool) -> tuple[str, ...]:
    """What a tensor may be stored as. The router is float32 in the released files: its choices hang on it."""
    if not dtype.is_floating_point:
        return (NO_FLOATS[dtype],)
    if ".router." in name:
        return ("F32",)
    return (*FLOAT_DTYPES, FP8) if is_fp8 and name.endswith("_proj.weight") else tuple(FLOAT_DTYPES)


def likely_field(name: str) -> str:
    """The fields that a tensor's shape comes from."""
    for part, fields in {
        ".embedders.": "`ngram_vocab_size_ratio`, `ngram_base_vocab_size`, `emb_neighbor_num` or `emb_split_num`",
        ".post_projs.": "`emb_neighbor_num` or `emb_split_num`",
        ".experts.": "`expert_ffn_hidden_size`",
        ".router.": "`n_routed_experts` or `zero_expert_num`",
        "embed_tokens": "`vocab_size` or `hidden_size`",
        "lm_head": "`vocab_size` or `hidden_size`",
        ".q_": "`q_lora_rank`, `num_attention_heads`, `qk_nope_head_dim` or `qk_rope_head_dim`",
        ".kv_": "`kv_lora_rank`, `num_attention_heads`, `qk_nope_head_dim`, `qk_rope_head_dim` or `v_head_dim`",
        ".o_proj": "`num_attention_heads` or `v_head_dim`",
        ".mlp": "`ffn_hidden_size`",
    }.items():
        if part in name:
            return fields
    return "`hidden_size`"


def grouped(problems: Iterable[Problem]) -> list[Problem]:
    """One of each kind, with how many there are: numbers in names, shapes and files aside."""
    kinds: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        kind = tuple(re.sub(r"\d+", "*", text) for text in (problem.where, problem.expected, problem.found))
        kinds.setdefault(kind, []).append(problem)
    return [
        Problem(one.file, one.where, one.expected, one.found, one.fix, sum(each.count for each in alike))
        for alike in kinds.values()
        for one in alike[:1]
    ]


def dtype_counts(places: Mapping[str, tuple[str, StoredTensor]]) -> dict[str, int]:
    """Tensors of each dtype, by the format's names."""
    dtypes = [tensor.dtype for _, tensor in places.values()]
    return {dtype: dtypes.count(dtype) for dtype in sorted(set(dtypes))}


__all__ = [
    "Headers",
    "Problem",
    "dtype_counts",
    "grouped",
    "needed_tensors",
    "read_headers",
    "released_name",
    "tensor_problems",
]
