# SPDX-License-Identifier: Apache-2.0
"""The Hub folder of an adapter: the adapter, changed n-gram rows, tokenizer, and the code of the base model.

The code makes the folder enough by itself: released repositories of the base hold code that does not run any more.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

import modeling_longcat_lite
from eval.model_identity import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from model_cards.adapter_base import rename_in_delta
from modeling_longcat_lite import ROW_DELTA_FILE
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


__all__ = ["tokenizer_for_use", "write_adapter_folder"]
