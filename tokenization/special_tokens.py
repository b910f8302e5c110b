# SPDX-License-Identifier: Apache-2.0
"""The special tokens of LongCat-Flash-Lite and their ids.

Ids 1, 2 and 3 are those of the released tokenizer. Id 0 is assumed to be the unknown token: the released n-gram hash
fills the positions before a text with 0, so it cannot be an ordinary token. The released ids of the other tokens are
not known; a tokenizer trained here numbers them in the order of this table.
"""

from typing import NamedTuple


class SpecialToken(NamedTuple):
    """One row of the table.

    Args:
        id (`int`): Id in a tokenizer trained here.
        content (`str`): The text that is matched as one token.
        skipped (`bool`):
            Whether `decode(..., skip_special_tokens=True)` drops it. It keeps the tokens that structure an assistant
            turn, so that a tool call survives the decoding in pipelines.
        released (`bool`): Whether the id is that of the released tokenizer.
    """

    id: int
    content: str
    skipped: bool
    released: bool


SPECIAL_TOKENS = (
    SpecialToken(0, "<longcat_unk>", True, False),
    SpecialToken(1, "<longcat_s>", True, True),
    SpecialToken(2, "</longcat_s>", True, True),
    SpecialToken(3, "<longcat_pad>", True, True),
    SpecialToken(4, "<longcat_system>", True, False),
    SpecialToken(5, "<longcat_user>", True, False),
    SpecialToken(6, "<longcat_assistant>", True, False),
    SpecialToken(7, "<longcat_think>", False, False),
    SpecialToken(8, "</longcat_think>", False, False),
    SpecialToken(9, "<longcat_tool_declare>", False, False),
    SpecialToken(10, "</longcat_tool_declare>", False, False),
    SpecialToken(11, "<longcat_tool_call>", False, False),
    SpecialToken(12, "</longcat_tool_call>", False, False),
    SpecialToken(13, "<longcat_tool_response>", False, False),
    SpecialToken(14, "</longcat_tool_response>", False, False),
    SpecialToken(15, "<longcat_arg_key>", False, False),
    SpecialToken(16, "</longcat_arg_key>", False, False),
    SpecialToken(17, "<longcat_arg_value>", False, False),
    SpecialToken(18, "</longcat_arg_value>", False, False),
)

UNK_TOKEN = "<longcat_unk>"
BOS_TOKEN = "<longcat_s>"
EOS_TOKEN = "</longcat_s>"
PAD_TOKEN = "<longcat_pad>"

# Batched generation needs padding on the left; TRL's collators pad on the right regardless.
PADDING_SIDE = "left"

# Positions that the released model was trained for.
MODEL_MAX_LENGTH = 327_680
