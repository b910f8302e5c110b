# SPDX-License-Identifier: Apache-2.0
"""Numbers among options that are not finite, or out of range, are named before a model is loaded."""

import argparse
import math
from dataclasses import fields

import pytest
import torch
import yaml
from test_extend_context import write_stages
from torch import nn

from eval.drafts import __main__ as draft_acceptance
from eval.fit import __main__ as fit
from eval.losses import __main__ as held_out_answers
from eval.speed import row_optimizer as row_optimizer_speed
from eval.speed import step as step_time
from eval.speed.placement import __main__ as table_placement
from eval.studies.scaling.grid import Point
from eval.studies.scaling.run import RunSettings
from tokenization.number_options import check_finite, check_number
from training import dpo, grpo, sft
from training.context.stages import read_stages
from training.routers.arguments import RouterArguments
from training.run.draft_loss import DraftHeadTrainer
from training.tables.optimizer import RowwiseAdamW
from training.tables.trainer import TableTrainerMixin

NOT_FINITE = ("nan", "inf", "-inf")
# Nothing is at this address: an error that names an option comes before the model is looked for.
NO_MODEL = ("--model_name_or_path", "no-model", "--dataset_name", "no-data", "--output_dir", "no-output")
ON_CPU = ("--use_cpu", "--bf16", "false", "--report_to", "none")


def run(script, *options: str):
    arguments = script.make_parser().parse_args_and_config([*NO_MODEL, *ON_CPU, *options])
    return script.main(*arguments)


def own_floats() -> list[str]:
    """Every option of ours that takes a number with a point, so that a new one is tested too."""
    kinds = (sft.DraftArguments, sft.TableArguments, RouterArguments)
    return [field.name for kind in kinds for field in fields(kind) if "float" in str(field.type)]


@pytest.mark.parametrize("value", [*NOT_FINITE, "-1"])
@pytest.mark.parametrize("option", own_floats())
def test_our_options_of_training(option, value, tmp_path):
    with pytest.raises(ValueError, match=f"`{option}` is {value}.*, but must be"):
        run(sft, f"--{option}={value}")
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({option: float(value)}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"`{option}` is .*, but must be"):
        run(sft, "--longcat_config", str(own))


def test_the_list_of_our_options_is_not_empty():
    assert set(own_floats()) >= {"draft_loss_weight", "table_learning_rate", "router_bias_rate", "balance_loss_weight"}


@pytest.mark.parametrize("script", [sft, dpo, grpo])
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--learning_rate", "nan"), "`learning_rate` is nan, but must be a finite number"),
        (("--learning_rate=-1e-3",), r"`learning_rate` is -0\.001, but must be at least 0"),
        (("--weight_decay", "inf"), "`weight_decay` is inf, but must be a finite number"),
        (("--adam_beta2", "1"), r"`adam_beta2` is 1\.0, but must be at least 0 and below 1"),
        (("--max_grad_norm", "nan"), "`max_grad_norm` is .*, but must be a finite number"),
        (("--max_grad_norm", "-1"), "`max_grad_norm` is .*, but must be at least 0"),
        (("--lora_dropout", "nan"), "`lora_dropout` is .*, but must be a finite number"),
        (
            ("--lr_scheduler_kwargs", '{"min_lr_rate": NaN}'),
            r"`lr_scheduler_kwargs\.min_lr_rate` is nan, but",
        ),
        (
            ("--model_init_kwargs", '{"rms_norm_eps": NaN}'),
            r"`model_init_kwargs\.rms_norm_eps` is nan, but",
        ),
        (
            ("--model_init_kwargs", '{"rope_parameters": {"factor": Infinity}}'),
            r"`model_init_kwargs\.rope_parameters\.factor` is inf, but must be a finite number",
        ),
    ],
)
def test_options_of_trl(script, options, problem):
    more = ("--reward_funcs", "training.data.answer_reward.answer_reward") if script is grpo else ()
    with pytest.raises(ValueError, match=problem):
        run(script, *options, *more)


def test_a_penalty_that_rewards_distance_is_refused():
    with pytest.raises(ValueError, match=r"`beta` is -0\.1, but must be at least 0"):
        run(dpo, "--beta", "-0.1")


def test_an_infinite_bound_is_a_choice(tmp_path):
    arguments = dpo.make_parser().parse_args_and_config([*NO_MODEL, *ON_CPU, "--max_grad_norm", "inf"])
    check_finite(*arguments)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_trainers_made_in_python_check_before_they_load(value):
    with pytest.raises(ValueError, match=r"`draft_loss_weight` is .*, but must be"):
        DraftHeadTrainer(model="no-model", draft_loss_weight=value)
    with pytest.raises(ValueError, match=r"`table_learning_rate` is .*, but must be"):
        TableTrainerMixin(model="no-model", tables="row_sparse", table_learning_rate=value)


@pytest.mark.parametrize("rowwise", [False, True])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((name, value) for name in ("lr", "eps") for value in (math.nan, math.inf, -1.0)),
        *(("betas", (0.0, value)) for value in (math.nan, 1.0, -0.5)),
        *(("weight_decay", value) for value in (math.nan, math.inf, -1.0)),
    ],
)
def test_the_optimizer_checks_every_group(rowwise, option, value):
    name = option if (option, rowwise) != ("weight_decay", True) else "weight_decay` of a group of tables"
    group = {"params": [nn.Parameter(torch.ones(4, 2))], "rowwise": rowwise, option: value}
    with pytest.raises(ValueError, match=f"`{name}"):
        RowwiseAdamW([group])
    optimizer = RowwiseAdamW([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=f"`{name}"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


def test_the_optimizer_refuses_infinite_defaults_and_rows_divided_by_zero():
    parameters = [nn.Parameter(torch.ones(4, 2))]
    with pytest.raises(ValueError, match="`lr` is inf, but must be a finite number"):
        RowwiseAdamW(parameters, lr=math.inf)
    with pytest.raises(ValueError, match=r"`eps` is 0\.0, but must be above 0"):
        RowwiseAdamW([{"params": parameters, "rowwise": True}], eps=0.0)
    RowwiseAdamW(parameters, eps=0.0)
    RowwiseAdamW(parameters, lr=torch.tensor(1e-3))  # as compiled optimizers have it


@pytest.mark.parametrize("value", [math.nan, math.inf, -2.0])
@pytest.mark.parametrize(
    "name", ["short_loss_tolerance", "beta_fast", "beta_slow", "factor", "long_share", "original_length", "steps"]
)
def test_numbers_in_a_stages_file(name, value, tmp_path):
    path = write_stages(tmp_path / "stages.yaml")
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    (written["stages"][0] if name in written["stages"][0] else written)[name] = value
    path.write_text(yaml.safe_dump(written), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"stages.yaml: `.*{name}` (is .*, but )?must be"):
        read_stages(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_numbers_of_a_study(value):
    for kind in (RunSettings, Point):
        for field in fields(kind):
            if "str" not in str(field.type) and "bool" not in str(field.type):
                with pytest.raises(ValueError, match=f"`{field.name}` is .*, but must be"):
                    kind(**{field.name: value})


@pytest.mark.parametrize(
    ("command", "arguments", "problem"),
    [
        (
            fit,
            ("--host-memory", "64GB", "--gpus", "0", "--tflops", "inf"),
            "`--tflops` is inf, but must be",
        ),
        (table_placement, ("--gigabytes", "nan"), "`--gigabytes` is .*, but must be a finite number"),
        (table_placement, ("--gigabytes", "-8"), "`--gigabytes` is .*, but must be above 0"),
        (
            held_out_answers,
            ("--model", "m", "--rows", "r", "--count", "-5"),
            "`--count` is -5, but must be at least",
        ),
        (draft_acceptance, ("--model", "m", "--rows", "r", "--count", "0"), "`--count` is 0, but must be at least 1"),
        (row_optimizer_speed, ("--sizes", "1000", "-1"), "`--sizes` is -1, but must be at least 1"),
        (step_time, ("--repeats", "0"), "`--repeats` is 0, but must be at least 1"),
    ],
)
def test_commands_of_eval(command, arguments, problem):
    with pytest.raises(ValueError, match=problem):
        command.main(command.make_parser().parse_args(arguments))


def test_what_counts_as_a_number():
    for wrong in (True, "3", None, argparse.Namespace()):
        if wrong is None:
            check_number("x", wrong, least=1)  # left out
        else:
            with pytest.raises(ValueError, match=r"`x` is .*, but must be a number"):
                check_number("x", wrong)
    check_number("x", 10**400, least=1)
    check_number("x", [1, 2.5], above=0, most=2.5)
    with pytest.raises(ValueError, match=r"`x` is 3, but must be at least 1 and below 3"):
        check_number("x", [1, 3], least=1, below=3)
