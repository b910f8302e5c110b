# SPDX-License-Identifier: Apache-2.0
"""The parts of a recipe that decide how much memory training takes.

A recipe is a YAML file of TRL's keys; keys that it leaves out have TRL's defaults. Keys that do not change memory are
ignored. A context extension counts the rows of its longest stage; with context parallelism a GPU has a part of each
row.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

TRAINERS = ("sft", "dpo", "grpo")
TABLES = ("resident", "sharded", "host", "disk")
TRAIN_TABLES = ("none", "dense", "rowwise")
SHARDS = ("none", "fsdp2")
RECIPES = Path(__file__).parents[3] / "training" / "recipes"
PROMPT_LENGTH = 512  # assumed where a recipe bounds only the completion


@dataclass(frozen=True)
class Adapter:
    """Arguments of `peft.LoraConfig`."""

    r: int
    target_modules: tuple[str, ...] | str
    target_parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setup:
    """The settings of a training run that its memory depends on.

    Args:
        rows, length (`int`): Rows that one GPU reads at a time, and tokens per row.
        context_parallel (`int`): GPUs that a row is split over; `length` is the part of one GPU.
        packed (`bool`): Rows hold several documents, separated by their positions.
        accumulates (`bool`): Gradients of several batches are summed before a step.
        bits (`int`): Of the linear layers, 8 or 4 if bitsandbytes packs them.
        has_reference (`bool`): A second copy of the model gives the reference probabilities.
        tables (`str`): `"resident"` on every GPU, `"sharded"` over them by rows, on the `"host"` or on `"disk"`.
        train_tables (`str`): `"none"`, `"dense"` like other weights, or `"rowwise"` with the optimizer for rows.
    """

    trainer: str = "sft"
    rows: int = 8
    length: int = 1024
    packed: bool = False
    accumulates: bool = False
    checkpointing: bool = True
    selective: bool = False
    optimizer: str = "adamw_torch_fused"
    dtype: str = "float32"
    bf16: bool = True
    adapter: Adapter | None = None
    bits: int = 16
    has_reference: bool = False
    tables: str = "resident"
    train_tables: str = "dense"
    gpus: int = 1
    shard: str = "none"
    context_parallel: int = 1

    def __post_init__(self):
        for name, choices in (("trainer", TRAINERS), ("tables", TABLES), ("shard", SHARDS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        if self.gpus < 1:
            raise ValueError(f"`gpus` must be at least 1, got {self.gpus}.")
        if self.context_parallel < 1 or self.gpus % self.context_parallel:
            raise ValueError(
                f"`context_parallel` is {self.context_parallel}: it must divide the {self.gpus} GPUs into groups."
            )
        if self.tables == "sharded" and self.shard != "fsdp2":
            raise ValueError("`--ngram-tables sharded` needs `--shard fsdp2`: nothing else splits a table.")

    @property
    def sharding(self) -> str:
        """For a reader."""
        return "FSDP2" if self.shard == "fsdp2" else "DDP"


def is_recipe(path: Path) -> bool:
    """Whether a file has the name of a trainer's recipe; the folder also has second files and studies."""
    return path.suffix in (".yaml", ".yml") and "." not in path.stem and not path.stem.startswith("study_")


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of one in `training/recipes`.

    Raises:
        `ValueError`: listing all recipes, if there is none of that name.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file() or not is_recipe(path):
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml") if is_recipe(p)))
        raise ValueError(f"`--recipe` {name!r} is neither a recipe's file nor one of {known}.")
    return path


def read_setup(path: Path, **chosen: Any) -> Setup:
    """The setup of a recipe; `chosen` fields of [`Setup`] replace it unless they are `None`.

    Raises:
        `ValueError`: naming the file and the key whose value no run could have.
    """
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(given, dict):
        raise ValueError(f"{path} is not a YAML mapping of keys to values.")
    chosen = {name: value for name, value in chosen.items() if value is not None}
    trainer = chosen.pop("trainer", None) or trainer_of(given)
    values = {**trl_defaults(trainer), **given}
    for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "lora_r"):
        if not isinstance(values[key], int) or values[key] < 1:
            raise ValueError(f"`{key}` in {path} must be an integer of at least 1, got {values[key]!r}.")
    stored = (values.get("model_init_kwargs") or {}).get("ngram_tables", "resident")
    checkpointing = values.get("activation_checkpointing")
    kwargs = values.get("activation_checkpointing_kwargs") or values.get("gradient_checkpointing_kwargs") or {}
    setup = {
        "trainer": trainer,
        "rows": values["per_device_train_batch_size"] * (2 if trainer == "dpo" else 1),
        "length": -(-row_length(values, trainer, path) // max(chosen.get("context_parallel", 1), 1)),
        "packed": bool(values.get("packing")),
        "accumulates": values["gradient_accumulation_steps"] > 1,
        "checkpointing": bool(values["gradient_checkpointing"] if checkpointing is None else checkpointing),
        "selective": bool(kwargs.get("selective")),
        "optimizer": str(values["optim"]),
        "dtype": "bfloat16" if values["dtype"] == "auto" else str(values["dtype"]),
        "bf16": bool(values["bf16"]),
        "adapter": read_adapter(values, path),
        "bits": 4 if values["load_in_4bit"] else 8 if values["load_in_8bit"] else 16,
        "has_reference": needs_reference(values, trainer),
        "tables": stored,
        **chosen,
    }
    if "train_tables" not in chosen:
        # Tables that FSDP leaves out are whole on every GPU, and nothing would keep their copies equal: frozen.
        whole = "sharded" if setup.get("shard") == "fsdp2" else "resident"
        trains = setup["adapter"] is None and setup["tables"] == whole
        setup["train_tables"] = "dense" if trains else "none"
    return Setup(**setup)


def trainer_of(given: dict) -> str:
    """The trainer that a recipe's keys belong to."""
    if not given.keys().isdisjoint({"reward_funcs", "num_generations", "max_completion_length"}):
        return "grpo"
    return "dpo" if "beta" in given else "sft"


def trl_defaults(trainer: str) -> dict[str, Any]:
    """The defaults of all keys of a trainer."""
    from trl import DPOConfig, GRPOConfig, ModelConfig, SFTConfig

    config = {"sft": SFTConfig, "dpo": DPOConfig, "grpo": GRPOConfig}[trainer]
    return {field.name: field.default for kind in (config, ModelConfig) for field in fields(kind)}


def row_length(values: dict, trainer: str, path: Path) -> int:
    """The most tokens of a row."""
    if trainer == "grpo":
        return values["max_completion_length"] + PROMPT_LENGTH
    from training.context.stages import read_stages

    stages = path.with_suffix(".stages.yaml")
    if stages.is_file():
        return max(stage.max_length for stage in read_stages(stages).stages)
    if not isinstance(values["max_length"], int):
        raise ValueError(f"`max_length` in {path} is {values['max_length']!r}: set it, because memory depends on it.")
    return values["max_length"]


def read_adapter(values: dict, path: Path) -> Adapter | None:
    """The adapter of a recipe; `None` if it has none."""
    if not values["use_peft"]:
        return None
    modules, parameters = values["lora_target_modules"], values["lora_target_parameters"]
    if not modules and not parameters:
        raise ValueError(f"{path} has `use_peft`, but neither `lora_target_modules` nor `lora_target_parameters`.")
    if isinstance(modules, list):
        # As in TRL, a single entry may be a regular expression.
        modules = modules[0] if len(modules) == 1 else tuple(modules)
    return Adapter(values["lora_r"], modules or (), tuple(parameters or ()))


def needs_reference(values: dict, trainer: str) -> bool:
    """Whether a second copy of the model is held. With an adapter, the model without it is the reference."""
    if trainer == "sft" or values["use_peft"]:
        return False
    return not values["precompute_ref_log_probs"] if trainer == "dpo" else bool(values["beta"])


__all__ = [
    "PROMPT_LENGTH",
    "SHARDS",
    "TABLES",
    "TRAINERS",
    "Adapter",
    "Setup",
    "find_recipe",
    "is_recipe",
    "read_setup",
]
