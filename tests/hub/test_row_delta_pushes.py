# SPDX-License-Identifier: Apache-2.0
"""Changed rows reach the Hub in the same commit as their weights, and leave it with them."""

import hashlib
from pathlib import Path

import pytest
import torch
from conftest import randomize, tiny_config
from fake_hub import FakeHub
from tiny_chat import write_tiny_chat

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.ngram_row_files import ROW_DELTA_FILE, read_row_delta, write_row_delta

SAVE_AND_PUSH = """
import os, sys
from modeling_longcat_lite import LongCatLiteForCausalLM
source, rows, folder = sys.argv[1:]
os.chdir(folder)
with_rows = LongCatLiteForCausalLM.from_pretrained(source, ngram_tables="disk")
with_rows.load_ngram_rows(rows)
without = LongCatLiteForCausalLM.from_pretrained(source)
with_rows.save_pretrained("out", push_to_hub=True, repo_id="me/saved", max_shard_size="60KB", commit_message="rows")
without.save_pretrained("out", push_to_hub=True, repo_id="me/saved", commit_message="no rows")
with_rows.save_pretrained("out", push_to_hub=True, commit_message="rows again")
with_rows.push_to_hub("me/pushed", commit_message="rows", revision="trial")
without.push_to_hub("me/pushed", commit_message="no rows", revision="trial", max_shard_size="60KB")
with_rows.push_to_hub("me/pushed", commit_message="rows", revision="trial")
"""
TRAIN_AND_PUSH = """
import sys
from training.sft import main, make_parser
main(*make_parser().parse_args_and_config(sys.argv[1:]))
"""


LOAD_AGAIN = """
import sys, torch
from modeling_longcat_lite import LongCatLiteForCausalLM
from transformers import AutoModelForCausalLM
model = LongCatLiteForCausalLM.from_pretrained(sys.argv[1])
model.push_to_hub("me/plain")
for options in ({}, {}, {"local_files_only": True}, {"revision": "main", "force_download": True}):
    again = AutoModelForCausalLM.from_pretrained("me/plain", **options)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
try:
    LongCatLiteForCausalLM.from_pretrained("me/nowhere")
except OSError as error:
    assert "me/nowhere is not a local folder" in str(error), error
"""


def weights(files) -> list[str]:
    return sorted(name for name in files if name.startswith("model") and "safetensors" in name)


@pytest.fixture
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.mark.slow  # starts a process
def test_saving_with_a_push_and_pushing_send_the_rows_with_the_weights(tmp_path, hub):
    model = randomize(LongCatLiteForCausalLM(tiny_config()))
    model.save_pretrained(tmp_path / "source")
    rows = [(torch.tensor([0, 2]), torch.full((2, 4), 3.0)) for _ in model.config.subtable_sizes]
    write_row_delta(tmp_path / "rows", model.config, rows, "base")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    hub.run(SAVE_AND_PUSH, tmp_path / "source", tmp_path / "rows", tmp_path)
    for name in ("me/saved", "me/out", "me/pushed"):
        for commit in hub.repositories[name].commits:
            if commit.message.endswith("commit"):
                continue
            assert (ROW_DELTA_FILE in commit.files) == commit.message.startswith("rows")
            forms = {file.rpartition("-of-")[2] for file in weights(commit.files)}
            assert len(forms) == (2 if "model.safetensors.index.json" in commit.files else 1), forms
            assert {"config.json", "README.md", "whole_files.py"} <= commit.files.keys()
            assert "notes.txt" not in commit.files and not [file for file in commit.files if "/" in file]
    assert len(hub.repositories["me/saved"].commits) == 3 and "me/out" in hub.repositories
    # The local folder equals the repository.
    for file, content in hub.files("me/out").items():
        if file != ".gitattributes":
            assert (tmp_path / "out" / file).read_bytes() == content
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.slow  # a process that trains
def test_a_trainer_pushes_the_rows_of_each_checkpoint(tmp_path, hub):
    chat = write_tiny_chat(tmp_path / "chat")
    output = tmp_path / "out"
    LongCatLiteForCausalLM.from_pretrained(chat / "model").save_pretrained(output, max_shard_size="60KB")
    hub.add_folder(output, "me/trainer")
    options = ("--model_name_or_path", chat / "model", "--dataset_name", chat / "data", "--output_dir", output)
    options += ("--chat_template_path", "tokenization/chat_template_training.jinja", "--max_steps", "2", "--use_cpu")
    options += ("--bf16", "false", "--report_to", "none", "--save_steps", "1", "--max_length", "64")
    options += ("--tables", "row_sparse", "--model_init_kwargs", '{"ngram_tables": "disk"}', "--hub_always_push")
    hub.run(TRAIN_AND_PUSH, *options, "--push_to_hub", "--hub_model_id", "me/trainer")
    config = LongCatLiteForCausalLM.config_class.from_pretrained(chat / "model")
    commits = [commit for commit in hub.repositories["me/trainer"].commits if "raining" in commit.message]
    seen = set()
    for commit in commits:
        assert weights(commit.files) == ["model.safetensors"]
        (tmp_path / "rows").write_bytes(commit.files[ROW_DELTA_FILE].content)
        assert sum(len(ids) for ids, _ in read_row_delta(tmp_path / "rows", config))
        # Rows and weights are of one step.
        pair = (commit.files["model.safetensors"].content, commit.files[ROW_DELTA_FILE].content)
        steps = [folder for folder in output.glob("checkpoint-*") if (folder / ROW_DELTA_FILE).read_bytes() == pair[1]]
        assert any((folder / "model.safetensors").read_bytes() == pair[0] for folder in steps), commit.message
        seen.add(hashlib.sha256(pair[1]).hexdigest())
    assert len(commits) >= 2 and len(seen) == 2
    assert not list(Path(output).glob("model-*"))


@pytest.mark.slow  # starts a process
def test_a_repository_without_rows_or_draft_head_loads_again_and_again(tmp_path, hub):
    # The files that it lacks are asked for at every load, and are not an error.
    randomize(LongCatLiteForCausalLM(tiny_config())).save_pretrained(tmp_path / "source")
    hub.run(LOAD_AGAIN, tmp_path / "source")
