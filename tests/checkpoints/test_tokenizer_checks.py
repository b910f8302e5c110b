# SPDX-License-Identifier: Apache-2.0
"""What `eval.checkpoints.verify` says of a tokenizer and of the whitespace of a chat template."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_chat import write_tiny_chat
from verify_cases import edit_json, only_problem, verify


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    return write_tiny_chat(folder) / "model"


def test_a_tokenizer_that_fits(chat, tmp_path):
    folder = Path(shutil.copytree(chat, tmp_path / "model"))
    results = verify(folder)
    assert results["problems"] == []
    tokenizer, template = results["facts"]["tokenizer"], results["facts"]["chat template"]
    assert tokenizer["special_token_ids"]["</longcat_s>"] == 2
    assert template["chat"]["to_this_repository"] == "equal"
    assert template["tool call"]["to_this_repository"] == "equal"
    assert "<longcat_arg_value>Paris</longcat_arg_value>" in template["tool call"]["written"]


def test_another_whitespace_of_the_template_is_shown(chat, tmp_path):
    folder = Path(shutil.copytree(chat, tmp_path / "model"))
    path = folder / "chat_template.jinja"
    before = verify(folder)["facts"]["chat template"]["chat"]["written"]
    path.write_text(path.read_text() + "{{ '\\n|\\n' }}")
    shown = verify(folder)["facts"]["chat template"]["chat"]
    assert shown["written"] == before + "\n|\n"
    assert shown["to_this_repository"] == f"differs from character {len(before)}: '\\n|\\n', here ''"
    markdown = (tmp_path / "model-report" / "verify_checkpoint.md").read_text()
    assert repr(before + "\n|\n").replace("|", "\\|") in markdown  # no line break is lost in a cell
    path.write_text("{% if %}")
    assert "TemplateSyntaxError" in verify(folder)["facts"]["chat template"]["chat"]["written"]


def test_a_tokenizer_of_another_vocabulary(chat, tmp_path):
    folder = Path(shutil.copytree(chat, tmp_path / "model"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["longer"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    problem = only_problem(verify(folder))
    assert (problem["file"], problem["where"], problem["found"]) == ("tokenizer.json", "token 'longer'", "5000")
    assert "`vocab_size`" in problem["expected"]


def test_a_tokenizer_file_of_another_kind(chat, tmp_path):
    folder = Path(shutil.copytree(chat, tmp_path / "model"))
    (folder / "tokenizer.json").write_text(json.dumps({"model": None, "added_tokens": None}))
    assert only_problem(verify(folder))["where"] == "`model.vocab`"


def test_special_tokens_at_other_ids(chat, tmp_path):
    folder = Path(shutil.copytree(chat, tmp_path / "model"))
    edit_json(folder / "tokenizer_config.json", eos_token="<longcat_pad>", bos_token={"content": "<absent>"})
    found = {problem["where"]: problem["found"] for problem in verify(folder)["problems"]}
    assert found == {"`eos_token` '<longcat_pad>'": "id 3", "`bos_token` '<absent>'": "no such token"}
