# SPDX-License-Identifier: Apache-2.0
"""The two chat templates by name, and what a tokenizer needs to hold a chat.

`chat_template.jinja` is the template that a saved tokenizer carries. `chat_template_training.jinja` is the same
with generation tags, for TRL's `chat_template_path` and `assistant_only_loss`. Message text that holds the text of a
special token becomes that token, as with most templates on the Hub; for text from strangers transformers offers
`apply_chat_template(..., sanitize_control_tokens=True)`. Tool-call arguments are safe either way.
"""

from copy import deepcopy
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tokenization.response_template import RESPONSE_TEMPLATE
from tokenization.special_tokens import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, SPECIAL_TOKENS, UNK_TOKEN

CHAT_TEMPLATE_FILES = {
    "default": Path(__file__).with_name("chat_template.jinja"),
    "training": Path(__file__).with_name("chat_template_training.jinja"),
}

_TURN_BEGINS = "{#- The tokens that the model writes begin here. -#}"
_TURN_ENDS = "{#- The tokens that the model writes end here. -#}"
_LICENCE = "{#- SPDX-License-Identifier: Apache-2.0 -#}\n"
_TRAINING_HEAD = """\
{#-
    Training variant of chat_template.jinja, which it equals but for this head and the generation tags around the
    assistant turn: its content, its tool calls and the closing </longcat_s>. Both render the same text. With these
    tags return_assistant_tokens_mask=True, and so TRL's assistant_only_loss, marks exactly those tokens.
-#}
"""


def load_chat_template(name: str = "default") -> str:
    """Return the text of a chat template.

    Args:
        name (`str`, *optional*, defaults to `"default"`): `"default"` or `"training"`.

    Raises:
        `ValueError`: There is no template of this name.
    """
    if name not in CHAT_TEMPLATE_FILES:
        raise ValueError(f"no chat template named {name!r}, choose from {sorted(CHAT_TEMPLATE_FILES)}")
    return CHAT_TEMPLATE_FILES[name].read_text(encoding="utf-8")


def training_variant(template: str) -> str:
    """Put generation tags around the assistant turn of `chat_template.jinja`, or of your edited copy of it.

    Raises:
        `ValueError`: The comments that mark the assistant turn are missing.
    """
    if template.count(_TURN_BEGINS) != 1 or template.count(_TURN_ENDS) != 1 or _LICENCE not in template:
        raise ValueError("the template does not mark its licence line and one assistant turn")
    tagged = template.replace(_TURN_BEGINS, "{%- generation %}").replace(_TURN_ENDS, "{%- endgeneration %}")
    return tagged.replace(_LICENCE, _LICENCE + _TRAINING_HEAD, 1)


def attach_chat_format(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer LongCat's chat template, response template and named special tokens, in place."""
    tokenizer.chat_template = load_chat_template()
    tokenizer.response_template = deepcopy(RESPONSE_TEMPLATE)
    # transformers would only find the tokens that the template writes; these count in any message.
    vocabulary = tokenizer.get_vocab()
    tokenizer.chat_control_tokens = [token.content for token in SPECIAL_TOKENS if token.content in vocabulary]
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = BOS_TOKEN, EOS_TOKEN, PAD_TOKEN
    if UNK_TOKEN in vocabulary:
        tokenizer.unk_token = UNK_TOKEN


if __name__ == "__main__":
    # After an edit of chat_template.jinja: python -m tokenization.chat_templates
    CHAT_TEMPLATE_FILES["training"].write_text(training_variant(load_chat_template()), encoding="utf-8")
