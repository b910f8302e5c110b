# SPDX-License-Identifier: Apache-2.0
"""Training a tokenizer: ids, lossless text, determinism, settings and the command."""

import logging

import pytest
from transformers import AutoTokenizer

from tokenization.chat_templates import load_chat_template
from tokenization.special_tokens import SPECIAL_TOKENS
from tokenization.train_tokenizer import main, make_parser, train_tokenizer

TEXTS = [f"Number {i} of the lines: caf\u00e9, 天气预报, <b>bold</b>\n" for i in range(50)]
TOKENIZER = train_tokenizer(TEXTS, 350)


def test_special_tokens_come_first_then_bytes_then_merges():
    assert [token.id for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert len(TOKENIZER) == TOKENIZER.vocab_size == 350
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(350))
    for token in SPECIAL_TOKENS:
        assert TOKENIZER(token.content).input_ids == [token.id]
        assert TOKENIZER(f"a{token.content} b").input_ids[1] == token.id
    assert all(len(TOKENIZER.convert_ids_to_tokens(i)) == 1 for i in range(19, 275))


def test_named_tokens_and_settings():
    named = (TOKENIZER.unk_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)
    assert named == (0, 1, 2, 3)
    assert TOKENIZER.padding_side == "left"
    assert TOKENIZER.model_max_length == 327_680
    assert TOKENIZER.chat_template == load_chat_template()


def test_nothing_is_added_around_a_text():
    assert TOKENIZER("").input_ids == []
    assert not {1, 2} & set(TOKENIZER("a text", "and another").input_ids)


@pytest.mark.parametrize(
    "text", ["", "  two  spaces ", "tab\t\r\n\x00", "天😀é", "e\u0301", "don't", "<longcat_x>", "a</longcat_s>b"]
)
def test_decoding_gives_the_text_back(text):
    assert TOKENIZER.decode(TOKENIZER(text).input_ids) == text


def test_skipping_special_tokens_keeps_the_structure_of_a_turn():
    text = "<longcat_assistant>Hi<longcat_tool_call>now\n</longcat_tool_call></longcat_s><longcat_pad>"
    kept = TOKENIZER.decode(TOKENIZER(text).input_ids, skip_special_tokens=True)
    assert kept == "Hi<longcat_tool_call>now\n</longcat_tool_call>"


def test_the_same_texts_give_the_same_tokenizer():
    again = train_tokenizer(iter(TEXTS), 350)
    assert again.backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


def test_markers_in_the_texts_are_not_learnt_as_letters():
    tokenizer = train_tokenizer(["<longcat_user><longcat_assistant></longcat_arg_value>"] * 100, 300)
    assert len(tokenizer) == 275


def test_too_little_text_gives_fewer_tokens_and_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert len(train_tokenizer(["ab ab"], 1000)) < 300
    assert "1000 were asked for" in caplog.text


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="vocab_size must be at least 275"):
        train_tokenizer(TEXTS, 274)
    with pytest.raises(ValueError, match="texts must be an iterable of strings"):
        train_tokenizer("one text", 300)


def test_the_command_writes_what_auto_tokenizer_loads(tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text("".join(TEXTS), encoding="utf-8")
    output = tmp_path / "nested" / "tokenizer"
    options = ["--text", str(tmp_path / "corpus.txt"), "--vocab-size", "350", "--output", str(output)]
    main(make_parser().parse_args(options))
    assert "350 tokens" in capsys.readouterr().out
    loaded = AutoTokenizer.from_pretrained(output)
    assert len(loaded) == 350
    assert loaded.chat_template == TOKENIZER.chat_template
    assert loaded.response_template == TOKENIZER.response_template
    assert loaded.padding_side == "left"
    assert loaded.chat_control_tokens == TOKENIZER.chat_control_tokens
    for token in SPECIAL_TOKENS:
        assert loaded(token.content).input_ids == [token.id]
    text = "Hi<longcat_tool_call>now\n</longcat_tool_call></longcat_s>"
    assert loaded.decode(loaded(text).input_ids, skip_special_tokens=True) == text.removesuffix("</longcat_s>")
    batch = loaded(["a", "a b c"], padding=True)
    assert batch.input_ids[0][0] == 3
    assert batch.attention_mask[0][0] == 0
    with pytest.raises(FileExistsError, match="not an empty folder"):
        main(make_parser().parse_args(options))
