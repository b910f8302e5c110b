# SPDX-License-Identifier: Apache-2.0
"""The model of a command: read once, from a folder, and refused before anything is loaded if it cannot be used."""

import json
import shutil

import pytest
from harness_cases import run
from tiny_chat import write_tiny_chat

from eval.checkpoints.load import RELEASED, ModelFolder
from eval.losses import __main__ as held_out_answers
from eval.reports import results
from modeling_longcat_lite import LongCatLiteConfig


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny"), max_position_embeddings=2048)


def with_config(chat, folder, **fields):
    shutil.copytree(chat / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


@pytest.mark.parametrize("command", ["harness", "losses"])
def test_a_command_hashes_the_weights_once(chat, command, tmp_path, monkeypatch):
    hashed, plain = [], results.weights_hash
    monkeypatch.setattr(results, "weights_hash", lambda folder: hashed.append(folder) or plain(folder))
    if command == "harness":
        tasks = ("pydoc_text_core", "pydoc_text_held_out")
        run(chat / "model", tmp_path, "--limit", 1, "--tasks", *tasks, check=False)
    else:
        options = ["--model", chat / "model", "--rows", chat / "data" / "test.jsonl", "--output", tmp_path]
        held_out_answers.main(held_out_answers.make_parser().parse_args(list(map(str, options))))
    assert hashed == [chat / "model"]


def test_everything_is_read_once(chat):
    folder = ModelFolder(chat / "model")
    folder.check()
    assert folder.config is folder.config is folder.ngram_config
    assert folder.tokenizer is folder.tokenizer and folder.identity is folder.identity
    assert folder.identity["name"] == "model"
    assert folder.result_file("mine", [], seed=1) == {
        "model": folder.identity,
        "evaluation": "mine",
        "results": [],
        "seed": 1,
    }
    assert not folder.load().training


def test_reports_do_not_show_where_the_folder_is(chat):
    assert ModelFolder(chat / "model").shown == f"{chat.name}/model"
    assert ModelFolder("outputs/demo/model").shown == "outputs/demo/model"
    assert ModelFolder(None).shown == RELEASED


def test_without_a_model_there_is_the_released_configuration():
    folder = ModelFolder(None)
    assert folder.ngram_config.to_dict() == LongCatLiteConfig().to_dict()
    with pytest.raises(ValueError, match="`--model` is needed here"):
        _ = folder.identity


def test_another_tokenizer(chat, tmp_path):
    small = with_config(chat, tmp_path / "small", vocab_size=100)
    assert len(ModelFolder(None, chat / "model").tokenizer) > 100
    with pytest.raises(ValueError, match=r"model: 280 tokens, above `vocab_size` \(100\) of the model"):
        _ = ModelFolder(small, chat / "model").tokenizer


def test_a_model_without_tables(chat, tmp_path):
    plain = ModelFolder(with_config(chat, tmp_path / "plain", use_ngram_embedding=False))
    with pytest.raises(ValueError, match="plain: `use_ngram_embedding` is false"):
        _ = plain.ngram_config


def test_another_template_is_another_tokenizer(chat, tmp_path):
    shutil.copytree(chat / "model", tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text() + "\n")
    assert ModelFolder(chat / "model").tokenizer_sha256 != ModelFolder(tmp_path / "model").tokenizer_sha256
