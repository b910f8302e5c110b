# SPDX-License-Identifier: Apache-2.0
"""Writes a checkpoint with changed n-gram rows in their place.

    python -m eval.checkpoints.merge_rows --model path/to/base --deltas outputs/my-adapter --output outputs/merged

The result is a copy of the model's folder, in which those rows are overwritten; only the rows are in memory. Where
several deltas have a row, the last one wins; a delta in the model's own folder comes first. An adapter is not merged:
PEFT's `merge_and_unload` does that.

Shapes: W width of a table row.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import logging

from modeling_longcat_lite import LongCatLiteConfig
from modeling_longcat_lite.checkpoint_checks import check_checkpoint
from modeling_longcat_lite.checkpoint_files import folder_weights
from modeling_longcat_lite.checkpoint_names import ngram_table_names, spelling_of
from modeling_longcat_lite.ngram_quantization import row_format
from modeling_longcat_lite.ngram_row_files import ROW_DELTA_FILE, other_base, read_row_delta, sample_base
from modeling_longcat_lite.ngram_table_files import find_tables
from modeling_longcat_lite.whole_files import check_finished, replaced_folder
from tokenization.command_line import CommandParser, run_command

logger = logging.get_logger("eval.checkpoints.merge_rows")


def merge(model: Path, deltas: Sequence[Path], output: Path) -> int:
    """Writes the folder `output`, and returns the number of rows that were set.

    Raises:
        `ValueError`: naming the option, file, field, tensor or row that does not fit; nothing is left of the copy.
    """
    check_finished(model)
    config = LongCatLiteConfig.from_pretrained(model)
    own = [model / ROW_DELTA_FILE] if (model / ROW_DELTA_FILE).is_file() else []
    if not [*own, *deltas]:
        raise ValueError(f"`--deltas`: none is given, and {model} holds no changed rows")
    if output.exists():
        raise ValueError(f"`--output`: {output} is there already; name a new folder")
    if row_format(config.ngram_table_bits).is_packed:
        raise ValueError(
            f"`--model`: its tables have {config.ngram_table_bits} bits, to which changed rows would have to be "
            "rounded; merge into the model they were made from, then quantize"
        )
    changes = [read_row_delta(delta, config) for delta in [*own, *deltas]]  # before anything is written
    weights = folder_weights(model)
    check_checkpoint(config, weights.places)
    warn_of_other_bases({name: file for name, (file, _) in weights.places.items()}, config, [*own, *deltas])
    names = ngram_table_names(config, weights.places)
    with replaced_folder(output) as beside:
        left_out = shutil.ignore_patterns(ROW_DELTA_FILE, "checkpoint-*", "*.partial")
        shutil.copytree(model, beside, ignore=left_out, dirs_exist_ok=True)
        files = [str(beside / Path(file).name) for file in weights.files]
        tables = find_tables(files, names, config.subtable_sizes, config.subtable_width)
        for changed in changes:
            for table, (row_ids, rows) in zip(tables, changed, strict=True):
                overwrite(Path(table.path), table.offset, row_ids, rows.to(table.dtype))
    return sum(len(row_ids) for changed in changes for row_ids, _ in changed)


def warn_of_other_bases(files: Mapping[str, str], config: LongCatLiteConfig, deltas: Sequence[Path]) -> None:
    """Warns of deltas that were made from another model than the one whose tensors are in `files`, by name."""
    tables, words = ngram_table_names(config, files), spelling_of(files)("model.embed_tokens.weight")

    def read(name: str, ids: torch.Tensor) -> torch.Tensor | None:
        name = words if name == "words" else tables[int(name.removeprefix("table_"))]
        if name not in files:
            return None
        with safe_open(files[name], framework="pt") as file:
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


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser(
        "eval.checkpoints.merge_rows", "Writes a checkpoint with changed n-gram rows in their place."
    )
    parser.add_shared("--model", type=Path, required=True, help="folder of the base checkpoint, which is only read")
    parser.add_argument(
        "--deltas", type=Path, nargs="*", default=[], metavar="DIR", help="files or folders of changed rows, in order"
    )
    parser.add_shared("--output", required=True, help="folder to write, which must not exist")
    return parser


def main(arguments) -> None:
    """Merges, and prints the number of rows."""
    count = merge(arguments.model, arguments.deltas, arguments.output)
    print(f"{arguments.output}: {count:,} rows set")


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
