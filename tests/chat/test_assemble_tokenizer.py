# SPDX-License-Identifier: Apache-2.0
"""Assembling a downloaded tokenizer: ids checked, chat format attached, saved whole or not at all."""

import json
import logging

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from tokenization import assemble_tokenizer as module
from tokenization.assemble_tokenizer import assemble_tokenizer, main, make_parser
from tokenization.chat_templates import load_chat_template
from tokenization.train_tokenizer import train_tokenizer

UPSTREAM_TEMPLATE = "{% for m in messages %}<longcat_{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture
def upstream(tmp_path):
    """A folder as on the Hub: end tokens are appended, configuration keys are older, and it has its own template."""
    tokenizer = train_tokenizer(["What a downloaded tokenizer might have learnt."] * 3, 300)
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="$A </longcat_s>", pair="$A $B </longcat_s>", special_tokens=[("</longcat_s>", 2)]
    )
    folder = tmp_path / "upstream"
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": False,
        "add_eos_token": True,
        "bos_token": "<longcat_s>",
        "eos_token": "</longcat_s>",
        "chat_template": UPSTREAM_TEMPLATE,
        "model_max_length": 131072,
        "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {"2": {"content": "</longcat_s>", "special": True, "normalized": False}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def edit_backend(folder, edit):
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def rename(data, old, new):
    vocabulary = data["model"]["vocab"]
    vocabulary[new] = vocabulary.pop(old)
    for token in data["added_tokens"]:
        if token["content"] == old:
            token["content"] = new


def test_the_saved_tokenizer_keeps_the_vocabulary_and_speaks_longcat(upstream, tmp_path, caplog):
    before = AutoTokenizer.from_pretrained(upstream)
    assert before("text").input_ids[-1] == 2
    with caplog.at_level(logging.WARNING):
        returned = assemble_tokenizer(upstream, tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    for tokenizer in (returned, loaded):
        assert tokenizer.get_vocab() == before.get_vocab()
        assert tokenizer("text").input_ids == before("text").input_ids[:-1]
        assert tokenizer.chat_template == load_chat_template()
        assert tokenizer.padding_side == "left"
        assert tokenizer.model_max_length == 131072
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 3)
        assert tokenizer.parse_response("Hi</longcat_s>", prefix="") == {"role": "assistant", "content": "Hi"}
    assert "the upstream chat template writes '<longcat_system>S<longcat_user>U<longcat_assistant>A" in caplog.text


def test_our_own_layout_gives_no_warning(tmp_path, caplog):
    train_tokenizer(["text"], 275).save_pretrained(tmp_path / "upstream")
    with caplog.at_level(logging.WARNING, logger="tokenization"):
        assemble_tokenizer(tmp_path / "upstream", tmp_path / "out")
    assert caplog.text == ""


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda data: rename(data, "</longcat_s>", "<eos>"), r"special token </longcat_s> is missing, expected id 2"),
        (
            lambda data: (rename(data, "<longcat_pad>", "x"), rename(data, "<longcat_user>", "<longcat_pad>")),
            r"special token <longcat_pad> has id 5, expected id 3",
        ),
    ],
)
def test_a_special_token_elsewhere_is_refused(upstream, tmp_path, edit, message):
    edit_backend(upstream, edit)
    (upstream / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=message):
        assemble_tokenizer(upstream, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_token_whose_id_is_not_known_may_be_missing(upstream, tmp_path, caplog):
    edit_backend(upstream, lambda data: rename(data, "</longcat_tool_declare>", "<other>"))
    with caplog.at_level(logging.WARNING):
        assembled = assemble_tokenizer(upstream, tmp_path / "out")
    assert "no token for </longcat_tool_declare>" in caplog.text
    assert assembled.decode(assembled("</longcat_tool_declare>").input_ids) == "</longcat_tool_declare>"


def test_a_failed_save_leaves_nothing_behind(upstream, tmp_path, monkeypatch):
    def fail(self, folder, **kwargs):
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(module.PreTrainedTokenizerFast, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        assemble_tokenizer(upstream, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["upstream"]


def test_folders_are_checked(upstream, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json in"):
        assemble_tokenizer(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "out").mkdir()
    assemble_tokenizer(upstream, tmp_path / "out")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        assemble_tokenizer(upstream, tmp_path / "out")


def test_the_command(upstream, tmp_path, capsys):
    main(make_parser().parse_args([str(upstream), str(tmp_path / "out")]))
    assert "tokens in" in capsys.readouterr().out
    assert (tmp_path / "out" / "chat_template.jinja").is_file()
