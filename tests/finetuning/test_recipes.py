# SPDX-License-Identifier: Apache-2.0
"""Every recipe: its head, its keys, two steps of it on a tiny model, and the same by TRL's own command."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_chat import WIDTHS_OF_64, chat_rows, write_rows, write_tiny_chat

from eval.fit.training.recipe import is_recipe
from model_cards.build_hub_repo import build_hub_repo
from training import extend_context, sft
from training.data.preferences import write_preferences
from training.run.arguments import LongCatParser

OURS = sorted(Path("training/recipes").glob("*.longcat.yaml"))
STAGES = sorted(Path("training/recipes").glob("*.stages.yaml"))
RECIPES = sorted(filter(is_recipe, Path("training/recipes").glob("*.yaml")))
STAGED = [path for path in RECIPES if path.with_suffix(".stages.yaml") in STAGES]
OVERRIDES = yaml.safe_load(Path("tests/finetuning/recipe_overrides.yaml").read_text(encoding="utf-8"))

FULL = [pytest.param(name, marks=pytest.mark.full) for name in ("dpo", "grpo")]
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
each_trained_once = pytest.mark.parametrize("recipe", sorted(set(RECIPES) - set(STAGED)), ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    """A tiny model, and rows of every kind that a recipe reads."""
    folder = write_tiny_chat(tmp_path_factory.mktemp("chat"))
    write_preferences(folder / "data", folder / "preferences", rows=8, seed=0)
    for split in ("train", "test"):
        texts = [{"text": row["messages"][1]["content"] * 9} for row in chat_rows(6)]
        write_rows(folder / "text" / f"{split}.jsonl", texts)
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("wide"), **WIDTHS_OF_64)


def task_of(recipe: Path) -> str:
    """`sft`, `dpo`, `grpo` or `extend_context`: the script that the head launches."""
    launch = re.search(rf"-m[\s#\\]+training\.(\w+) --config training/recipes/{recipe.name}", recipe.read_text())
    assert launch, f"{recipe} does not say how to launch it"
    return launch[1]


def own_file(recipe: Path) -> list[str]:
    ours = recipe.with_suffix(".longcat.yaml")
    return ["--longcat_config", str(ours)] if ours in OURS else []


def overridden(recipe: Path, model: Path, data: Path, output: Path) -> Path:
    """The recipe with the overrides for tests in it, as a file next to `output`."""
    keys = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    rows = {"outputs/preferences/pairs": "preferences/pairs", "outputs/preferences/prompts": "preferences/prompts"}
    rows |= {"outputs/text": "text", **dict.fromkeys(["outputs/yarn-demo/long", "long-documents"], "documents")}
    paths = {
        "model_name_or_path": str(model),
        "dataset_name": str(data / rows.get(keys["dataset_name"], "data")),
        "output_dir": str(output),
    }
    written = output.with_suffix(".yaml")
    written.write_text(yaml.safe_dump(keys | OVERRIDES["all"] | OVERRIDES[task_of(recipe)] | paths))
    return written


def test_there_are_recipes():
    assert {path.stem for path in RECIPES} >= {
        *("demo", "sft_full", "sft_lora", "sft_qlora", "sft_tables", "dpo", "grpo", "pretrain_8k"),
        *("yarn_demo", "yarn_256k"),
    }
    assert {path.with_suffix("").with_suffix(".yaml") for path in OURS} <= set(RECIPES)


@each_recipe
def test_head_says_what_it_needs_how_to_launch_and_how_to_override(recipe):
    text = recipe.read_text(encoding="utf-8")
    head = text[: text.index("\n\n")]
    assert all(line.startswith("#") for line in head.splitlines())
    for part in ("Needs:", "To launch", f"--config training/recipes/{recipe.name}", "To override"):
        assert part in head
    assert not own_file(recipe) or " ".join(own_file(recipe)) in head


@each_recipe
def test_keys_are_those_of_trl(recipe):
    # Unknown keys raise.
    task = "sft" if recipe in STAGED else task_of(recipe)
    parser = importlib.import_module(f"trl.scripts.{task}").make_parser()
    parsed = parser.parse_args_and_config(["--config", str(recipe), "--use_cpu"])
    given = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    values = {name: value for part in parsed for name, value in vars(part).items()}
    assert values["learning_rate"] == given["learning_rate"]
    assert isinstance(given["learning_rate"], float)


@pytest.mark.parametrize("recipe", STAGED, ids=lambda path: path.stem)
def test_two_steps_of_each_of_its_stages_run_on_a_tiny_model(recipe, tmp_path):
    """The recipe's stages, 16 tokens for what it extends from."""
    stages = yaml.safe_load(recipe.with_suffix(".stages.yaml").read_text(encoding="utf-8"))
    smaller = stages["original_length"] // 16
    stages |= {"original_length": 16, "short_loss_tolerance": 99.0}
    stages.pop("short_dataset_name")
    if "max_position_embeddings" in stages:
        stages["max_position_embeddings"] //= smaller
    for stage in stages["stages"]:
        stage |= {"steps": 2, "max_length": stage["max_length"] // smaller}
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump(stages))
    chat = write_tiny_chat(tmp_path / "chat", max_position_embeddings=16)
    for split in ("train", "test"):
        texts = ["the list in place " * 60, "a short one", "sort the strings " * 70, "another one"]
        write_rows(chat / "documents" / f"{split}.jsonl", [{"text": text} for text in texts])
    config = overridden(recipe, chat / "model", chat, tmp_path / "out")
    options = ["--config", str(config), "--stages", str(tmp_path / "stages.yaml")]
    extend_context.main(*extend_context.make_parser().parse_args_and_config(options))
    records = json.loads((tmp_path / "out" / "stages.json").read_text())
    assert [record["stage"] for record in records] == ["before", *range(1, len(stages["stages"]) + 1)]
    assert (tmp_path / "out" / "model.safetensors").is_file()


@each_trained_once
def test_two_steps_of_it_run_on_a_tiny_model(recipe, chat, wide, tmp_path):
    script = importlib.import_module(f"training.{task_of(recipe)}")
    model = (wide if "load_in_4bit: true" in recipe.read_text() else chat) / "model"
    options = ["--config", str(overridden(recipe, model, chat, tmp_path / "out")), *own_file(recipe)]
    trainer = script.main(*script.make_parser().parse_args_and_config(options))
    assert trainer.state.global_step == 2
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(loss == loss for loss in losses)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written & {"model.safetensors", "adapter_model.safetensors"}
    assert {"training_metrics.json", "training_curves.png", "trainer_state.json"} <= written
    assert ("ngram_row_delta.safetensors" in written) == (recipe.stem == "sft_tables")


# Two more processes, each of which imports everything.
@pytest.mark.parametrize("name", [pytest.param("sft_full", marks=pytest.mark.slow), *FULL])
def test_the_command_of_trl_runs_it_on_a_packaged_model(name, chat, tmp_path):
    build_hub_repo(chat / "model", tmp_path / "package")
    recipe = Path(f"training/recipes/{name}.yaml")
    task = task_of(recipe)
    config = overridden(recipe, tmp_path / "package", chat, tmp_path / "out")
    environment = os.environ | {
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
        "OMP_NUM_THREADS": "1",
    }
    command = [Path(sys.executable).with_name("trl"), task, "--config", config]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stored["auto_map"]["AutoModelForCausalLM"] == "modeling_longcat_lite.LongCatLiteForCausalLM"
    assert (tmp_path / "out" / "modeling_longcat_lite.py").is_file()
    # The code that ran is the folder's own.
    assert list((tmp_path / "modules").rglob("modeling_longcat_lite.py"))


def own_parser() -> LongCatParser:
    return sft.make_parser()


def own_values(parsed) -> dict:
    return {name: value for part in parsed for name, value in vars(part).items()}


def test_keys_of_ours_come_from_a_second_file(tmp_path):
    ours = tmp_path / "ours.yaml"
    ours.write_text("draft_loss_weight: 0.25\ndraft_head_only: true\nmerge_adapter: false\n")
    options = ["--output_dir", "x", "--use_cpu", "--longcat_config", str(ours)]
    values = own_values(own_parser().parse_args_and_config(options))
    assert (values["draft_loss_weight"], values["draft_head_only"], values["merge_adapter"]) == (0.25, True, False)
    options += ["--draft_loss_weight", "0.5"]
    assert own_values(own_parser().parse_args_and_config(options))["draft_loss_weight"] == 0.5
    # In front of the file as well.
    options = ["--draft_loss_weight", "0.5", *options[:5]]
    assert own_values(own_parser().parse_args_and_config(options))["draft_loss_weight"] == 0.5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("draft_loss_wait: 0.25", "`draft_loss_wait` in .*ours.yaml .* choose from .*draft_loss_weight"),
        ("learning_rate: 0.1", "`learning_rate` in .*ours.yaml .* belong into the file of `--config`"),
        ("- draft_loss_weight", "ours.yaml is not a YAML mapping"),
    ],
)
def test_unknown_keys_of_ours_are_named(tmp_path, text, problem):
    (tmp_path / "ours.yaml").write_text(text)
    with pytest.raises(ValueError, match=problem):
        own_parser().parse_args_and_config(["--output_dir", "x", "--longcat_config", str(tmp_path / "ours.yaml")])
