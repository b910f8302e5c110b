# SPDX-License-Identifier: Apache-2.0
"""Give a downloaded LongCat tokenizer the chat format of this repository.

```
python -m tokenization.assemble_tokenizer path/to/LongCat-Flash-Lite my-tokenizer
```

Vocabulary and merges stay as they are. What changes: the chat template, the response template, padding on the
left, and no end token is appended to a text (the released configuration has a flag for that).
"""

import argparse
import logging
import shutil
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tokenization.chat_templates import attach_chat_format
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

    A warning tells which special tokens the source does not know, and shows both texts where its own chat template
    lays out a plain conversation differently.

    Args:
        source_dir (`str` or `Path`):
            Folder with the downloaded `tokenizer.json`. No Python in it is run; its chat template is rendered, in
            transformers' sandbox.
        output_dir (`str` or `Path`): Folder to write, new or empty. It appears complete or not at all.

    Returns:
        `PreTrainedTokenizerFast`: The tokenizer that was saved.

    Raises:
        `FileNotFoundError`: There is no `tokenizer.json` in `source_dir`.
        `FileExistsError`: `output_dir` is not empty.
        `ValueError`: A special token is not at its released id.
    """
    source_dir = Path(source_dir)
    if not (source_dir / "tokenizer.json").is_file():
        raise FileNotFoundError(f"no tokenizer.json in {source_dir}")
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
    # A tokenizer without a limit of its own reports a number far beyond any model.
    tokenizer.model_max_length = min(tokenizer.model_max_length, MODEL_MAX_LENGTH)
    save_tokenizer(tokenizer, output_dir)
    return tokenizer


def forget_origin(tokenizer: PreTrainedTokenizerBase) -> None:
    """Drop how a tokenizer was loaded from what it saves: no setting, though transformers would write it as one."""
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, output_dir: str | Path) -> None:
    """Save a tokenizer in one step: write a folder beside `output_dir`, then rename it.

    Raises:
        `FileExistsError`: `output_dir` is a file or a folder that is not empty.
    """
    output_dir = Path(output_dir).absolute()
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir} exists and is not an empty folder")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = output_dir.with_name(f".{output_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        tokenizer.save_pretrained(partial)
        partial.replace(output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_special_tokens(vocabulary: dict[str, int]) -> None:
    for token in SPECIAL_TOKENS:
        found = vocabulary.get(token.content)
        if token.released and found != token.id:
            where = "is missing" if found is None else f"has id {found}"
            raise ValueError(f"special token {token.content} {where}, expected id {token.id}")
    if missing := [token.content for token in SPECIAL_TOKENS if token.content not in vocabulary]:
        logger.warning("the upstream tokenizer has no token for %s: spelled in pieces", ", ".join(missing))


def _layout(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.apply_chat_template(_PROBE, tokenize=False, add_generation_prompt=True))
    except (TemplateError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def main(arguments: list[str] | None = None) -> None:
    folders = make_parser().parse_args(arguments)
    tokenizer = assemble_tokenizer(folders.source, folders.output)
    print(f"{len(tokenizer)} tokens in {folders.output}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tokenization.assemble_tokenizer",
        description="Give a downloaded LongCat tokenizer the chat format of this repository.",
    )
    parser.add_argument("source", type=Path, help="folder with the downloaded tokenizer.json")
    parser.add_argument("output", type=Path, help="folder to write, new or empty")
    return parser


if __name__ == "__main__":
    main()
