# SPDX-License-Identifier: Apache-2.0
"""The two chat templates by name, and what a tokenizer needs for a chat.

`chat_template.jinja` is the template of a saved tokenizer. `chat_template_training.jinja` is the same with generation
tags, for TRL's `chat_template_path` and `assistant_only_loss`. After you edit the first, write the second again:

    python -m tokenization.chat_templates

As with most templates on the Hub, message text that contains the text of a special token becomes that token. For text
that you do not trust, call `apply_chat_template(..., sanitize_control_tokens=True)`. Tool-call arguments are always
safe.
"""

import argparse
import hashlib
from copy import deepcopy
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from modeling_longcat_lite.whole_files import write_whole
from tokenization.command_line import CommandParser, run_command
from tokenization.response_template import RESPONSE_TEMPLATE
from tokenization.special_tokens import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, SPECIAL_TOKENS, UNK_TOKEN

CHAT_TEMPLATE_FILES = {
    "default": Path(__file__).with_name("chat_template.jinja"),
    "training": Path(__file__).with_name("chat_template_training.jinja"),
}

# SHA-256 of the training template of 0.1.0, which folders trained with that version contain. It writes the same text.
FORMER_TRAINING_TEMPLATES = frozenset({"76e21a0002e78d1a30a2e4f0fee8301d20459fcbf1fda5d718da929c26fb48c3"})
_TURN_BEGINS = "{#- The tokens that the model writes begin here. -#}"
_TURN_ENDS = "{#- The tokens that the model writes end here. -#}"
_LICENCE = "{#- SPDX-License-Identifier: Apache-2.0 -#}\n"
_TRAINING_HEAD = """\
{#-
    Training variant of chat_template.jinja: the same, but for this comment and the generation tags around the
    assistant turn (its content, its tool calls and the closing </longcat_s>). Both write the same text. With these
    tags, return_assistant_tokens_mask=True, and so TRL's assistant_only_loss, marks exactly those tokens.
-#}
"""


def load_chat_template(name: str = "default") -> str:
    """The text of a chat template.

    Args:
        name (`str`, *optional*, defaults to `"default"`): `"default"` or `"training"`.

    Raises:
        `ValueError`: there is no template of this name.
    """
    if name not in CHAT_TEMPLATE_FILES:
        raise ValueError(f"there is no chat template named {name!r}, choose from {sorted(CHAT_TEMPLATE_FILES)}")
    return CHAT_TEMPLATE_FILES[name].read_text(encoding="utf-8")


def is_training_template(template: str | None) -> bool:
    """Whether a tokenizer's template is the training template, of this version or an earlier one, unedited."""
    if template is None:
        return False
    is_former = hashlib.sha256(template.encode()).hexdigest() in FORMER_TRAINING_TEMPLATES
    return is_former or template == load_chat_template("training")


def training_variant(template: str) -> str:
    """Put generation tags around the assistant turn of `chat_template.jinja`, or of your edited copy of it.

    Raises:
        `ValueError`: the licence line or the comments that mark the assistant turn are missing.
    """
    if template.count(_TURN_BEGINS) != 1 or template.count(_TURN_ENDS) != 1 or _LICENCE not in template:
        raise ValueError(
            f"the template needs its licence line, and {_TURN_BEGINS} and {_TURN_ENDS} around one assistant turn"
        )
    tagged = template.replace(_TURN_BEGINS, "{%- generation %}").replace(_TURN_ENDS, "{%- endgeneration %}")
    return tagged.replace(_LICENCE, _LICENCE + _TRAINING_HEAD, 1)


def attach_chat_format(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer LongCat's chat template, response template and named special tokens, in place."""
    tokenizer.chat_template = load_chat_template()
    tokenizer.response_template = deepcopy(RESPONSE_TEMPLATE)
    # By itself, transformers finds only the tokens that the template writes; users may write any of these.
    vocabulary = tokenizer.get_vocab()
    tokenizer.chat_control_tokens = [token.content for token in SPECIAL_TOKENS if token.content in vocabulary]
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = BOS_TOKEN, EOS_TOKEN, PAD_TOKEN
    if UNK_TOKEN in vocabulary:
        tokenizer.unk_token = UNK_TOKEN


def make_parser() -> CommandParser:
    return CommandParser(
        "tokenization.chat_templates", "Write chat_template_training.jinja from an edited chat_template.jinja."
    )


def main(arguments: argparse.Namespace) -> None:
    write_whole(CHAT_TEMPLATE_FILES["training"], training_variant(load_chat_template()))
    print(f"Written: {CHAT_TEMPLATE_FILES['training']}")


__all__ = [
    "CHAT_TEMPLATE_FILES",
    "attach_chat_format",
    "is_training_template",
    "load_chat_template",
    "training_variant",
]

if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
