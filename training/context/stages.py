# SPDX-License-Identifier: Apache-2.0
"""The stages of a context extension: a stages file, checked, and the configuration of each stage.

    original_length: 32768          # tokens of a row in the checkpoint's training
    rope_type: yarn                 # or `default`, plain RoPE, for comparison
    short_dataset_name: DIR         # documents of the short mix; by default those of the recipe
    short_loss_tolerance: 0.02      # how much the loss on rows of `original_length` may rise, as a share
    stages:
      - {max_length: 131072, factor: 4, long_share: 0.6, steps: 1000}
      - {max_length: 327680, factor: 10, long_share: 0.6, steps: 1000}

YaRN (arXiv 2309.00071) divides the slow frequencies of RoPE by `factor`, so that `factor * original_length` positions
look like `original_length`. Latent attention needs equal `mscale` and `mscale_all_dim`: cosine and sine then keep
their size, and the softmax scale grows by (0.1 ln factor + 1) ** 2 instead. Both are written as 1, as released.
"""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from modeling_longcat_lite import LongCatLiteConfig
from tokenization.number_options import check_number

ROPE_TYPES = ("yarn", "default")


@dataclass(frozen=True)
class Stage:
    """Rows of `max_length` tokens under YaRN with `factor`; `long_share` of the tokens are in such rows, the others in
    rows of the original length."""

    max_length: int
    factor: float
    long_share: float
    steps: int


@dataclass(frozen=True)
class Stages:
    """A stages file."""

    original_length: int
    stages: tuple[Stage, ...]
    rope_type: str = "yarn"
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    max_position_embeddings: int | None = None  # by default the largest factor times the original length
    short_dataset_name: str | None = None
    short_loss_tolerance: float = 0.02
    stop_when_short_loss_rises: bool = True

    @property
    def longest(self) -> int:
        """`max_position_embeddings` of the last stage's checkpoint."""
        largest = max(stage.factor for stage in self.stages)
        return self.max_position_embeddings or int(largest * self.original_length)


def read_stages(path: str | Path) -> Stages:
    """Read and check a stages file.

    Raises:
        `ValueError`: naming the file, the field and a right value.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`stages`: {path}: no such file")
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        given = fields_of(Stages, written, "")
        if not isinstance(given["stages"], list) or not given["stages"]:
            raise ValueError("`stages` must be a list with at least one stage")
        each = [Stage(**fields_of(Stage, stage, f"stages[{i}].")) for i, stage in enumerate(given["stages"])]
        stages = Stages(**given | {"stages": tuple(each)})
        check_stages(stages)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return stages


def fields_of(kind: type, written: Any, prefix: str) -> dict[str, Any]:
    """The fields of a mapping, checked: all are known, none is missing, and numbers are numbers."""
    if not isinstance(written, dict):
        raise ValueError(f"`{prefix.rstrip('.') or 'the file'}` must be a mapping, got {written!r}")
    known: Any = {field.name: field for field in fields(kind)}
    unknown = sorted(map(str, written.keys() - known.keys()))
    if unknown:
        raise ValueError(f"`{prefix}{unknown[0]}` is unknown; choose from {', '.join(known)}")
    missing = [name for name, field in known.items() if field.default is MISSING and name not in written]
    if missing:
        raise ValueError(f"`{prefix}{missing[0]}` is missing")
    for name, value in written.items():
        numbers: Any = {int: int, float: (int, float), int | None: int}.get(known[name].type)
        absent = value is None and known[name].default is None
        if numbers and not absent and (isinstance(value, bool) or not isinstance(value, numbers)):
            raise ValueError(f"`{prefix}{name}` must be a number, got {value!r} (YAML wants 1.0e-5, not 1e-5)")
    return written


def check_stages(stages: Stages):
    """Raise a `ValueError` for values that are impossible, alone or together."""
    original = stages.original_length
    check_number("original_length", original, least=1)
    check_number("max_position_embeddings", stages.max_position_embeddings, least=1)
    check_number("beta_fast", stages.beta_fast, above=0)
    check_number("beta_slow", stages.beta_slow, above=0)
    check_number("short_loss_tolerance", stages.short_loss_tolerance, least=0)
    if stages.rope_type not in ROPE_TYPES:
        raise ValueError(f"`rope_type` must be one of {', '.join(ROPE_TYPES)}, got {stages.rope_type!r}")
    if not stages.beta_slow < stages.beta_fast:
        raise ValueError(f"`beta_slow` ({stages.beta_slow}) must be below `beta_fast` ({stages.beta_fast})")
    for index, stage in enumerate(stages.stages):
        name = f"stages[{index}]"
        check_number(f"{name}.factor", stage.factor)
        if stage.factor < 1:
            raise ValueError(f"`{name}.factor` must be at least 1, got {stage.factor}")
        check_number(f"{name}.long_share", stage.long_share, least=0, most=1)
        check_number(f"{name}.steps", stage.steps, least=1)
        if stage.factor * original > stages.longest:
            raise ValueError(
                f"`{name}.factor` {stage.factor} times `original_length` {original} is "
                f"{stage.factor * original:.0f}, above `max_position_embeddings` {stages.longest}"
            )
        if stage.max_length > stage.factor * original:
            raise ValueError(
                f"`{name}.max_length` {stage.max_length} is above `factor` times `original_length`, "
                f"{stage.factor} * {original} = {stage.factor * original:.0f}"
            )
        if stage.max_length < original or stage.max_length % original:
            raise ValueError(
                f"`{name}.max_length` {stage.max_length} must be a multiple of `original_length` {original}: a block "
                "of short rows holds as many tokens as a long row"
            )


def check_original_length(config: LongCatLiteConfig, original_length: int):
    """Raise a `ValueError` if the config of a checkpoint states another length than `original_length`."""
    rope = config.rope_parameters
    plain = rope["rope_type"] == "default"
    field = "max_position_embeddings" if plain else "rope_parameters.original_max_position_embeddings"
    stated = config.max_position_embeddings if plain else rope.get("original_max_position_embeddings")
    if stated != original_length:
        raise ValueError(
            f"`original_length` is {original_length}, but the checkpoint's `{field}` is {stated}: give the length "
            "that it was trained at, or correct its config.json"
        )


def stage_config(config: LongCatLiteConfig, stages: Stages, stage: Stage) -> LongCatLiteConfig:
    """The configuration of a stage, for `from_pretrained`: a model fixes its RoPE when it is created."""
    rope: dict[str, Any] = {"rope_type": stages.rope_type, "rope_theta": config.rope_parameters["rope_theta"]}
    if stages.rope_type == "yarn":
        rope |= {
            "factor": float(stage.factor),
            "original_max_position_embeddings": stages.original_length,
            "beta_fast": stages.beta_fast,
            "beta_slow": stages.beta_slow,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        }
    given = config.to_dict() | {"rope_parameters": rope, "max_position_embeddings": stages.longest}
    return type(config).from_dict(given)


__all__ = ["Stage", "Stages", "check_original_length", "check_stages", "read_stages", "stage_config"]
