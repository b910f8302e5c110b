# SPDX-License-Identifier: Apache-2.0
"""The Hub folder of an adapter, and the base model that an adapter names.

The folder has the adapter, changed n-gram rows if there are any, the tokenizer, and the code of the base model. With
this code the folder needs no other repository's: that of the released model does not run on transformers 5.

An adapter names its base in `adapter_config.json`, in its pages and in the header of its changed rows. A path on this
machine would load nowhere else, so that on the Hub all of them name a repository.
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
from tokenization.chat_templates import is_training_template, load_chat_template

BASE_KEY = "base_model_name_or_path"  # in `adapter_config.json`


def named_base(folder: Path) -> str:
    """The base that the adapter in a folder names; empty if it names none."""
    return read_json(folder / ADAPTER_CONFIG).get(BASE_KEY) or ""


def checked_base(folder: Path, files: list[str], base_model: str | None) -> str | None:
    """The base that an adapter will name on the Hub; `None` for a whole model.

    Args:
        folder (`Path`): Folder to upload.
        files (`list[str]`): The files in it that will be uploaded.
        base_model (`str`, *optional*): The base that the user asks for, in place of the one that the adapter names.

    Raises:
        `ValueError`: the base is not the name of a repository on the Hub, or `base_model` is given for a whole model.
    """
    if not is_adapter(files):
        if base_model is not None:
            raise ValueError(f"`base_model` is for adapters, and {folder} has a whole model; leave it out")
        return None
    base = named_base(folder)
    if base_model is not None:
        if not is_repo_id(base_model):
            raise ValueError(
                f"`base_model` {base_model!r} is not the name of a repository on the Hub; write it as user/name"
            )
        return base_model
    if not is_repo_id(base) or Path(base).exists():
        raise ValueError(
            f"`{BASE_KEY}` in {folder / ADAPTER_CONFIG} is {base!r}, which is not a name on the Hub: push the base "
            "first, then give its name with `--base-model user/name`"
        )
    return base


@contextmanager
def with_base(folder: Path, files: list[str], base: str | None) -> Iterator[Path]:
    """A view of the folder in which the adapter names `base`: in its configuration, its pages and its changed rows.

    The folder itself does not change. All other files in the view are links to those in the folder.
    """
    if base is None or base == (named := named_base(folder)):
        yield folder
        return
    # Not within a longer path, nor in a word that contains the name; "(?!)" matches nothing.
    old_name = re.compile(rf"(?<![\w/.-]){re.escape(named)}(?![\w/-])" if named else "(?!)")
    with tempfile.TemporaryDirectory() as temporary:
        view = Path(temporary)
        for name in files:
            source, target = (folder / name).absolute(), view / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name == ADAPTER_CONFIG:
                config = json.loads(source.read_text(encoding="utf-8"))
                target.write_text(json.dumps({**config, BASE_KEY: base}, indent=2) + "\n", encoding="utf-8")
            elif source.suffix == ".md":
                text = source.read_text(encoding="utf-8")
                target.write_text(old_name.sub(lambda _: base, text), encoding="utf-8")
            elif name == ROW_DELTA_FILE:
                copy_row_delta(source, target, base)
            else:
                target.symlink_to(source)
        yield view


def copy_row_delta(source: Path, target: Path, base: str) -> None:
    """Copy a file of changed rows, with `base` as the `base_model` in its header."""
    with source.open("rb") as old, target.open("wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        header["__metadata__"]["base_model"] = base
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8 bytes
        new.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(old, new)


def tokenizer_for_use(folder: Path) -> Any:
    """The tokenizer in `folder`, without the folder's path and without what only trainers need."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    forget_origin(tokenizer)
    if is_training_template(tokenizer.chat_template):
        # Both write the same text; only trainers need the generation tags.
        tokenizer.chat_template = load_chat_template()
    return tokenizer


def write_adapter_folder(adapter_dir: Path, folder: Path, base_model: str | None) -> None:
    """Fill an existing folder with everything but the card.

    Args:
        adapter_dir (`Path`): Where the adapter was saved.
        folder (`Path`): Folder to fill.
        base_model (`str`): Name of the base on the Hub, in place of the folder that the adapter was trained from.

    Raises:
        `ValueError`: `base_model` is `None`.
    """
    if base_model is None:
        raise ValueError("the card of an adapter needs `base_model` in `facts`: the name of its base on the Hub")
    settings = json.loads((adapter_dir / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    settings |= {BASE_KEY: base_model, "inference_mode": True}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copyfile(adapter_dir / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    if (adapter_dir / ROW_DELTA_FILE).is_file():
        copy_row_delta(adapter_dir / ROW_DELTA_FILE, folder / ROW_DELTA_FILE, base_model)
    for path in Path(modeling_longcat_lite.__file__).parent.glob("*.py"):
        if path.stem != "__init__":
            shutil.copyfile(path, folder / path.name)
    tokenizer_for_use(adapter_dir).save_pretrained(folder)


__all__ = ["checked_base", "tokenizer_for_use", "with_base", "write_adapter_folder"]
