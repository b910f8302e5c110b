# SPDX-License-Identifier: Apache-2.0
"""Train a byte-level BPE with LongCat's special tokens.

```
python -m tokenization.train_tokenizer --text corpus.txt --vocab-size 4096 --output my-tokenizer
```

The vocabulary has no gaps: the special tokens in the order of `special_tokens.py`, the 256 bytes, then the merges.
There is no normalizer, so `decode(encode(text))` is `text`.
"""

import argparse
import logging
import re
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tokenization.assemble_tokenizer import save_tokenizer
from tokenization.chat_templates import attach_chat_format
from tokenization.command_line import CommandParser, run_command
from tokenization.special_tokens import MODEL_MAX_LENGTH, PADDING_SIDE, SPECIAL_TOKENS

logger = logging.getLogger(__name__)

_SPECIAL_TEXT = re.compile("|".join(re.escape(token.content) for token in SPECIAL_TOKENS))
_SMALLEST = len(SPECIAL_TOKENS) + 256


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, model_max_length: int = MODEL_MAX_LENGTH
) -> PreTrainedTokenizerFast:
    """Train a tokenizer that is ready for chat; the same texts give the same tokenizer.

    Neither `<longcat_s>` nor `</longcat_s>` is added to a text: the chat template writes the end of every turn, and a
    second one would teach the model to stop twice. (A flag of the released tokenizer appends it; converters turn it
    off.)

    Args:
        texts (`Iterable[str]`): Training texts. Special tokens in them are skipped.
        vocab_size (`int`):
            Number of tokens, at least 275. Too little text gives fewer tokens and a warning, so use `len(tokenizer)`
            as the size of the model's vocabulary.
        model_max_length (`int`, *optional*, defaults to 327680): Longest sequence of the model, in tokens.

    Returns:
        `PreTrainedTokenizerFast`: With chat template and response template, and padding on the left.

    Raises:
        `ValueError`: `texts` is one string, or `vocab_size` leaves no room for the special tokens and the bytes.
    """
    if isinstance(texts, str):
        raise ValueError("texts must be an iterable of strings, not one string: write [text]")
    if vocab_size < _SMALLEST:
        raise ValueError(f"vocab_size must be at least {_SMALLEST} (special tokens and bytes), got {vocab_size}")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_added_tokens(),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_without_special_tokens(texts), trainer)
    # The trainer marks every token it is given as special; adding them again restores the flags of the table.
    backend.add_tokens(_added_tokens())

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=model_max_length, padding_side=PADDING_SIDE
    )
    attach_chat_format(tokenizer)
    if len(tokenizer) < vocab_size:
        logger.warning("the texts give only %d tokens, %d were asked for", len(tokenizer), vocab_size)
    return tokenizer


def _added_tokens() -> list[AddedToken]:
    # Matched in the text before any normalization, so that a marker is one token wherever it appears.
    return [AddedToken(token.content, normalized=False, special=token.skipped) for token in SPECIAL_TOKENS]


def _without_special_tokens(texts: Iterable[str]) -> Iterator[str]:
    # Otherwise the merges would learn the letters of markers, which are never encoded letter by letter.
    for text in texts:
        yield from filter(None, _SPECIAL_TEXT.split(text))


def make_parser() -> CommandParser:
    parser = CommandParser("tokenization.train_tokenizer", "Train a byte-level BPE with LongCat's special tokens.")
    parser.add_shared("--text", required=True)
    parser.add_renamed("--files", "--text")
    parser.add_argument("--vocab-size", type=int, required=True, help=f"number of tokens, at least {_SMALLEST}")
    parser.add_shared("--output", required=True, help="folder to write, new or empty")
    parser.add_argument(
        "--model-max-length", type=int, default=MODEL_MAX_LENGTH, help="longest sequence of the model, in tokens"
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    texts = (path.read_text(encoding="utf-8") for path in arguments.text)
    tokenizer = train_tokenizer(texts, arguments.vocab_size, arguments.model_max_length)
    save_tokenizer(tokenizer, arguments.output)
    print(f"{len(tokenizer)} tokens in {arguments.output}")


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
