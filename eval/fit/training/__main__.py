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

# Tables in host memory, layers sharded; results as JSON, Markdown and a picture
```bash
python -m eval.fit.training --recipe sft_full --gpus 8 --gpu-memory 80GB --shard fsdp2 --ngram-tables host \
    --output outputs/plan
```

Nothing is allocated and no GPU is needed: a step of the recipe runs on tensors without memory. That takes half a
minute for the released model, and as long again to find changes that fit. The exit status is 0 if it fits, else 1.
"""

import argparse

from eval.fit.training.recipe import SHARDS, TABLES, TRAIN_TABLES, TRAINERS
from eval.reports.units import parse_size
from tokenization.command_line import CommandParser, run_command


def read_config(model: str | None):
    """The config of a folder, of a config.json or of a name on the Hub; the released one by default."""
    from modeling_longcat_lite import LongCatLiteConfig

    try:
        return LongCatLiteConfig.from_pretrained(model) if model else LongCatLiteConfig()
    except OSError as error:
        raise ValueError(f"`--model` {model!r} has no config.json: {error}") from error


def main(arguments: argparse.Namespace) -> int:
    """Prints the plan; returns 0 if it fits, else 1."""
    from rich.console import Console

    from eval.fit.training.changes import changes_that_fit
    from eval.fit.training.memory import plan_memory
    from eval.fit.training.recipe import find_recipe, read_setup
    from eval.fit.training.report import show, write

    limit = parse_size(arguments.gpu_memory, "--gpu-memory")
    recipe = find_recipe(arguments.recipe)
    setup = read_setup(
        recipe,
        gpus=arguments.gpus,
        shard=arguments.shard or ("fsdp2" if arguments.gpus > 1 else "none"),
        tables=arguments.ngram_tables,
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
        paths = write(arguments.output, recipe.stem, plan, limit, changes)
        console.print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)
    return 0 if plan.total <= limit else 1


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.fit.training", "Memory of a GPU by part, and whether a training recipe fits.")
    add = parser.add_argument
    add("--recipe", required=True, help="YAML file, or the name of one in training/recipes")
    add("--gpus", type=int, default=1, help="GPUs that train together")
    add("--gpu-memory", metavar="SIZE", required=True, help="of each GPU: 80GB is 80 * 10^9 bytes, 80GiB 80 * 2^30")
    add("--shard", choices=SHARDS, help="how weights are split; fsdp2 for several GPUs if left out")
    add("--context-parallel", type=int, help="GPUs that each row is split over; 1 if left out")
    where = "where the n-gram tables are; as the recipe says if left out"
    parser.add_shared("--ngram-tables", choices=TABLES, default=None, help=where)
    parser.add_renamed("--tables", "--ngram-tables")
    trains = (
        "whether tables are frozen, trained like other weights, or trained by rows; told from the recipe if left out"
    )
    add("--train-tables", choices=TRAIN_TABLES, help=trains)
    add("--trainer", choices=TRAINERS, help="told from the recipe's keys if left out")
    parser.add_shared("--model", help="folder, config.json or name on the Hub; the released model if left out")
    parser.add_shared("--output", help="folder for JSON, Markdown and PNG; nothing is written if left out")
    return parser


if __name__ == "__main__":
    # As with `grep`, 1 is an answer and 2 a failure.
    run_command(lambda: main(make_parser().parse_args()))
