# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning and pretraining with TRL.

# From a recipe
```bash
python -m training.sft --config training/recipes/demo.yaml
```

# LoRA on your own conversations, a JSON Lines file of {"messages": [...]} rows in a folder
```bash
python -m training.sft \
    --model_name_or_path outputs/demo/package \
    --dataset_name my-conversations \
    --chat_template_path tokenization/chat_template_training.jinja \
    --assistant_only_loss \
    --packing \
    --use_peft \
    --lora_target_modules q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj \
    --output_dir outputs/my-adapter
```

# The draft head together with the trunk (a model without a head gets a new one), then the head alone, trunk frozen
```bash
python -m training.sft --config training/recipes/demo.yaml --draft_loss_weight 0.5 --output_dir outputs/demo-joint
python -m training.sft --config training/recipes/demo.yaml --draft_loss_weight 0.5 --draft_head_only \
    --model_name_or_path outputs/demo-joint --output_dir outputs/demo-draft
```

An option on the command line overrides the recipe. `--longcat_config FILE` reads the options that TRL does not have
from a second file. `--resume_from_checkpoint last` continues after an interruption. `--merge_adapter` also writes the
model with the adapter merged into it. `--push_to_hub` uploads the weights with the model's code. The output folder
holds everything that was logged, as JSON and as a plot.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from tokenization.command_line import run_command
from tokenization.number_options import check_number
from training.routers.arguments import RouterArguments
from training.run.tested_versions import warn_of_untested_versions


@dataclass
class DraftArguments:
    """Training the draft head."""

    draft_loss_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the draft head's loss; 0 leaves the head frozen."},
    )
    draft_head_only: bool = field(
        default=False, metadata={"help": "Train the draft head alone; the trunk does not change."}
    )

    def __post_init__(self):
        check_number("draft_loss_weight", self.draft_loss_weight, least=0)


@dataclass
class TableArguments:
    """Training the n-gram tables."""

    tables: Literal["frozen", "row_sparse", "all"] = field(
        default="all",
        metadata={
            "help": "`frozen`; `row_sparse`: the rows that a step reads, with 8 bytes of state per row, also for "
            "tables on host or disk; `all`: like any other weight, for small tables (on host or disk: frozen)."
        },
    )
    table_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of tables with `row_sparse`; `learning_rate` by default."}
    )

    def __post_init__(self):
        check_number("table_learning_rate", self.table_learning_rate, least=0)


def main(script_args, training_args, model_args, dataset_args, draft_args, table_args, router_args, output_args):
    """Checks the options, trains and saves; returns the trainer."""
    # Registers the architecture with the Auto classes, through which the trainer loads the model.
    import modeling_longcat_lite  # noqa: F401
    from training.data.rows import check_labels
    from training.run.lifecycle import checkpoint_to_resume, train_and_save, trainer_options

    check_arguments(training_args)
    if draft_args.draft_head_only and not draft_args.draft_loss_weight:
        raise ValueError("`draft_head_only` trains nothing without a `draft_loss_weight`")
    if draft_args.draft_head_only and table_args.tables == "row_sparse":
        raise ValueError("`draft_head_only` freezes the trunk, but `tables: row_sparse` trains its tables: drop one")
    checkpoint_to_resume(training_args)  # raises before the model is loaded
    if training_args.assistant_only_loss:
        check_chat_template(training_args, model_args)
    options = trainer_options(script_args, training_args, model_args, dataset_args, "sft")
    trainer = make_trainer_class(draft_args, table_args, router_args)(**options)
    check_labels(trainer.train_dataset, training_args.max_length)
    return train_and_save(trainer, script_args, output_args)


def make_trainer_class(draft_args: DraftArguments, table_args: TableArguments, router_args: RouterArguments) -> Any:
    """An SFT trainer that trains the draft head and the tables as asked, and watches or controls the routers."""
    from training.routers.control import with_router_control
    from training.run.draft_loss import DraftHeadTrainer
    from training.run.trainers import ResumableSFTTrainer
    from training.tables.trainer import TableTrainerMixin

    base: Any = ResumableSFTTrainer
    options = vars(table_args)
    if draft_args.draft_loss_weight:
        base, options = DraftHeadTrainer, options | vars(draft_args)
    trained = type(f"Table{base.__name__}", (TableTrainerMixin, base), {})
    return with_router_control(partial(trained, **options), router_args)


def check_arguments(training_args):
    """Raise a `ValueError` for options that would train on the wrong thing without failing."""
    if training_args.packing and training_args.packing_strategy == "wrapped":
        raise ValueError(
            "`packing_strategy: wrapped` does not tell the model where documents end, so attention and n-grams "
            "would cross from one to the next; choose `bfd` or `bfd_split`"
        )


def check_chat_template(training_args, model_args):
    """Raise a `ValueError` if the chat template does not mark what the assistant says."""
    from pathlib import Path

    from transformers import AutoTokenizer
    from trl.chat_template_utils import has_generation_markers

    source = training_args.chat_template_path
    if source and not Path(source).exists() and Path(source).suffix:
        raise ValueError(f"`chat_template_path`: there is no file {source}")
    if source and Path(source).is_file():
        template = Path(source).read_text(encoding="utf-8")
    else:
        source = source or model_args.model_name_or_path
        template = AutoTokenizer.from_pretrained(
            source, trust_remote_code=training_args.trust_remote_code
        ).chat_template
    if not template or not has_generation_markers(template):
        raise ValueError(
            f"`assistant_only_loss` trains what {{% generation %}} marks, but the chat template of {source} marks "
            "nothing; set `chat_template_path: tokenization/chat_template_training.jinja`"
        )


def make_parser():
    """TRL's options, and those of this repository."""
    warn_of_untested_versions()
    from trl import ScriptArguments, SFTConfig

    from training.run.arguments import OutputArguments, training_parser

    own_types = (DraftArguments, TableArguments, RouterArguments, OutputArguments)
    about = "Fine-tune a model on conversations, prompts with completions, or text."
    return training_parser("training.sft", about, ScriptArguments, SFTConfig, *own_types)


if __name__ == "__main__":
    run_command(lambda: main(*make_parser().parse_args_and_config()) and 0)  # `main` returns the trainer
