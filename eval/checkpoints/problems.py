# SPDX-License-Identifier: Apache-2.0
"""What does not fit in a checkpoint: files, index, names, shapes, dtypes, compared with the table of the layout.

The same checks as loading makes (`checkpoint_checks.py` of the package), for all tensors instead of up to the first
fault, and stricter about dtypes. No weight is read.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from eval.checkpoints.files import CheckpointFiles
from modeling_longcat_lite import LongCatLiteConfig
from modeling_longcat_lite.checkpoint_checks import layout_faults
from modeling_longcat_lite.checkpoint_files import NO_TENSOR, WHOLE_FILE, Fault, read_weights
from modeling_longcat_lite.checkpoint_header import StoredTensor
from modeling_longcat_lite.experts_quantization import BLOCK


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
    """All tensors of a checkpoint, by their names in the files, and what is wrong with the files."""

    places: dict[str, tuple[str, StoredTensor]]
    problems: list[Problem]


def read_headers(files: CheckpointFiles) -> Headers:
    """Headers of all weight files; what is truncated, missing or elsewhere than the index says."""
    weights = read_weights(files.weight_files(), files.header)
    return Headers(weights.places, [Problem(*fault) for fault in weights.faults])


def tensor_problems(config: LongCatLiteConfig, headers: Headers) -> list[Problem]:
    """Names, shapes and dtypes that do not fit a model of `config`."""
    quantization = vars(config).get("quantization_config") or {}
    block = (quantization.get("weight_block_size") or BLOCK) if quantization.get("quant_method") == "fp8" else None
    faults: Iterable[Fault] = layout_faults(config, headers.places, block, needs_head=True, as_released=True)
    if any(problem.where == WHOLE_FILE for problem in headers.problems):  # it may hold what is missing
        faults = (fault for fault in faults if fault.found != NO_TENSOR)
    return [Problem(*fault) for fault in faults]


def grouped(problems: Iterable[Problem]) -> list[Problem]:
    """One problem of each kind, with their number; kinds do not differ in the numbers of names and shapes."""
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


__all__ = ["Headers", "Problem", "dtype_counts", "grouped", "read_headers", "tensor_problems"]
