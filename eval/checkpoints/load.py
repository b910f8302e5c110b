# SPDX-License-Identifier: Apache-2.0
"""The model that a command is asked about, resolved once: `folder = ModelFolder(arguments.model)`.

Everything is read when it is first asked for and then kept, so that a mistake is found before the weights are loaded
and the weights are hashed only once.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from eval.reports.files import portable_path
from eval.reports.results import model_identity, result_file
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM

RELEASED = "LongCat-Flash-Lite as released"  # the configuration that is meant where no model is given
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
ASSEMBLE = "`python -m tokenization.assemble_tokenizer`"


class ModelFolder:
    """A saved model and its tokenizer.

    Args:
        source (`str` or `Path`, *optional*): Folder of the model, or its name on the Hub. Without one, `config` is
            that of the released model and nothing else can be read.
        tokenizer (`str` or `Path`, *optional*): Folder or name of a tokenizer other than the model's own.
    """

    def __init__(self, source: str | Path | None, tokenizer: str | Path | None = None):
        self.source, self.tokenizer_source = source, tokenizer or source

    @property
    def path(self) -> Path:
        """The folder.

        Raises:
            `ValueError`: if no model was given.
        """
        if self.source is None:
            raise ValueError(
                "`--model` is needed here: the released configuration alone has no weights and no tokenizer"
            )
        return Path(self.source)

    @property
    def shown(self) -> str:
        """What reports call the model: its path, without what only this machine has."""
        return RELEASED if self.source is None else portable_path(self.source)

    @cached_property
    def config(self) -> LongCatLiteConfig:
        """The configuration."""
        return LongCatLiteConfig() if self.source is None else LongCatLiteConfig.from_pretrained(self.source)

    @property
    def ngram_config(self) -> LongCatLiteConfig:
        """The configuration of a model that has n-gram tables.

        Raises:
            `ValueError`: if this one has none.
        """
        if not self.config.use_ngram_embedding:
            raise ValueError(f"{self.source}: `use_ngram_embedding` is false: the model has no n-gram tables")
        return self.config

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            `ValueError`: if it has more tokens than the model.
        """
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_source)
        if len(tokenizer) > self.config.vocab_size:
            raise ValueError(
                f"{self.tokenizer_source}: {len(tokenizer)} tokens, above `vocab_size` ({self.config.vocab_size}) of "
                "the model"
            )
        return tokenizer

    @cached_property
    def identity(self) -> dict[str, str]:
        """Name and hashes, see [`~eval.reports.results.model_identity`]."""
        return model_identity(self.path)

    @cached_property
    def tokenizer_sha256(self) -> str:
        """SHA-256, in hexadecimal, of the tokenizer's files and the chat template."""
        digest = hashlib.sha256()
        for name in TOKENIZER_FILES:
            if (self.path / name).is_file():
                digest.update(name.encode() + (self.path / name).read_bytes())
        return digest.hexdigest()

    def check(self) -> None:
        """Refuse a folder without a model or a tokenizer.

        Raises:
            `ValueError`: naming the folder and the missing file.
        """
        if not (self.path / "config.json").is_file():
            raise ValueError(
                f"`--model` {self.source} has no config.json: give the folder of a saved model. `hf download "
                "REPOSITORY --local-dir FOLDER` fetches one from the Hub."
            )
        if not (self.path / "tokenizer.json").is_file():
            raise ValueError(
                f"`--model` {self.source} has no tokenizer.json: save the tokenizer there, or assemble one with "
                f"{ASSEMBLE}."
            )

    def check_chat_template(self) -> None:
        """Refuse a tokenizer that cannot render a conversation.

        Raises:
            `ValueError`: naming the folder.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"the tokenizer in `--model` {self.source} has no chat template, which is needed here: assemble one "
                f"with {ASSEMBLE}."
            )

    def load(self, **options: Any) -> LongCatLiteForCausalLM:
        """The model, ready for evaluation; `options` are those of `from_pretrained`."""
        return LongCatLiteForCausalLM.from_pretrained(self.source, **options).eval()

    def result_file(self, evaluation: str, results: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The content of a result file about this model, see [`~eval.reports.results.result_file`]."""
        return result_file(self.identity, evaluation, results, **more)


__all__ = ["RELEASED", "ModelFolder"]
