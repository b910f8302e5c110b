# SPDX-License-Identifier: Apache-2.0
"""Compares the tokenizer of a checkpoint with its config, and its chat template with the one of this repository."""

from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from eval.checkpoints.files import CheckpointFiles
from eval.checkpoints.problems import Problem
from modeling_longcat_lite import LongCatLiteConfig
from tokenization.chat_templates import load_chat_template
from tokenization.special_tokens import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, SPECIAL_TOKENS

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris", "days": 2}}}
PROBES: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "V"},
    ],
    "tool call": [
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": "sunny"},
    ],
}


def vocabulary_of(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Tokens and ids of a `tokenizer.json`, with added ones."""
    vocabulary = dict(tokenizer.get("model", {}).get("vocab", {}))
    return vocabulary | {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}


def text_of(token: Any) -> str | None:
    """A special token's text in `tokenizer_config.json`, where it may be an object."""
    return token.get("content") if isinstance(token, dict) else token


def check_tokenizer(files: CheckpointFiles, config: LongCatLiteConfig) -> tuple[dict[str, Any], list[Problem]]:
    """Facts about the tokenizer, and what of it does not fit the config."""
    if TOKENIZER not in files:
        return {"tokenizer": "none in the checkpoint"}, []
    problems = []
    try:
        vocabulary = vocabulary_of(files.read_json(TOKENIZER))
    except (TypeError, AttributeError, KeyError) as error:
        vocabulary, fix = {}, "Download the file again, or assemble a tokenizer."
        problems.append(Problem(TOKENIZER, "`model.vocab`", "tokens and their ids", str(error), fix))
    settings = files.read_json(SETTINGS) if SETTINGS in files else {}
    if vocabulary and max(vocabulary.values()) >= config.vocab_size:
        token, highest = max(vocabulary.items(), key=lambda item: item[1])
        problems.append(
            Problem(
                TOKENIZER,
                f"token {token!r}",
                f"an id below `vocab_size` ({config.vocab_size})",
                str(highest),
                "Take the tokenizer of this checkpoint: this one belongs to another vocabulary.",
            )
        )
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    for role, expected in {"bos": [config.bos_token_id], "eos": ends, "pad": [config.pad_token_id]}.items():
        text = text_of(settings.get(f"{role}_token"))
        if text is None or None in expected:
            continue
        if vocabulary and vocabulary.get(text) not in expected:
            fix = f"Correct `{role}_token_id` in config.json, or take the tokenizer of this checkpoint."
            found = f"id {vocabulary[text]}" if text in vocabulary else "no such token"
            wanted = " or ".join(map(str, expected))
            problems.append(Problem(SETTINGS, f"`{role}_token` {text!r}", f"id {wanted}", found, fix))
    facts = {
        "tokens": len(vocabulary),
        "highest_id": max(vocabulary.values(), default=None),
        "vocab_size": config.vocab_size,
        "special_token_ids": {token.content: vocabulary.get(token.content) for token in SPECIAL_TOKENS},
        "class": settings.get("tokenizer_class"),
        "add_bos_token": settings.get("add_bos_token"),
        "add_eos_token": settings.get("add_eos_token"),
        "model_max_length": settings.get("model_max_length"),
    }
    return facts, problems


def template_facts(files: CheckpointFiles) -> dict[str, Any]:
    """Two conversations in the checkpoint's chat template, and where this repository's template begins to differ."""
    template: Any = None
    if TEMPLATE in files:
        template = files.read(TEMPLATE, 0, files.sizes[TEMPLATE]).decode("utf-8", errors="replace")
    elif SETTINGS in files:
        template = files.read_json(SETTINGS).get("chat_template")
    if not isinstance(template, str):
        return {"chat_template": "none in the checkpoint" if template is None else "several, by name"}
    facts = {}
    for name, messages in PROBES.items():
        theirs, ours = render(template, messages), render(load_chat_template(), messages)
        same = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), None)
        same = min(len(theirs), len(ours)) if same is None else same  # one is the beginning of the other
        there, here = theirs[same : same + 20], ours[same : same + 20]
        differs = "equal" if theirs == ours else f"differs from character {same}: {there!r}, here {here!r}"
        facts[name] = {"written": theirs, "to_this_repository": differs}
    return facts


def render(template: str, messages: list[dict[str, Any]]) -> str:
    """The text of a conversation, rendered in transformers' sandbox; or the error that the template raises."""
    tokens: dict[str, Any] = {"bos_token": BOS_TOKEN, "eos_token": EOS_TOKEN, "pad_token": PAD_TOKEN}
    try:
        rendered = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **tokens)
    except (TemplateError, TypeError, AttributeError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return str(rendered[0][0])  # texts, and where the assistant's begin


__all__ = ["check_tokenizer", "template_facts"]
