# SPDX-License-Identifier: Apache-2.0
"""Give a downloaded LongCat tokenizer the chat format of this repository.

```
python -m tokenization.assemble_tokenizer path/to/LongCat-Flash-Lite my-tokenizer
```

The vocabulary and the merges do not change. The chat template and the response template are replaced, padding goes to
the left, and no end token is appended to a text (a flag of the released configuration does that).
"""

import argparse
import logging
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_longcat_lite.whole_files import replaced_folder
from tokenization.chat_templates import attach_chat_format
from tokenization.command_line import CommandParser, run_command
from tokenization.special_tokens import MODEL_MAX_LENGTH, PADDING_SIDE, SPECIAL_TOKENS

logger = logging.getLogger(__name__)

_PROBE = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
]


def assemble_tokenizer(source_dir: str | Path, output_dir: str | Path) -> PreTrainedTokenizerFast:
    """Check a downloaded tokenizer, attach LongCat's chat format and save the result.

    Warnings name the special tokens that the source does not know, and show both texts if its own chat template
    writes a plain conversation differently.

    Args:
        source_dir (`str` or `Path`):
            Folder with the downloaded `tokenizer.json`. None of its Python code runs; its chat template is rendered in
            transformers' sandbox.
        output_dir (`str` or `Path`): Folder to write, new or empty. It appears complete or not at all.

    Returns:
        `PreTrainedTokenizerFast`: The tokenizer that was saved.

    Raises:
        `FileNotFoundError`: there is no `tokenizer.json` in `source_dir`.
        `FileExistsError`: `output_dir` is not empty.
        `ValueError`: a special token is not at its released id.
    """
    source_dir = Path(source_dir)
    if not (source_dir / "tokenizer.json").is_file():
        raise FileNotFoundError(f"no tokenizer.json in {source_dir}; download the tokenizer there first")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        source_dir, padding_side=PADDING_SIDE, add_bos_token=False, add_eos_token=False
    )
    forget_origin(tokenizer)
    _check_special_tokens(tokenizer.get_vocab())
    upstream_layout = _layout(tokenizer) if tokenizer.chat_template else None
    attach_chat_format(tokenizer)
    if upstream_layout is not None and upstream_layout != _layout(tokenizer):
        logger.warning(
            "the upstream chat template writes %r where ours writes %r", upstream_layout, _layout(tokenizer)
        )
    # Without a limit, a tokenizer reports a number far beyond any model.
    tokenizer.model_max_length = min(tokenizer.model_max_length, MODEL_MAX_LENGTH)
    save_tokenizer(tokenizer, output_dir)
    return tokenizer


def forget_origin(tokenizer: PreTrainedTokenizerBase) -> None:
    """Remove how a tokenizer was loaded from what it will save: transformers would write it as a setting."""
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, output_dir: str | Path) -> None:
    """Save a tokenizer in one step: `output_dir` appears complete or not at all.

    Raises:
        `FileExistsError`: `output_dir` is a file, or a folder that is not empty.
    """
    output_dir = Path(output_dir).absolute()
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir} exists and is not an empty folder; use another name")
    with replaced_folder(output_dir) as folder:
        tokenizer.save_pretrained(folder)


def _check_special_tokens(vocabulary: dict[str, int]) -> None:
    for token in SPECIAL_TOKENS:
        found = vocabulary.get(token.content)
        if token.released and found != token.id:
            where = "is missing" if found is None else f"has id {found}"
            raise ValueError(
                f"special token {token.content} {where}, expected id {token.id}; use a tokenizer of LongCat-Flash-Lite"
            )
    if missing := [token.content for token in SPECIAL_TOKENS if token.content not in vocabulary]:
        logger.warning(
            "the upstream tokenizer has no token for %s: they will be encoded in pieces", ", ".join(missing)
        )


def _layout(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.apply_chat_template(_PROBE, tokenize=False, add_generation_prompt=True))
    except (TemplateError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def make_parser() -> CommandParser:
    parser = CommandParser(
        "tokenization.assemble_tokenizer", "Give a downloaded LongCat tokenizer the chat format of this repository."
    )
    parser.add_argument("source", type=Path, help="folder with the downloaded tokenizer.json")
    parser.add_argument("output", type=Path, help="folder to write, new or empty")
    return parser


def main(arguments: argparse.Namespace) -> None:
    tokenizer = assemble_tokenizer(arguments.source, arguments.output)
    print(f"{len(tokenizer)} tokens in {arguments.output}")


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
