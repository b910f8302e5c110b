# SPDX-License-Identifier: Apache-2.0
"""
```bash
python -m eval.checkpoints.merge_rows --model path/to/base --deltas outputs/my-adapter --output outputs/merged
```

Writes a checkpoint with changed n-gram rows in their place: a copy of the model's folder, in which those rows are
overwritten. Nothing but the rows is ever in memory. Deltas are files or folders, the later one wins; a delta in the
model's own folder is the first of them. An adapter is not merged: that is PEFT's `merge_and_unload`.
"""

import argparse
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import logging

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.checkpoint_files import folder_weights
from modeling_longcat_lite.ngram_quantization import row_format
from modeling_longcat_lite.ngram_row_files import ROW_DELTA_FILE, other_base, read_row_delta, sample_base
from modeling_longcat_lite.ngram_table_files import find_tables
from modeling_longcat_lite.whole_files import check_finished, replaced_folder

logger = logging.get_logger(__name__)

TABLE = "ngram_embeddings.embedders.{}.weight"


def merge(model: Path, deltas: Sequence[Path], output: Path) -> int:
    """Writes the folder `output`; returns how many rows were set. Beside its place first, then renamed.

    Raises:
        `ValueError`: naming the option, file, field, tensor or row that does not fit; nothing is left of the copy.
    """
    check_finished(model)
    config = LongCatLiteConfig.from_pretrained(model)
    own = [model / ROW_DELTA_FILE] if (model / ROW_DELTA_FILE).is_file() else []
    if not [*own, *deltas]:
        raise ValueError(f"`--deltas`: none is given, and {model} holds no changed rows")
    if output.exists():
        raise ValueError(f"`--output`: {output} is there already; name a folder that is not")
    if row_format(config.ngram_table_bits).is_packed:
        raise ValueError(
            f"`--model`: its tables have {config.ngram_table_bits} bits, to which changed rows would have to be "
            "rounded; merge into the model they were made from, then quantize"
        )
    changes = [read_row_delta(delta, config) for delta in [*own, *deltas]]  # before anything is written
    weights = folder_weights(model)
    LongCatLiteForCausalLM.check_weights(config, weights.places)
    where = {name: Path(file) for name, (file, _) in weights.places.items()}
    tell_other_bases(where, config, [*own, *deltas])
    prefix = "model." if f"model.{TABLE.format(0)}" in weights.places else ""
    names = [prefix + TABLE.format(i) for i in range(config.num_subtables)]
    with replaced_folder(output) as beside:
        left_out = shutil.ignore_patterns(ROW_DELTA_FILE, "checkpoint-*", "*.partial")
        shutil.copytree(model, beside, ignore=left_out, dirs_exist_ok=True)
        files = [str(beside / Path(file).name) for file in weights.files]
        tables = find_tables(files, names, config.subtable_sizes, config.subtable_width)
        for changed in changes:
            for table, (row_ids, rows) in zip(tables, changed, strict=True):
                overwrite(Path(table.path), table.offset, row_ids, rows.to(table.dtype))
    return sum(len(row_ids) for changed in changes for row_ids, _ in changed)


def tell_other_bases(where: Mapping[str, Path], config: LongCatLiteConfig, deltas: Sequence[Path]) -> None:
    """Warns of deltas that were made from another model than this one, whose tensors are in the files `where`."""

    def read(name: str, ids: torch.Tensor) -> torch.Tensor | None:
        name = "embed_tokens.weight" if name == "words" else TABLE.format(name.removeprefix("table_"))
        name = f"model.{name}" if f"model.{name}" in where else name
        if name not in where:
            return None
        with safe_open(where[name], framework="pt") as file:
            rows = file.get_slice(name)
            return torch.cat([rows[i : i + 1] for i in ids.tolist()])

    base_sample = sample_base(config, read)
    for delta in deltas:
        if (problem := other_base(delta, base_sample)) is not None:
            logger.warning(problem)


def overwrite(path: Path, offset: int, row_ids: torch.Tensor, rows: torch.Tensor) -> None:
    """Sets rows `[n, W]` of a table that begins at `offset` of a file."""
    row_bytes = rows.shape[1] * rows.dtype.itemsize
    values = rows.contiguous().view(torch.uint8).numpy()  # [n, bytes]
    with path.open("r+b") as file:
        for place, row_id in enumerate(row_ids.tolist()):
            file.seek(offset + row_id * row_bytes)
            file.write(values[place].data)
        file.flush()
        os.fsync(file.fileno())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Puts changed n-gram rows into a checkpoint.")
    parser.add_argument("--model", type=Path, required=True, help="folder of the base checkpoint; it stays as it is")
    parser.add_argument("--deltas", type=Path, nargs="*", default=[], help="files or folders, the later one wins")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    count = merge(options.model, options.deltas, options.output)
    print(f"{options.output}: {count:,} rows set")


if __name__ == "__main__":
    main()
