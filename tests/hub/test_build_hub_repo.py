# SPDX-License-Identifier: Apache-2.0
"""The Hub folder: complete, flat, never half written, and loadable without the package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from card_cases import ON_THE_HUB, run_command, write_facts, write_results
from huggingface_hub import ModelCard
from tiny_chat import write_tiny_chat
from transformers import AutoTokenizer

from model_cards import build_hub_repo as builder
from model_cards.card import CardSources
from modeling_longcat_lite import LongCatLiteForCausalLM
from tokenization.chat_templates import load_chat_template

REPORT = {"training_steps": 4, "heldout_loss_before": 6.25, "heldout_loss_after": 3.125}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("chat")) / "model"


@pytest.fixture(scope="module")
def folder(model_dir, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("hub") / "folder"
    report = output.with_name("report.json")
    report.write_text(json.dumps(REPORT))
    arguments = ["--model", str(model_dir), "--output", str(output), "--report", str(report)]
    run_command(builder, *arguments, "--license", "apache-2.0")
    return output


def test_folder_is_flat_and_complete(folder):
    names = {path.name for path in folder.iterdir()}
    assert all(path.is_file() for path in folder.iterdir())
    package = {path.name for path in Path("modeling_longcat_lite").glob("*.py")} - {"__init__.py"}
    assert names >= {"modeling_longcat_lite.py", "configuration_longcat_lite.py", "ngram_embedding.py"}
    assert {name for name in names if name.endswith(".py")} <= package
    assert names >= {"model.safetensors", "config.json", "generation_config.json", "README.md"}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    # How it was loaded here must not follow it to the Hub.
    assert not {"is_local", "local_files_only"} & json.loads((folder / "tokenizer_config.json").read_text()).keys()
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_config_names_the_code_for_each_auto_class(folder):
    assert json.loads((folder / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_longcat_lite.LongCatLiteConfig",
        "AutoModel": "modeling_longcat_lite.LongCatLiteModel",
        "AutoModelForCausalLM": "modeling_longcat_lite.LongCatLiteForCausalLM",
    }


def test_weights_are_those_of_the_model(folder, model_dir):
    ours, theirs = (LongCatLiteForCausalLM.from_pretrained(path).state_dict() for path in (folder, model_dir))
    assert all(torch.equal(weights, theirs[name]) for name, weights in ours.items())


FORMER = Path(__file__).with_name("chat_template_training_0_1_0.jinja")


@pytest.mark.parametrize("template", [load_chat_template("training"), FORMER.read_text()], ids=["own", "former"])
def test_training_template_is_replaced_by_the_one_for_use(model_dir, tmp_path, template):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = template
    LongCatLiteForCausalLM.from_pretrained(model_dir).save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    builder.build_hub_repo(tmp_path / "trained", tmp_path / "folder")
    assert (tmp_path / "folder" / "chat_template.jinja").read_text() == load_chat_template()


def test_card_has_the_metadata_and_the_numbers(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert "n-gram-embedding" in card.data.tags
    assert "trust_remote_code=True" in card.text
    assert "6.25, 3.125" in card.text
    assert "{{" not in card.text


def test_results_have_their_folder_and_the_rest_is_flat(model_dir, tmp_path):
    results = write_results(tmp_path / "harness.json", model_dir, ON_THE_HUB)
    facts = write_facts(tmp_path / "facts.yaml")
    arguments = ["--model", str(model_dir), "--output", str(tmp_path / "folder"), "--facts", str(facts)]
    run_command(builder, *arguments, "--results", str(results))
    assert [path.name for path in (tmp_path / "folder").iterdir() if path.is_dir()] == [".eval_results"]
    assert ModelCard.load(tmp_path / "folder" / "README.md").data.model_name == "Tiny"


def test_what_training_turned_off_is_on_again(model_dir, tmp_path):
    trained = LongCatLiteForCausalLM.from_pretrained(model_dir)
    trained.config.use_cache = False
    trained.save_pretrained(tmp_path / "trained")
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(tmp_path / "trained")
    assert json.loads((tmp_path / "trained" / "config.json").read_text())["use_cache"] is False
    builder.build_hub_repo(tmp_path / "trained", tmp_path / "folder")
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["use_cache"] is True


@pytest.mark.slow  # starts a process
def test_folder_answers_where_the_package_cannot_be_imported(folder, tmp_path):
    command = [sys.executable, "-m", "training.demo.ask", "--isolated", "--model", folder, "--max-new-tokens", "4"]
    command += ["--output", tmp_path / "answers.json", "What does function 1 do?"]
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path.cwd())
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Do you wish to run" not in done.stdout
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert answers["model_class"].startswith("transformers_modules.")
    assert answers["answers"][0]["answer"].strip() in done.stdout


def test_a_folder_that_is_not_empty_is_kept_unless_told_otherwise(model_dir, tmp_path):
    output = tmp_path / "folder"
    output.mkdir()
    (output / "notes.txt").write_text("keep me")
    with pytest.raises(ValueError, match=r"`output`.*not empty"):
        builder.build_hub_repo(model_dir, output)
    assert (output / "notes.txt").is_file()
    builder.build_hub_repo(model_dir, output, overwrite=True)
    assert not (output / "notes.txt").exists()
    assert (output / "config.json").is_file()


def test_nothing_is_left_of_a_build_that_fails(model_dir, tmp_path, monkeypatch):
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"training_steps": 4}))
    with pytest.raises(ValueError, match=r"report.json lacks heldout_loss_before, heldout_loss_after"):
        builder.build_hub_repo(model_dir, tmp_path / "out" / "folder", CardSources(report=report))
    assert not (tmp_path / "out").exists()

    def full_disk(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(builder, "write_folder", full_disk)
    with pytest.raises(OSError, match="no space left"):
        builder.build_hub_repo(model_dir, tmp_path / "out" / "folder")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_model_folder_that_lacks_something_is_named(model_dir, tmp_path, missing):
    partial = tmp_path / "partial"
    partial.mkdir()
    for path in model_dir.iterdir():
        if path.name != missing:
            (partial / path.name).symlink_to(path)
    with pytest.raises(ValueError, match=f"`model`.*{missing}"):
        builder.build_hub_repo(partial, tmp_path / "folder")


@pytest.mark.parametrize("output", ["chat/model", "chat", "results"])
def test_what_it_is_made_of_is_never_replaced(tmp_path, output):
    model = write_tiny_chat(tmp_path / "chat") / "model"
    (tmp_path / "results").mkdir()
    results = write_results(tmp_path / "results" / "harness.json", model, ON_THE_HUB)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    arguments = ["--model", str(model), "--results", str(results), "--output", str(tmp_path / output), "--overwrite"]
    with pytest.raises(ValueError, match="which would be deleted"):
        run_command(builder, *arguments)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
