# SPDX-License-Identifier: Apache-2.0
"""
# Memory of a GPU by part, and whether a recipe fits, before a machine is rented
```bash
python -m eval.fit.training --recipe sft_lora --gpus 8 --gpu-memory 80GB
```

# Rows split over the 8 GPUs of a node
```bash
python -m eval.fit.training --recipe yarn_256k --gpus 64 --gpu-memory 80GB --context-parallel 8
```

# Tables in host memory, layers sharded; JSON, Markdown and a picture beside
```bash
python -m eval.fit.training --recipe sft_full --gpus 8 --gpu-memory 80GB --shard fsdp2 --tables host \
    --output outputs/plan
```

The model is the released one unless `--model` names a folder or a config.json. Nothing is allocated and no GPU is
needed: a step of the recipe runs on tensors without memory, half a minute for the released model, and as long again to
find what would fit where it does not. The exit status is 0 if it fits.
"""

import argparse
import re
from pathlib import Path

from eval.fit.training.recipe import SHARDS, TABLES, TRAINERS

UNITS = {"gb": 10**9, "gib": 2**30, "mb": 10**6, "mib": 2**20}


def read_memory(text: str) -> float:
    """Bytes of `80GB` or `141 GiB`.

    Raises:
        `ValueError`: when the text is no size above zero.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    if found is None or found[2] not in UNITS or float(found[1]) == 0:
        raise ValueError(f"`--gpu-memory` is {text!r}, which is no size: write it as `80GB` (10^9 bytes) or `80GiB`.")
    return float(found[1]) * UNITS[found[2]]


def read_config(model: str | None):
    """The config of a folder, of a config.json, or the released one."""
    from modeling_longcat_lite import LongCatLiteConfig

    if model is None:
        return LongCatLiteConfig()
    path = Path(model)
    if not (path.is_file() or (path / "config.json").is_file()):
        raise ValueError(f"`--model` {model!r} is neither a config.json nor a folder that has one.")
    return LongCatLiteConfig.from_json_file(path if path.is_file() else path / "config.json")


def main(arguments: argparse.Namespace) -> bool:
    """Prints the plan; returns whether it fits."""
    from rich.console import Console

    from eval.fit.training.changes import changes_that_fit
    from eval.fit.training.memory import plan_memory
    from eval.fit.training.recipe import find_recipe, read_setup
    from eval.fit.training.report import show, write

    limit = read_memory(arguments.gpu_memory)
    recipe = find_recipe(arguments.recipe)
    shard = arguments.shard or ("fsdp2" if arguments.gpus > 1 else "none")
    setup = read_setup(
        recipe,
        gpus=arguments.gpus,
        shard=shard,
        tables=arguments.tables,
        train_tables=arguments.train_tables,
        trainer=arguments.trainer,
        context_parallel=arguments.context_parallel,
    )
    config = read_config(arguments.model)
    plan = plan_memory(config, setup)
    changes = changes_that_fit(config, plan, limit) if plan.total > limit else []
    console = Console()
    show(console, recipe.stem, plan, limit, changes)
    if arguments.output is not None:
        for path in write(arguments.output, recipe.stem, plan, limit, changes):
            console.print(f"written: {path}")
    return plan.total <= limit


def make_parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.fit.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", required=True, help="A file, or the name of one in training/recipes.")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that train together.")
    parser.add_argument("--gpu-memory", required=True, help="Memory of one of them: 80GB, 141GB, 24GiB.")
    parser.add_argument("--shard", choices=SHARDS, help="FSDP2 for more than one GPU by default, as DDP keeps copies.")
    parser.add_argument("--context-parallel", type=int, help="GPUs that each row is split over; 1 by default.")
    parser.add_argument("--tables", choices=TABLES, help="Where n-gram tables are; as the recipe says by default.")
    parser.add_argument(
        "--train-tables",
        choices=("none", "dense", "rowwise"),
        help="Frozen, as any other weight, or by rows; by default as any other where they are weights of a full run.",
    )
    parser.add_argument("--trainer", choices=TRAINERS, help="Told from the recipe's keys by default.")
    parser.add_argument("--model", help="A folder or a config.json; the released model by default.")
    parser.add_argument("--output", type=Path, help="Folder for JSON, Markdown and a picture.")
    return parser


if __name__ == "__main__":
    # As `grep` does: 1 is an answer, not a failure.
    raise SystemExit(0 if main(make_parser().parse_args()) else 1)
