# SPDX-License-Identifier: Apache-2.0
"""The Hub folder of an adapter: the adapter, changed n-gram rows, tokenizer, and the code of the base model.

The code makes the folder enough by itself: released repositories of the base hold code that does not run any more.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

import modeling_longcat_lite
from eval.reports.results import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from model_cards.card_metadata import is_repo_id
from model_cards.training_record import read_json
from model_cards.upload_checks import is_adapter
from modeling_longcat_lite.ngram_row_files import ROW_DELTA_FILE
from tokenization.assemble_tokenizer import forget_origin
from tokenization.chat_templates import load_chat_template


def write_adapter_folder(adapter_dir: Path, folder: Path, base_model: str | None) -> None:
    """Fill an existing folder with everything but the card.

    Args:
        adapter_dir (`Path`): Where the adapter was saved.
        folder (`Path`): The folder to fill.
        base_model (`str`): The base as on the Hub, in place of the folder that it was trained from.

    Raises:
        `ValueError`: no base is known.
    """
    if base_model is None:
        raise ValueError("the card of an adapter needs `base_model` in `facts`: which model on the Hub it belongs to")
    settings = json.loads((adapter_dir / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if (adapter_dir / ROW_DELTA_FILE).is_file():
        rename_in_delta(adapter_dir / ROW_DELTA_FILE, folder / ROW_DELTA_FILE, base_model)  # it names its base too
    settings |= {"base_model_name_or_path": base_model, "inference_mode": True}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copyfile(adapter_dir / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    for path in Path(modeling_longcat_lite.__file__).parent.glob("*.py"):
        if path.stem != "__init__":
            shutil.copyfile(path, folder / path.name)
    tokenizer_for_use(adapter_dir).save_pretrained(folder)


def tokenizer_for_use(folder: Path) -> Any:
    """The tokenizer in `folder`, with nothing in it of where it lay, or of what only trainers need."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    forget_origin(tokenizer)
    if tokenizer.chat_template == load_chat_template("training"):
        # Same text; the generation tags are of use to trainers only.
        tokenizer.chat_template = load_chat_template()
    return tokenizer


KEY = "base_model_name_or_path"


def named_base(folder: Path) -> str:
    """The base that the adapter in a folder names; empty if it names none."""
    return read_json(folder / ADAPTER_CONFIG).get(KEY) or ""


def checked_base(folder: Path, files: list[str], base_model: str | None) -> str | None:
    """The base that an adapter is to name, `None` for a model: a path of this machine would load nowhere else.

    Raises:
        `ValueError`: naming the key, unless `base_model` says what to put there.
    """
    if not is_adapter(files):
        if base_model is not None:
            raise ValueError(f"`base_model` is for adapters, and {folder} holds a model")
        return None
    base = named_base(folder)
    if base_model is not None:
        if not is_repo_id(base_model):
            raise ValueError(f"`base_model` {base_model!r} is no name of a repository on the Hub, such as user/name")
        return base_model
    if not is_repo_id(base) or Path(base).exists():
        raise ValueError(
            f"`{KEY}` in {folder / ADAPTER_CONFIG} is {base!r}, no name on the Hub: push the base first, then "
            "give its name, `--base-model user/name`"
        )
    return base


@contextmanager
def with_base(folder: Path, files: list[str], base: str | None) -> Iterator[Path]:
    """A view of the folder in which the adapter names this base: its configuration, its pages, its changed rows.

    The folder stays as it is. Other files are links to those in it.
    """
    if base is None or base == (named := named_base(folder)):
        yield folder
        return
    # Not within a longer path, nor a word that has the name in it; an adapter without a name has nothing to replace.
    path = re.compile(rf"(?<![\w/.-]){re.escape(named)}(?![\w/-])" if named else "(?!)")
    with tempfile.TemporaryDirectory() as temporary:
        view = Path(temporary)
        for name in files:
            source, target = (folder / name).absolute(), view / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name == ADAPTER_CONFIG:
                config = json.loads(source.read_text(encoding="utf-8"))
                target.write_text(json.dumps({**config, KEY: base}, indent=2) + "\n", encoding="utf-8")
            elif source.suffix == ".md":
                text = source.read_text(encoding="utf-8")
                target.write_text(path.sub(lambda _: base, text), encoding="utf-8")
            elif name == ROW_DELTA_FILE:
                rename_in_delta(source, target, base)
            else:
                target.symlink_to(source)
        yield view


def rename_in_delta(source: Path, target: Path, base: str) -> None:
    """Copy a file of changed rows with another `base_model` in its header."""
    with source.open("rb") as old, target.open("wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        header["__metadata__"]["base_model"] = base
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8 bytes
        new.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(old, new)


__all__ = ["checked_base", "rename_in_delta", "tokenizer_for_use", "with_base", "write_adapter_folder"]
