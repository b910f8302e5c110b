# SPDX-License-Identifier: Apache-2.0
"""Every recipe: its head, its keys, and two steps of it on a tiny model."""

from pathlib import Path

import pytest
import yaml
from tiny_chat import write_tiny_chat
from trl.scripts.sft import make_parser as trl_parser

from training import sft

# `*.stages.yaml` belong to the recipe of the same name.
RECIPES = sorted(path for path in Path("training/recipes").glob("*.yaml") if ".stages" not in path.suffixes)
SFT_RECIPES = [path for path in RECIPES if not path.with_suffix(".stages.yaml").is_file()]


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("chat"))


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_head_says_what_it_needs_how_to_launch_and_how_to_override(recipe):
    text = recipe.read_text(encoding="utf-8")
    head = text[: text.index("\n\n")]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "Needs:" in head
    script = "training.sft" if recipe in SFT_RECIPES else "training.extend_context"
    assert f"{script} --config training/recipes/{recipe.name}" in head
    assert "To override" in head


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_keys_are_those_of_trl(recipe):
    # Unknown keys raise.
    # On a CPU, since `bf16` asks for an accelerator when it is read.
    parsed = trl_parser().parse_args_and_config(["--config", str(recipe), "--use_cpu"])
    given = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    values = {name: value for part in parsed for name, value in vars(part).items()}
    assert values["learning_rate"] == given["learning_rate"]
    assert isinstance(given["learning_rate"], float)


@pytest.mark.parametrize("recipe", SFT_RECIPES, ids=lambda path: path.stem)
def test_two_steps_of_it_run_on_a_tiny_model(recipe, chat, tmp_path):
    overrides = [
        *("--model_name_or_path", str(chat / "model"), "--dataset_name", str(chat / "data")),
        *("--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--use_cpu", "--disable_tqdm", "true"),
    ]
    trainer = sft.main(*sft.make_parser().parse_args_and_config(["--config", str(recipe), *overrides]))
    assert trainer.state.global_step == 2
    assert (tmp_path / "out" / "model.safetensors").is_file()
