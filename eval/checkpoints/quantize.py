# SPDX-License-Identifier: Apache-2.0
"""Writes a checkpoint anew with n-gram tables of 8 or 4 bits.

    python -m eval.checkpoints.quantize --model CHECKPOINT --output CHECKPOINT-int8 --bits 8
    python -m eval.ngrams.quantization --model CHECKPOINT --converted CHECKPOINT-int8 ...

Table after table, in blocks of rows, within `--memory`; everything else is copied as it is. The source is only read.
The result is written beside its place, as OUTPUT.partial, and renamed when it is whole. What few bits do to a model's
embeddings and loss, `eval.ngrams.quantization` measures.

Shapes: R rows, W row width.
"""

import argparse
import json
import re
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
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.checkpoint_files import folder_weights
from modeling_longcat_lite.checkpoint_header import FLOAT_DTYPES, StoredTensor, read_safetensors_header
from modeling_longcat_lite.ngram_quantization import packed_width, quantize_rows
from modeling_longcat_lite.whole_files import check_finished

TABLE = re.compile(r"(?P<table>.*(ngram_embeddings\.embedders\.|oe_embed_tokens)\d+)\.weight")
INDEX = "model.safetensors.index.json"
# Bytes of memory a value takes while it is packed: as stored (4 at most), in float32, scaled, rounded, as integer.
BYTES_PER_VALUE = 18


def quantized(file: BinaryIO, entry: StoredTensor, bits: int, block: int, name: str) -> Iterator[bytes]:
    """The packed rows of a table, `block` rows at a time."""
    rows, width = entry.shape
    file.seek(entry.begin)
    for begin in range(0, rows, block):
        count = min(block, rows - begin)
        data = bytearray(file.read(count * entry.num_bytes // rows))
        if len(data) < count * entry.num_bytes // rows:
            raise ValueError(f"`{name}` was cut off while it was read.")
        try:
            packed = quantize_rows(torch.frombuffer(data, dtype=FLOAT_DTYPES[entry.dtype]).view(count, width), bits)
        except ValueError as error:
            raise ValueError(f"`{name}`, in the {count} rows from {begin}: {error}") from error
        yield packed.numpy().tobytes()


def replacements_of(entries: dict[str, StoredTensor], bits: int, memory: int, path: Path) -> dict[str, Replacement]:
    """What becomes of the tables of a file.

    Raises:
        `ValueError`: naming file and table, when it is no table of floating-point numbers, or `memory` holds no row.
    """
    found = {}
    for name, entry in entries.items():
        match = TABLE.fullmatch(name)
        if match is None:
            continue
        if entry.dtype not in FLOAT_DTYPES or len(entry.shape) != 2:
            raise ValueError(f"`{name}` in {path} is {entry.dtype} {list(entry.shape)}: no floating-point table.")
        rows, width = entry.shape
        block = memory // (width * BYTES_PER_VALUE)
        if not block:
            raise ValueError(f"`--memory` must be at least {width * BYTES_PER_VALUE} bytes, a row of `{name}`.")
        columns = packed_width(width, bits)
        pieces = partial(quantized, bits=bits, block=block, name=name)
        found[name] = Replacement(f"{match['table']}.packed", "U8", (rows, columns), rows * columns, pieces)
    return found


def checked_config(source: Path, bits: int) -> dict:
    """`config.json` of the new checkpoint.

    Raises:
        `ValueError`: when the source has no tables, or has packed ones already.
    """
    config = LongCatLiteConfig.from_pretrained(source)
    if not config.use_ngram_embedding:
        raise ValueError(f"{source}: `use_ngram_embedding` is false, so that there is no table to convert")
    if config.ngram_table_bits != 16:
        raise ValueError(f"{source}: its tables have {config.ngram_table_bits} bits; convert the original instead")
    config.ngram_table_bits = bits
    config.validate_architecture()
    stated = json.loads((source / "config.json").read_text(encoding="utf-8"))
    return {**stated, "ngram_table_bits": bits}


def check_space(needed: int, target: Path):
    """Raises a `ValueError` that says what is missing on the target's disk, before anything is written."""
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise ValueError(f"{target} takes {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB left.")


def convert(source: Path, target: Path, bits: int, memory: int):
    """Writes the checkpoint `source` to the new folder `target`.

    Raises:
        `ValueError`: naming file and tensor, of what loading would refuse too; what was written by then is removed.
    """
    if target.exists():
        raise ValueError(f"{target} exists already; give another `--output`, or remove it.")
    check_finished(source)
    config = checked_config(source, bits)
    weights = folder_weights(source)
    LongCatLiteForCausalLM.check_weights(LongCatLiteConfig.from_pretrained(source), weights.places)
    files = [Path(path) for path in weights.files]
    entries = {path: read_safetensors_header(path)[0] for path in files}
    changes = {path: replacements_of(entries[path], bits, memory, path) for path in files}
    sizes = {
        path: sum(changes[path][n].num_bytes if n in changes[path] else e.num_bytes for n, e in entries[path].items())
        for path in files
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    check_space(sum(sizes.values()), target)
    partial_target = target.with_name(target.name + ".partial")
    shutil.rmtree(partial_target, ignore_errors=True)  # of a run that was killed
    partial_target.mkdir()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        with Progress(*columns, TimeRemainingColumn()) as progress:
            task = progress.add_task("", total=sum(sizes.values()))
            for path in files:
                progress.update(task, description=path.name)
                rewrite(path, partial_target / path.name, changes[path], partial(progress.advance, task))
        copy_the_rest(source, partial_target, changes, sizes, config)
        partial_target.rename(target)
    except BaseException:
        shutil.rmtree(partial_target, ignore_errors=True)
        raise


def copy_the_rest(
    source: Path, target: Path, changes: dict[Path, dict[str, Replacement]], sizes: dict[Path, int], config: dict
):
    """Config and index as they are now; tokenizer, template, code, card and changed rows as they were."""
    for path in source.iterdir():
        if path.is_file() and path not in changes and path.name != INDEX:
            if path.suffix == ".safetensors":
                read_safetensors_header(path)  # raises: a damaged file is not passed on
            shutil.copy2(path, target)
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    index = json.loads((source / INDEX).read_bytes()) if (source / INDEX).exists() else {"weight_map": {}}
    if set(index["weight_map"].values()) == {path.name for path in changes}:  # not one that an earlier save left
        renamed = {old: new.name for of_file in changes.values() for old, new in of_file.items()}
        index["weight_map"] = {renamed.get(name, name): file for name, file in index["weight_map"].items()}
        index["metadata"] = {**index["metadata"], "total_size": sum(sizes.values())}
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def make_parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="Folder or Hub name of a checkpoint with 16- or 32-bit tables.")
    parser.add_argument("--output", type=Path, required=True, help="Folder to be made.")
    parser.add_argument("--bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--memory", default="256MB", help="What the conversion may use beside Python itself.")
    return parser


def main(arguments: argparse.Namespace):
    """Finds the checkpoint, converts it, says what it takes now."""
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
    main(make_parser().parse_args())
