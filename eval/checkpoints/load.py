# SPDX-License-Identifier: Apache-2.0
"""."""

import hashlib
from pathlib import Path

from transformers import AutoTokenizer

from modeling_longcat_lite import LongCatLiteConfig


def load_config(model: str | None) -> LongCatLiteConfig:
    """The config of a folder or Hub name; the released model's by default.

    Raises:
        `ValueError`: when it has no n-gram tables.
    """
    config = LongCatLiteConfig.from_pretrained(model) if model else LongCatLiteConfig()
    if not config.use_ngram_embedding:
        raise ValueError(f"{model}: `use_ngram_embedding` is false, so that there is no table to read")
    return config


def load_tokenizer(folder: str, config: LongCatLiteConfig):
    """A tokenizer whose tokens the config has.

    Raises:
        `ValueError`: naming the folder, when it has more.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"{folder}: {len(tokenizer)} tokens, above `vocab_size` ({config.vocab_size}) of the model")
    return tokenizer


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def check_model_folder(folder: Path) -> None:
    """Refuse what is no folder of a saved model.

    Raises:
        `ValueError`: naming the folder and what it lacks.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"`--model` {folder} has no config.json: give the folder of a saved model. One from the Hub is fetched "
            "with `hf download REPOSITORY --local-dir FOLDER`."
        )
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"`--model` {folder} has no tokenizer.json: save the tokenizer there, or assemble one with "
            "`python -m tokenization.assemble_tokenizer`."
        )


def tokenizer_hash(folder: Path) -> str:
    """SHA-256, in hexadecimal, of the tokenizer's files and the chat template in `folder`."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    return digest.hexdigest()


__all__ = ["TOKENIZER_FILES", "check_model_folder", "load_config", "load_tokenizer", "tokenizer_hash"]
