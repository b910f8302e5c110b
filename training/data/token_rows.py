# SPDX-License-Identifier: Apache-2.0
"""Text as rows of tokens for training from scratch: tokenized once, cut into rows, memory-mapped; some files held out.

The text is the standard library of the running Python, sources with their documentation, and the user's files, or
either alone. Documents follow one another, each closed by the end-of-sequence token, at which n-grams start afresh. A
hash of a file's name alone decides whether it is held out.

Shapes: B batch rows, T tokens.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk

from modeling_longcat_lite.whole_files import replaced_folder
from tokenization.number_options import check_number
from tokenization.train_tokenizer import train_tokenizer
from training.data.local_text import documents

FACTS = "text.json"
SIDES = ("train", "held_out")


@dataclass(frozen=True)
class TextSettings:
    """What the text consists of.

    Args:
        vocabulary (`int`): Tokens of the tokenizer, which is trained on the training side.
        length (`int`): T, tokens of a row.
        held_out_percent (`int`): Share of the files that is held out.
        held_out_rows (`int`): Most held-out rows; they are taken evenly from all.
        files (`list[str]`): UTF-8 text files, in addition to the standard library.
        standard_library (`bool`): Whether its files are read.
    """

    vocabulary: int = 2048
    length: int = 256
    held_out_percent: int = 5
    held_out_rows: int = 256
    files: list[str] = field(default_factory=list)
    standard_library: bool = True

    def __post_init__(self):
        for name in ("vocabulary", "length", "held_out_rows"):
            check_number(name, getattr(self, name), least=1)
        check_number("held_out_percent", self.held_out_percent, above=0, below=100)


def is_held_out(name: str, percent: int) -> bool:
    """Whether the file of this name is held out."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 100 < percent


def read_documents(settings: TextSettings) -> list[tuple[str, str]]:
    """(name, text) of all files, each name once."""
    found = dict(documents()) if settings.standard_library else {}
    found |= dict(documents([Path(file) for file in settings.files])) if settings.files else {}
    if not found:
        raise ValueError("`text`: `standard_library` is false and `files` is empty, so there is no text")
    return list(found.items())


def cut_rows(texts: Iterable[str], tokenizer: Any, length: int) -> torch.Tensor:
    """Consecutive texts as int32 ids `[B, T]`, an end after each; a last, incomplete row is left out."""
    stream: list[int] = []
    for ids in tokenizer(list(texts))["input_ids"]:
        stream += [*ids, tokenizer.eos_token_id]
    rows = len(stream) // length
    return torch.tensor(stream[: rows * length], dtype=torch.int32).view(rows, length)


def prepare_text(folder: Path, settings: TextSettings) -> dict[str, Any]:
    """Writes tokenizer, `train` and `held_out` rows and `text.json` to `folder`, unless they exist.

    Returns:
        The facts: settings, tokens, bytes and files of both sides, and `sha256`, a hash of all rows.

    Raises:
        `ValueError`: A side has no row, or `folder` holds a text of other settings.
    """
    if (folder / FACTS).is_file():
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts["settings"] != asdict(settings):
            raise ValueError(f"{folder} holds a text of other settings: remove it, or choose another `--text`")
        return facts
    sides: dict[str, list[str]] = {side: [] for side in SIDES}
    for name, text in read_documents(settings):
        sides[SIDES[is_held_out(name, settings.held_out_percent)]].append(text)
    for side, texts in sides.items():
        if not texts:
            raise ValueError(f"`text` leaves no file for the {side} side: give more files or another percentage")
    tokenizer = train_tokenizer(sides["train"], settings.vocabulary)
    facts = {"settings": asdict(settings), "vocabulary": len(tokenizer)}
    digest = hashlib.sha256()
    with replaced_folder(folder) as building:
        tokenizer.save_pretrained(building / "tokenizer")
        for side, texts in sides.items():
            rows = cut_rows(texts, tokenizer, settings.length)
            if side == "held_out" and len(rows) > settings.held_out_rows:
                rows = rows[torch.linspace(0, len(rows) - 1, settings.held_out_rows).long()]
            if not len(rows):
                raise ValueError(
                    f"`text`: the {side} side is shorter than one row of {settings.length} tokens: give more files"
                )
            digest.update(rows.numpy().tobytes())
            Dataset.from_dict({"input_ids": rows.numpy()}).save_to_disk(str(building / side))
            size = sum(len(text.encode()) for text in texts)
            facts[side] = {"files": len(texts), "bytes": size, "tokens": rows.numel()}
        facts["sha256"] = digest.hexdigest()
        (building / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def load_side(folder: Path, side: str) -> Dataset:
    """The rows of a side, memory-mapped: `input_ids` `[T]`."""
    return load_from_disk(str(folder / side))


__all__ = ["FACTS", "TextSettings", "load_side", "prepare_text"]
