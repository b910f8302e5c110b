# SPDX-License-Identifier: Apache-2.0
"""Which files hold a checkpoint's weights, and where each tensor is in them.

Loading, quantizing, merging and verifying all ask here, so that what contradicts itself is refused by all of them:

    model.safetensors, if it is there, as transformers chooses; else the files that model.safetensors.index.json names
    each tensor in one file; with an index, in the file that the index names
    each header as the safetensors library wants it (`checkpoint_header.py`)

The files may be in a folder, in transformers' cache or on the Hub: a caller passes names, and how to read them.
"""

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from .checkpoint_header import Contradiction, StoredTensor, fields_once, read_safetensors_header

WHOLE_FILE = "the file"
SAVE_ID = "save_id"  # in the metadata of every shard and of the index
PICKLED_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}

# Of every tensor, by name: its file, and dtype, shape and place in it.
Places = Mapping[str, tuple[str, StoredTensor]]


class Fault(NamedTuple):
    """Something in the files that contradicts itself. `where`: a tensor, or [`WHOLE_FILE`]."""

    file: str
    where: str
    expected: str
    found: str
    fix: str

    def __str__(self) -> str:
        if self.where == WHOLE_FILE:
            return self.found
        return f"{self.file}: {self.where} must have {self.expected}, but has {self.found}. {self.fix}"


class Weights(NamedTuple):
    """The files with a checkpoint's weights, where each tensor is, and what is wrong with them."""

    files: list[str]
    places: dict[str, tuple[str, StoredTensor]]
    faults: list[Fault]

    def checked(self) -> "Weights":
        """Itself. Raises a `ValueError` if there is a fault."""
        if self.faults:
            raise ValueError(str(self.faults[0]))
        return self


def parse_index(content: bytes, path: str | os.PathLike) -> dict[str, str]:
    """The `weight_map` of an index: tensors to names of files in its folder.

    Raises:
        `ValueError`: naming the index, and the field or tensor that is wrong.
    """
    ending = ".bin" if ".bin.index." in Path(path).name else ".safetensors"
    try:
        index = json.loads(content.decode("utf-8"), object_pairs_hook=fields_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as an index ({str(error)[:200]}). Download it again.") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path} has no `weight_map` of tensors to files. Download it again.")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(ending) or "/" in file or "\\" in file:
            raise ValueError(
                f"{path}: `weight_map` has {file!r} for `{tensor}`; it must be the name of a {ending} file in the "
                "same folder."
            )
    if not isinstance(index.get("metadata"), dict):
        raise ValueError(f"{path}: `metadata` must be an object, which transformers reads; an empty one will do.")
    return weight_map


def choose_weight_files(
    names: Collection[str], read: Callable[[str], bytes], folder: str | os.PathLike = "", variant: str | None = None
) -> tuple[list[str], dict[str, str]]:
    """The safetensors files among `names` that `from_pretrained` reads, and the index's `weight_map`, empty without.

    Args:
        names (`Collection[str]`): Files in the folder of the checkpoint.
        read (`Callable`): Gives the content of one of them.
        folder (`str` or `os.PathLike`, *optional*): What errors put before a name.
        variant (`str`, *optional*): As for `from_pretrained`.

    Raises:
        `ValueError`: if there are none, or two sets of them, or the index is wrong.
    """
    single, index = (with_variant(name, variant) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    if single not in names and index not in names:
        where = f"{folder} has" if str(folder) else "There is"
        raise ValueError(f"{where} no {single} and no {index}.")
    weight_map = parse_index(read(index), Path(folder, index)) if index in names else {}
    if single not in names:
        return sorted(set(weight_map.values())), weight_map
    others = set(weight_map.values()) - {single}
    if others & set(names):  # whose save is the newer one, nobody can tell
        raise ValueError(
            f"{Path(folder, single)} and {Path(folder, index)}, which names {min(others & set(names))}, are two sets "
            "of weights. Remove the one that does not belong to this model."
        )
    # The index of an earlier save, whose files are gone, says nothing about this file.
    return [single], weight_map if weight_map and not others else {}


def with_variant(name: str, variant: str | None) -> str:
    """`model.half.safetensors` for the variant `half`, as transformers spells it."""
    stem, _, ending = name.rpartition(".")
    return f"{stem}.{variant}.{ending}" if variant else name


def local_header(path: str, contradictions: list[Contradiction]) -> dict[str, StoredTensor]:
    """The tensors of a file on this machine: a safetensors file, or one of older torch checkpoints."""
    if path.endswith(".bin"):
        return pickled_tensors(path)
    return read_safetensors_header(path, contradictions)[0]


def pickled_tensors(path: str) -> dict[str, StoredTensor]:
    """Dtypes and shapes in a torch checkpoint; no weight is read, and nothing but tensors is unpickled.

    Raises:
        `ValueError`: naming the file, and what is not a tensor in it.
    """
    try:
        stored: Any = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # pickle, zip and torch each raise their own
        raise ValueError(f"{path} is truncated or not a torch checkpoint ({error}). Download it again.") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{path} must hold tensors by name, got {type(stored).__name__}.")
    return {name: described(name, tensor, path) for name, tensor in stored.items()}


def described(name: str, tensor: Any, path: str) -> StoredTensor:
    """A tensor in memory as a header would have it; without a place in a file."""
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{path}: {name!r} is {type(tensor).__name__}; a checkpoint holds tensors by name.")
    return StoredTensor(PICKLED_DTYPES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), 0, tensor.nbytes)


def read_weights(
    files: Sequence[str],
    weight_map: Mapping[str, str],
    read_header: Callable[[str, list[Contradiction]], dict[str, StoredTensor]] = local_header,
) -> Weights:
    """Headers of all weight files, each checked alone and against the others and the index.

    Args:
        files (`Sequence[str]`): Paths or names.
        weight_map (`Mapping[str, str]`): Of the index, empty without one.
        read_header (`Callable`): Gives the tensors of one file, and adds what contradicts itself to the list.
    """
    places: dict[str, tuple[str, StoredTensor]] = {}
    faults, unreadable = [], set()
    for file in files:
        contradictions: list[Contradiction] = []
        try:
            tensors = read_header(file, contradictions)
        except (FileNotFoundError, IsADirectoryError, ValueError) as error:
            what = str(error) if isinstance(error, ValueError) else f"{file} is missing. Download it."
            unreadable.add(Path(file).name)
            faults.append(Fault(file, WHOLE_FILE, "a whole safetensors file", what, "Download it again."))
            continue
        faults += [Fault(file, f"`{one[0]}`", *one[1:], "Download the file again.") for one in contradictions]
        for name, tensor in tensors.items():
            if name in places:
                faults.append(Fault(file, f"`{name}`", "one file", f"in {places[name][0]} too", "Remove it from one."))
            places[name] = file, tensor
    there = {name: Path(file).name for name, (file, _) in places.items()}
    for name, file in weight_map.items():
        if file not in unreadable and there.get(name) != file:
            found = f"in {there[name]}" if name in there else "in no file"
            expected = f"its place in {file}, where the index has it"
            faults.append(Fault(file, f"`{name}`", expected, f"it {found}", "Download index and shards again."))
    for name, (file, _) in places.items():
        if weight_map and name not in weight_map:
            faults.append(
                Fault(file, f"`{name}`", "an entry in the index", "none: it is read by no loader", "Add it.")
            )
    return Weights(list(files), places, faults)


def folder_weights(folder: str | os.PathLike, variant: str | None = None) -> Weights:
    """The weights in a folder on this machine, by full paths.

    Raises:
        `ValueError`: naming file, tensor and field of what is missing or contradicts itself.
    """
    folder, names = Path(folder), names_in(Path(folder))
    files, weight_map = choose_weight_files(names, lambda name: (folder / name).read_bytes(), folder, variant)
    weights = read_weights([str(folder / name) for name in files], weight_map).checked()
    if weight_map:
        index = json.loads((folder / with_variant(SAFE_WEIGHTS_INDEX_NAME, variant)).read_bytes())
        check_same_save(save_ids(weights.files), index["metadata"])
    return weights


def loaded_weights(files: Sequence[str], weight_map: Mapping[str, str] | None) -> Weights:
    """The weights in the files that transformers chose on this machine; `weight_map` is of the index that it read.

    Raises:
        `ValueError`: naming file, tensor and field of what is missing or contradicts itself.
    """
    folder = Path(files[0]).parent
    if weight_map is None and files[0].endswith(".safetensors"):  # an index beside a single file may know it too
        variant = Path(files[0]).name.removeprefix("model").removesuffix("safetensors").strip(".")
        index = folder / with_variant(SAFE_WEIGHTS_INDEX_NAME, variant)
        weight_map = parse_index(index.read_bytes(), index) if index.is_file() else {}
        weight_map = weight_map if {*weight_map.values()} == {Path(files[0]).name} else {}
    return read_weights(files, weight_map or {}).checked()


def save_ids(files: Sequence[str]) -> dict[str, str | None]:
    """The `save_id` in the metadata of each file."""
    return {path: read_safetensors_header(path)[1].get(SAVE_ID) for path in files}


def check_same_save(ids: Mapping[str, str | None], index_metadata: Mapping[str, object] | None):
    """Compares the `save_id` that `save_pretrained` writes into the metadata of every shard and of the index.

    Checkpoints that were saved otherwise have none, and nothing is compared.

    Args:
        ids (`Mapping[str, str | None]`): Of every file, as [`save_ids`] reads them.
        index_metadata (`Mapping`, *optional*): The `metadata` of the index.

    Raises:
        `ValueError`: naming two shards of different saves.
    """
    index_metadata = index_metadata or {}
    if len(ids) < 2 or index_metadata.get(SAVE_ID, "") is None:
        return
    wanted = index_metadata.get(SAVE_ID) or next(filter(None, ids.values()), None)
    strange = [path for path, save_id in ids.items() if save_id != wanted]
    if strange:
        fitting = next((path for path, save_id in ids.items() if save_id == wanted), SAFE_WEIGHTS_INDEX_NAME)
        raise ValueError(
            f"{strange[0]} and {fitting} are not of the same save, so that the checkpoint mixes two models: copy all "
            f"of its files again. If you changed the file yourself, set `{SAVE_ID}` to null in the `metadata` of "
            f"{SAFE_WEIGHTS_INDEX_NAME}."
        )


def check_folder(folder: str | os.PathLike, variant: str | None = None):
    """What transformers would meet with a raw error, or not at all, when it chooses files in a folder.

    Raises:
        `ValueError`: naming an index that is wrong, two sets of weights, or a file that is missing.
    """
    folder, names = Path(folder), names_in(Path(folder))
    safe, single, index = (
        with_variant(name, variant) for name in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    )
    if safe in names:
        files, _ = choose_weight_files(names, lambda name: (folder / name).read_bytes(), folder, variant)
    elif index in names and not names & {with_variant(SAFE_WEIGHTS_NAME, variant), single}:
        files = sorted(set(parse_index((folder / index).read_bytes(), folder / index).values()))
    else:
        return
    for file in files:
        if file not in names:
            raise ValueError(f"{folder / file} is missing. Download it.")


def names_in(folder: Path) -> set[str]:
    """Files in a folder."""
    return {path.name for path in folder.iterdir() if path.is_file()}


__all__ = [
    "SAVE_ID",
    "WHOLE_FILE",
    "Fault",
    "Places",
    "Weights",
    "check_folder",
    "check_same_save",
    "choose_weight_files",
    "described",
    "folder_weights",
    "loaded_weights",
    "parse_index",
    "read_weights",
    "save_ids",
    "with_variant",
]
