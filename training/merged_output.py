# SPDX-License-Identifier: Apache-2.0
"""A trained adapter merged into the model it was trained on, as a folder that loads by itself.

The base is read anew, on the CPU and in full: one that was held in 4 bits for training would round the merged weights.
Table rows that were trained beside the adapter come along.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from modeling_longcat_lite import ROW_DELTA_FILE
from training.folder_replacement import replaced_folder


@dataclass
class OutputArguments:
    """What is written beside TRL's output."""

    merge_adapter: bool = field(
        default=False,
        metadata={"help": "Also write the model with the adapter merged into it, to `merged` in the output folder."},
    )


def write_merged(
    adapter: Path, output: Path, tokenizer: PreTrainedTokenizerBase | None = None, **model_options: Any
) -> None:
    """Write `output` beside itself and rename it, so that never half a model stands there; an older one is replaced.

    Args:
        adapter (`Path`): Folder of a saved adapter, which names its base.
        output (`Path`): Folder to write.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): To save with the model.
        model_options: As for `from_pretrained` of the base: `dtype`, `trust_remote_code`, `ngram_tables`, ...
    """
    base = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
    model: Any = AutoModelForCausalLM.from_pretrained(base, **model_options)
    if (adapter / ROW_DELTA_FILE).is_file():
        model.load_ngram_rows(adapter)
    merged: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    with replaced_folder(output) as folder:
        merged.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


__all__ = ["OutputArguments", "write_merged"]
