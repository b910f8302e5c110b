# SPDX-License-Identifier: Apache-2.0
"""Rewrites a checkpoint with packed n-gram tables: 8 or 4 bits a value, or any other packed row format.

    python -m eval.checkpoints.quantize --model CHECKPOINT --output CHECKPOINT-int8 --bits 8
    python -m eval.ngrams.quantization --model CHECKPOINT --converted CHECKPOINT-int8 ...

The tables are read in blocks of rows that fit into `--memory`; everything else is copied. The source is only read, and
the output appears under its name once it is complete. `eval.ngrams.quantization` measures what packing does to the
rows and to the loss of a model.

Shapes: R rows of a table, W width of a table row.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub import snapshot_download
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from eval.checkpoints.rewrite import Replacement, rewrite
from eval.reports.units import parse_size
from modeling_longcat_lite import LongCatLiteConfig
from modeling_longcat_lite.checkpoint_checks import check_checkpoint
from modeling_longcat_lite.checkpoint_files import folder_weights
from modeling_longcat_lite.checkpoint_header import StoredTensor, read_safetensors_header
from modeling_longcat_lite.checkpoint_names import is_ngram_table
from modeling_longcat_lite.ngram_quantization import ROW_FORMATS, RowFormat, row_format
from modeling_longcat_lite.whole_files import check_finished, replaced_folder
from tokenization.command_line import CommandParser, run_command

INDEX = "model.safetensors.index.json"
# Memory for a value while it is packed: as stored (4 bytes at most), in float32, scaled, rounded, as an integer.
BYTES_PER_VALUE = 18


def packed_pieces(file: BinaryIO, entry: StoredTensor, packed: RowFormat, block: int, name: str) -> Iterator[bytes]:
    """The packed rows of a table, `block` rows at a time."""
    rows, width = entry.shape
    dtype = row_format(16).dtypes[entry.dtype]
    file.seek(entry.begin)
    for begin in range(0, rows, block):
        count = min(block, rows - begin)
        data = bytearray(file.read(count * width * dtype.itemsize))
        if len(data) < count * width * dtype.itemsize:
            raise ValueError(f"`{name}` was truncated while it was read.")
        try:
            stored = packed.pack(torch.frombuffer(data, dtype=dtype).view(count, width))
        except ValueError as error:
            raise ValueError(f"`{name}`, in the {count} rows from {begin}: {error}") from error
        yield stored.numpy().tobytes()


def packed_tables(
    entries: dict[str, StoredTensor], packed: RowFormat, memory: int, path: Path
) -> dict[str, Replacement]:
    """What replaces the tables of a file, by their names.

    Raises:
        `ValueError`: naming file and table, when it does not hold floating-point rows, or `memory` is too small.
    """
    plain, found = row_format(16), {}
    ((dtype_name, _),) = packed.dtypes.items()
    for name, entry in entries.items():
        table = name.removesuffix(f".{plain.suffix}")
        if not is_ngram_table(name) or table == name:
            continue
        if entry.dtype not in plain.dtypes or len(entry.shape) != 2:
            raise ValueError(
                f"`{name}` in {path} is {entry.dtype} {list(entry.shape)}, but a table holds rows of "
                f"{' or '.join(plain.dtypes)}: take the file from the original checkpoint."
            )
        rows, width = entry.shape
        block = memory // (width * BYTES_PER_VALUE)
        if not block:
            raise ValueError(f"`--memory` must be at least {width * BYTES_PER_VALUE} bytes, a row of `{name}`.")
        pieces = partial(packed_pieces, packed=packed, block=block, name=name)
        shape = (rows, packed.columns(width))
        size = rows * packed.row_bytes(width, packed.dtypes[dtype_name])
        found[name] = Replacement(f"{table}.{packed.suffix}", dtype_name, shape, size, pieces)
    return found


def packed_config(source: Path, bits: int | str) -> dict:
    """The `config.json` of the output.

    Raises:
        `ValueError`: when the source has no tables, or has packed ones already.
    """
    config = LongCatLiteConfig.from_pretrained(source)
    if not config.use_ngram_embedding:
        raise ValueError(f"{source}: `use_ngram_embedding` is false, so there is no table to convert")
    stored = row_format(config.ngram_table_bits)
    if stored.is_packed:
        raise ValueError(f"{source}: its tables have {stored.describe(torch.uint8)}; convert the original instead")
    config.ngram_table_bits = bits
    config.validate_architecture()
    stated = json.loads((source / "config.json").read_text(encoding="utf-8"))
    return {**stated, "ngram_table_bits": bits}


def check_space(needed: int, target: Path):
    """Raises a `ValueError` that says what is missing on the target's disk, before anything is written."""
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise ValueError(f"{target} takes {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB left.")


def convert(source: Path, target: Path, bits: int | str, memory: int):
    """Writes the checkpoint `source` to the new folder `target`.

    Args:
        bits (`int` or `str`): `ngram_table_bits` of the output, which names a packed format.
        memory (`int`): Bytes that packing may take.

    Raises:
        `ValueError`: naming file and tensor, for whatever loading would refuse too; nothing is left of the output.
    """
    if target.exists():
        raise ValueError(f"{target} exists already; give another `--output`, or remove it.")
    check_finished(source)
    config = packed_config(source, bits)
    weights = folder_weights(source)
    check_checkpoint(LongCatLiteConfig.from_pretrained(source), weights.places)
    files = [Path(path) for path in weights.files]
    entries = {path: read_safetensors_header(path)[0] for path in files}
    changes = {path: packed_tables(entries[path], row_format(bits), memory, path) for path in files}
    size = sum(changes[path].get(name, entry).num_bytes for path in files for name, entry in entries[path].items())
    target.parent.mkdir(parents=True, exist_ok=True)
    check_space(size, target)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with replaced_folder(target) as folder, Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=size)
        for path in files:
            progress.update(task, description=path.name)
            rewrite(path, folder / path.name, changes[path], partial(progress.advance, task))
        copy_the_rest(source, folder, changes, size, config)


def copy_the_rest(source: Path, target: Path, changes: dict[Path, dict[str, Replacement]], size: int, config: dict):
    """Writes the new config and index; copies tokenizer, template, code, card and changed rows."""
    for path in source.iterdir():
        if path.is_file() and path not in changes and path.name != INDEX:
            if path.suffix == ".safetensors":
                read_safetensors_header(path)  # raises for a damaged file, which must not be passed on
            shutil.copy2(path, target)
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    index = json.loads((source / INDEX).read_bytes()) if (source / INDEX).exists() else {"weight_map": {}}
    if set(index["weight_map"].values()) == {path.name for path in changes}:  # otherwise an earlier save left it
        renamed = {old: new.name for tables in changes.values() for old, new in tables.items()}
        index["weight_map"] = {renamed.get(name, name): file for name, file in index["weight_map"].items()}
        index["metadata"] = {**index["metadata"], "total_size": size}
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_bits(text: str) -> int | str:
    """`ngram_table_bits` as a command line has it: a number, or the name of a format."""
    return int(text) if text.isdigit() else text


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.checkpoints.quantize", "Rewrites a checkpoint with packed n-gram tables.")
    parser.add_shared("--model", required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write; must not exist")
    packed = [bits for bits, known in ROW_FORMATS.items() if known.is_packed]
    parser.add_argument("--bits", type=read_bits, choices=packed, default=8, help="bits of a value in the tables")
    parser.add_argument(
        "--memory", default="256MB", metavar="SIZE", help="memory for the conversion, not counting Python itself"
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Finds the checkpoint, converts it and prints both sizes."""
    memory = parse_size(arguments.memory, "--memory")
    source = Path(arguments.model)
    if not source.is_dir():
        source = Path(snapshot_download(arguments.model))
    convert(source, arguments.output, arguments.bits, memory)
    before, after = (
        sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (source, arguments.output)
    )
    print(f"Written: {arguments.output}, {after / 1e9:.3f} GB of weights instead of {before / 1e9:.3f}")


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
