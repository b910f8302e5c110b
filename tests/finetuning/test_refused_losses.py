# SPDX-License-Identifier: Apache-2.0
"""TRL's auxiliary loss on routers is refused by name wherever it is asked for, and untested versions are named."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
from datasets import Dataset
from tiny_chat import chat_rows, write_tiny_chat
from trl import SFTConfig

from training import dpo, extend_context, grpo, sft
from training.run import tested_versions
from training.run.trainers import ResumableSFTTrainer

SCRIPTS = pytest.mark.parametrize("script", [sft, dpo, grpo, extend_context])
# Nothing is at these addresses: the error comes before they are looked for.
ARGUMENTS = ("--model_name_or_path", "no-model", "--dataset_name", "no-data", "--output_dir", "no-output", "--use_cpu")
REWARD = ("--reward_funcs", "training.data.answer_reward.answer_reward")


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("chat"))


@SCRIPTS
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--router_aux_loss_coef", "0.01"), r"`router_aux_loss_coef` in the options is 0\.01"),
        (("--model_init_kwargs", '{"router_aux_loss_coef": 0.01}'), "`router_aux_loss_coef` in `model_init_kwargs`"),
        (("--model_init_kwargs", '{"output_router_logits": true}'), "`output_router_logits` in `model_init_kwargs`"),
    ],
)
def test_options_that_ask_for_it(script, options, problem):
    more = (*options, *(REWARD if script is grpo else ()))
    arguments = script.make_parser().parse_args_and_config([*ARGUMENTS, "--bf16", "false", *more])
    with pytest.raises(ValueError, match=rf"{problem}.*`balance_loss_weight`"):
        script.main(*arguments)


@pytest.mark.parametrize(("field", "value"), [("router_aux_loss_coef", 0.01), ("output_router_logits", True)])
def test_a_config_that_asks_for_it(chat, tmp_path, field, value):
    shutil.copytree(chat / "model", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {field: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"`{field}` in the model's config is .*`balance_loss_weight`"):
        trainer(tmp_path / "model", tmp_path)


def test_a_trainer_made_in_python(chat, tmp_path):
    with pytest.raises(ValueError, match=r"`router_aux_loss_coef` in the training arguments is 0\.5"):
        trainer(chat / "model", tmp_path, router_aux_loss_coef=0.5)
    trainer(chat / "model", tmp_path, router_aux_loss_coef=0.0)  # TRL's own way to leave it out


def trainer(model: Path, output: Path, **options) -> ResumableSFTTrainer:
    args = SFTConfig(output_dir=str(output), use_cpu=True, bf16=False, report_to="none", **options)
    return ResumableSFTTrainer(model=str(model), args=args, train_dataset=Dataset.from_list(chat_rows(2)))


@SCRIPTS
def test_versions_that_training_was_not_tested_with_are_named(script, monkeypatch):
    monkeypatch.setattr(tested_versions, "version", lambda name: "5.24.0")
    with pytest.warns(UserWarning, match=r"transformers 5\.24\.0 is installed.*PEFT 0\.22.*transformers==5\.23\.\*"):
        script.make_parser()
    for tested in ("5.23.0", "5.23.1.dev0"):
        monkeypatch.setattr(tested_versions, "version", lambda name, tested=tested: tested)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            script.make_parser()
