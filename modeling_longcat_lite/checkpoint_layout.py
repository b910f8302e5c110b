# SPDX-License-Identifier: Apache-2.0
"""The released checkpoint layout: its tensor names against the parameters of this package.

Reading converts from left to right, writing from right to left, so that a saved checkpoint has the names and shapes
of meituan-longcat/LongCat-Flash-Lite. Names not listed are the same on both sides. The n-gram tensors of
LongCat-Flash-Lite-Sparse and LongCat-2.0 have other names, which are read and never written.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .checkpoint_files import Places, parse_index, with_variant
from .checkpoint_fp8 import FP8
from .checkpoint_header import FLOAT_DTYPES, read_safetensors_header

DRAFT_HEAD_PREFIX = "model.mtp."
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class ReadRenaming(WeightRenaming):
    """A name that is read: saving leaves what it became as it is."""

    __slots__ = ()

    def reverse_transform(self) -> WeightRenaming:
        return WeightRenaming("^$", "")  # no tensor is called so


def checkpoint_conversions() -> list[WeightConverter | WeightRenaming]:
    """The table: released name (`*` any index), this package's name, operation."""
    stack_experts: list[ConversionOps] = [MergeModulelist(dim=0), Concatenate(dim=1)]
    join_projections: list[ConversionOps] = [Concatenate(dim=1, num_shards_attribute="num_subtables")]
    return [
        ReadRenaming(r"oe_embed_tokens(\d+)\.", r"ngram_embeddings.embedders.\1."),
        ReadRenaming(r"oe_embed_proj(\d+)\.", r"ngram_embeddings.post_projs.\1."),
        WeightConverter(
            ["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"],
            "mlp.experts.gate_up_proj",
            operations=stack_experts,
        ),
        WeightConverter(
            "mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", operations=[MergeModulelist(dim=0)]
        ),
        WeightConverter(
            "ngram_embeddings.post_projs.*.weight",
            "ngram_embeddings.post_proj.weight",
            operations=join_projections,
        ),
        WeightRenaming(r"mtp\.layers\.(\d+)\.enorm\.m\.weight", r"mtp.layers.\1.enorm.weight"),
        WeightRenaming(r"mtp\.layers\.(\d+)\.hnorm\.m\.weight", r"mtp.layers.\1.hnorm.weight"),
        WeightRenaming(r"mtp\.layers\.(\d+)\.transformer_layer\.mlp\.", r"mtp.layers.\1.mlp."),
    ]


def register_checkpoint_layout(model_type: str):
    """Makes transformers use the table. Idempotent: remote code is executed more than once per process."""
    register_checkpoint_conversion_mapping(model_type, checkpoint_conversions(), overwrite=True)


def carries_draft_head(
    checkpoint: str | os.PathLike, hub_arguments: Mapping[str, object], variant: str | None = None
) -> bool:
    """Whether a folder or Hub repository holds the `model.mtp.*` tensors; reads the index or one header only.

    Asks the file that is loaded: where there are both, transformers takes the single file.
    """
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        filename = with_variant(name, variant)
        path = cached_file(checkpoint, filename, _raise_exceptions_for_missing_entries=False, **hub_arguments)
        if path is not None:
            return any(name.startswith(DRAFT_HEAD_PREFIX) for name in _tensor_names(path))
    return False


def _tensor_names(path: str) -> list[str]:
    if path.endswith(".json"):
        return list(parse_index(Path(path).read_bytes(), path))
    return list(read_safetensors_header(path)[0])


def oe_name(name: str) -> str:
    """What LongCat-Flash-Lite-Sparse and LongCat-2.0 call a tensor of the released layout."""
    name = name.replace("ngram_embeddings.embedders.", "oe_embed_tokens")
    return name.replace("ngram_embeddings.post_projs.", "oe_embed_proj")


def spelling_of(found: Iterable[str]) -> Callable[[str], str]:
    """How a checkpoint with the names `found` calls a tensor of the released layout."""
    has_oe_names = any(name.removeprefix("model.").startswith("oe_embed_") for name in found)
    return oe_name if has_oe_names else str


def stored_dtypes(tensor: torch.Tensor, is_fp8: bool = False) -> tuple[str, ...]:
    """What a tensor of the model may be stored as, by the names of safetensors; `is_fp8` where scales are read too."""
    if not tensor.is_floating_point():
        return ("U8",)  # packed rows of a table
    return (*FLOAT_DTYPES, "F64", *([FP8] if is_fp8 else []))


def check_dtypes(found: Places, expected: Mapping[str, torch.Tensor], is_fp8: bool = False):
    """Compares dtypes in a checkpoint with those of the model's tensors of the same names.

    Raises:
        `ValueError`: naming the tensor that holds other numbers than weights, or one of two 16-bit formats.
    """
    for name, (path, stored) in found.items():
        if name not in expected:
            continue
        dtypes = stored_dtypes(expected[name], is_fp8)
        if stored.dtype not in dtypes:
            scales = " without a quantizer that reads its scales" if stored.dtype == FP8 else ""
            raise ValueError(
                f"`{name}` in {path} is stored as {stored.dtype}{scales}; it must be {' or '.join(dtypes)}. Take the "
                "file from the original checkpoint."
            )
    for name, others in of_another_format(found).items():
        path, stored = found[name]
        raise ValueError(
            f"`{name}` in {path} is stored as {stored.dtype}, the others as {others}: a checkpoint has one 16-bit "
            "format. Take the file from the original checkpoint, or convert it to one."
        )


def of_another_format(found: Places) -> dict[str, str]:
    """Tensors in the rarer of two 16-bit formats, with the format of the others; tables may have one of their own.

    Bytes of one format are other numbers in the other. A conversion writes one; both are in files whose header is
    damaged.
    """
    rare: dict[str, str] = {}
    for of_tables in (True, False):
        names: dict[str, list[str]] = {"F16": [], "BF16": []}
        for name, (_, stored) in found.items():
            if stored.dtype in names and is_table(name) == of_tables:
                names[stored.dtype].append(name)
        few, many = sorted(names, key=lambda dtype: len(names[dtype]))
        rare |= dict.fromkeys(names[few], many)
    return rare


def is_table(name: str) -> bool:
    """Whether a tensor is an n-gram table, by any of its names."""
    return "ngram_embeddings.embedders." in name or "oe_embed_tokens" in name


def check_against_model(
    found: Places,
    released: Mapping[str, torch.Tensor],
    fused: Mapping[str, torch.Tensor],
    optional: Sequence[str] = (),
    is_fp8: bool = False,
):
    """Compares a checkpoint with what the model needs before a byte of it is loaded.

    Args:
        found: File of every tensor in the checkpoint, and its dtype and shape there.
        released: The model's tensors under released names.
        fused: The model's tensors under this package's names (`save_original_format=False` writes those).
        optional: Tensors that a checkpoint may lack or carry in vain; all of a module where a name ends in a dot.
        is_fp8: Whether weights may be FP8, which are read with scales; those are not in `found`.

    Raises:
        `ValueError`: naming the tensor that is missing, of another shape or dtype, or not part of the model.
    """
    expected = fused if found.keys() & (fused.keys() - released.keys()) else released
    spelled = spelling_of(found)
    modules, names = tuple(name for name in optional if name.endswith(".")), set(optional)

    def is_optional(name: str) -> bool:
        return name in names or name.startswith(modules)

    expected = {spelled(name): tensor for name, tensor in expected.items()}
    for name, tensor in expected.items():
        if name in found:
            path, stored = found[name]
            if tensor.shape != stored.shape:
                raise ValueError(
                    f"`{name}` in {path} has shape {list(stored.shape)}, but the config asks for {list(tensor.shape)}."
                )
        elif not is_optional(name):
            raise ValueError(
                f"The checkpoint has no tensor `{name}` (shape {list(tensor.shape)}), which the model needs."
            )
    for name, (path, _) in found.items():
        if name not in expected and not is_optional(name):
            fix = " `num_nextn_predict_layers=0` loads the rest." if name.startswith(DRAFT_HEAD_PREFIX) else ""
            fix = " Tables of few bits need `ngram_table_bits` 8 or 4." if name.endswith(".packed") else fix
            raise ValueError(
                f"`{name}` in {path} has no place in a model of this config: is a field of it wrong?{fix}"
            )
    check_dtypes(found, expected, is_fp8)


__all__ = [
    "DRAFT_HEAD_PREFIX",
    "HUB_ARGUMENTS",
    "carries_draft_head",
    "check_against_model",
    "check_dtypes",
    "checkpoint_conversions",
    "oe_name",
    "of_another_format",
    "register_checkpoint_layout",
    "spelling_of",
]
