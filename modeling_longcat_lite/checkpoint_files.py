# SPDX-License-Identifier: Apache-2.0
"""Which files hold a checkpoint's weights, and where each tensor is in them.

Loading, quantizing, merging and verifying all ask here, so that all of them refuse files that contradict each other:

    model.safetensors, if it exists, as transformers chooses; otherwise the files in model.safetensors.index.json
    each tensor in one file; with an index, in the file that the index names
    each header as the safetensors library wants it (`checkpoint_header.py`)
    all shards of one save, where `save_pretrained` of this package wrote them

The files may be in a folder, in transformers' cache or on the Hub: a caller passes names, and how to read them. Each
header is read once.
"""

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
)

from .checkpoint_header import Contradiction, StoredTensor, fields_once, read_safetensors_header
from .checkpoint_layout import DRAFT_HEAD_PREFIX

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
WHOLE_FILE = "the file"  # `where` of a fault that is not of one tensor
NO_TENSOR = "no such tensor"
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

# Of every tensor, by name: its file, and its dtype, shape and place in that file.
Places = Mapping[str, tuple[str, StoredTensor]]
# The tensors of a file and its metadata; what contradicts itself is added to the list.
ReadHeader = Callable[[str, list[Contradiction]], tuple[dict[str, StoredTensor], dict[str, str]]]


class Fault(NamedTuple):
    """Something wrong with a checkpoint.

    Attributes:
        file (`str`): Where it is; `-` if no file has it.
        where (`str`): A tensor, or [`WHOLE_FILE`].
        expected (`str`), found (`str`): What it should have, and has; [`NO_TENSOR`] for a tensor that is missing, or
            should not be there.
        fix (`str`): What to do.
    """

    file: str
    where: str
    expected: str
    found: str
    fix: str

    def __str__(self) -> str:
        if self.where == WHOLE_FILE:
            return self.found
        if self.found == NO_TENSOR:
            return f"The checkpoint has no tensor {self.where} ({self.expected}), which the model needs. {self.fix}"
        if self.expected == NO_TENSOR:
            return f"{self.where} in {self.file} does not belong to a model of this config. {self.fix}"
        return f"{self.where} in {self.file} has {self.found}, but must have {self.expected}. {self.fix}"


class WeightFiles(NamedTuple):
    """The files with a checkpoint's weights, and the two parts of their index, which are empty without one."""

    files: list[str]
    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]


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
    """The `weight_map` of an index: tensors to names of files in its folder. Raises as [`_index`]."""
    return _index(content, path)[0]


def _index(content: bytes, path: str | os.PathLike) -> tuple[dict[str, str], dict[str, Any]]:
    """`weight_map` and `metadata` of an index.

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
    return weight_map, index["metadata"]


def choose_weight_files(
    names: Collection[str], read: Callable[[str], bytes], folder: str | os.PathLike = "", variant: str | None = None
) -> WeightFiles:
    """The safetensors files among `names` that `from_pretrained` reads, and their index.

    Args:
        names (`Collection[str]`): Files in the folder of the checkpoint.
        read (`Callable`): Gives the content of one of them.
        folder (`str` or `os.PathLike`, *optional*): Their folder, for errors.
        variant (`str`, *optional*): As for `from_pretrained`.

    Raises:
        `ValueError`: if there are none, or two sets of them, or the index is wrong.
    """
    single, index = (with_variant(name, variant) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    if single not in names and index not in names:
        where = f"{folder} has" if str(folder) else "There is"
        raise ValueError(f"{where} no {single} and no {index}.")
    weight_map, metadata = _index(read(index), Path(folder, index)) if index in names else ({}, {})
    if single not in names:
        return WeightFiles(sorted(set(weight_map.values())), weight_map, metadata)
    others = set(weight_map.values()) - {single}
    if others & set(names):  # nothing tells which save is the newer one
        raise ValueError(
            f"{Path(folder, single)} and {Path(folder, index)}, which names {min(others & set(names))}, are two sets "
            "of weights. Remove the one that does not belong to this model."
        )
    # The index of an earlier save, whose files are gone, says nothing about this file.
    return WeightFiles([single], {}, {}) if others else WeightFiles([single], weight_map, metadata)


def with_variant(name: str, variant: str | None) -> str:
    """`model.half.safetensors` for the variant `half`, as transformers spells it."""
    stem, _, ending = name.rpartition(".")
    return f"{stem}.{variant}.{ending}" if variant else name


def local_header(path: str, contradictions: list[Contradiction]) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors and metadata of a file on this machine: a safetensors file, or one of older torch checkpoints."""
    if path.endswith(".bin"):
        return pickled_tensors(path), {}
    return read_safetensors_header(path, contradictions)


def pickled_tensors(path: str) -> dict[str, StoredTensor]:
    """Dtypes and shapes in a torch checkpoint; no weight is read, and only tensors are unpickled.

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


def read_weights(chosen: WeightFiles, read_header: ReadHeader = local_header) -> Weights:
    """Headers of all weight files, each checked alone and against the others and the index.

    Args:
        chosen (`WeightFiles`): Paths or names, as [`choose_weight_files`] gives them.
        read_header (`Callable`): Reads one of them.
    """
    places: dict[str, tuple[str, StoredTensor]] = {}
    faults, unreadable, saves = [], set(), dict[str, str | None]()
    for file in chosen.files:
        contradictions: list[Contradiction] = []
        try:
            tensors, metadata = read_header(file, contradictions)
        except (FileNotFoundError, IsADirectoryError, ValueError) as error:
            what = str(error) if isinstance(error, ValueError) else f"{file} is missing. Download it."
            unreadable.add(Path(file).name)
            faults.append(Fault(file, WHOLE_FILE, "a whole safetensors file", what, "Download it again."))
            continue
        saves[file] = metadata.get(SAVE_ID)
        faults += [Fault(file, f"`{one[0]}`", *one[1:], "Download the file again.") for one in contradictions]
        for name, tensor in tensors.items():
            if name in places:
                found = f"another place in {places[name][0]}"
                faults.append(Fault(file, f"`{name}`", "its place in one file", found, "Remove it from one of them."))
            places[name] = file, tensor
    faults += _index_faults(chosen.weight_map, places, unreadable)
    if not faults and (fault := _save_fault(saves, chosen.metadata)) is not None:
        faults.append(fault)
    return Weights(list(chosen.files), places, faults)


def _index_faults(weight_map: Mapping[str, str], places: Places, unreadable: Collection[str]) -> list[Fault]:
    """Tensors that are not where the index has them, or not in it."""
    faults = []
    in_files = {name: Path(file).name for name, (file, _) in places.items()}
    for name, file in weight_map.items():
        if file not in unreadable and in_files.get(name) != file:
            found = f"its place in {in_files[name]}" if name in in_files else "its place in no file"
            expected = f"its place in {file}, where the index has it"
            faults.append(Fault(file, f"`{name}`", expected, found, "Download index and shards again."))
    for name, (file, _) in places.items():
        if weight_map and name not in weight_map:
            faults.append(Fault(file, f"`{name}`", "an entry in the index", "none", "No loader reads it: add it."))
    return faults


def _save_fault(saves: Mapping[str, str | None], metadata: Mapping[str, Any]) -> Fault | None:
    """Two shards of different saves, by the `save_id` that `save_pretrained` writes into every shard and the index.

    Checkpoints that were saved otherwise have no id, and nothing is compared. Neither is it where the index has null.
    """
    if len(saves) < 2 or metadata.get(SAVE_ID, "") is None:
        return None
    wanted = metadata.get(SAVE_ID) or next(filter(None, saves.values()), None)
    strange = [path for path, save_id in saves.items() if save_id != wanted]
    if not strange:
        return None
    fitting = next((path for path, save_id in saves.items() if save_id == wanted), SAFE_WEIGHTS_INDEX_NAME)
    found = (
        f"{strange[0]} and {fitting} are not of the same save, so that the checkpoint mixes two models: copy all of "
        f"its files again. If you changed the file yourself, set `{SAVE_ID}` to null in the `metadata` of "
        f"{SAFE_WEIGHTS_INDEX_NAME}."
    )
    return Fault(strange[0], WHOLE_FILE, "shards of one save", found, "Copy all shards again.")


def folder_weights(folder: str | os.PathLike, variant: str | None = None) -> Weights:
    """The weights in a folder on this machine, by full paths.

    Raises:
        `ValueError`: naming file, tensor and field of what is missing or contradicts itself.
    """
    folder = Path(folder)
    chosen = choose_weight_files(names_in(folder), lambda name: (folder / name).read_bytes(), folder, variant)
    return read_weights(chosen._replace(files=[str(folder / name) for name in chosen.files])).checked()


def loaded_weights(files: Sequence[str], sharded_metadata: Mapping[str, Any] | None) -> Weights:
    """The weights in the files that transformers chose on this machine.

    Args:
        files (`Sequence[str]`): Their paths.
        sharded_metadata (`Mapping`, *optional*): What transformers read of their index.

    Raises:
        `ValueError`: naming file, tensor and field of what is missing or contradicts itself.
    """
    metadata = sharded_metadata or {}
    weight_map = metadata.get("weight_map")
    if weight_map is None and files[0].endswith(".safetensors"):  # an index next to a single file may list it too
        path = Path(files[0])
        variant = path.name.removeprefix("model").removesuffix("safetensors").strip(".")
        index = path.with_name(with_variant(SAFE_WEIGHTS_INDEX_NAME, variant))
        weight_map = parse_index(index.read_bytes(), index) if index.is_file() else {}
        weight_map = weight_map if {*weight_map.values()} == {path.name} else {}
    return read_weights(WeightFiles(list(files), weight_map or {}, metadata)).checked()


def find_file(checkpoint: str | os.PathLike, name: str, hub_arguments: Mapping[str, Any]) -> str | None:
    """The path of a file in a folder, or of the downloaded one of a Hub repository; `None` if there is none."""
    if Path(checkpoint).is_dir():
        path = Path(checkpoint, hub_arguments.get("subfolder") or "", name)
        return str(path) if path.is_file() else None
    try:
        return hf_hub_download(str(checkpoint), name, **hub_arguments)
    except EntryNotFoundError:  # also without a connection, where only what was downloaded before is there
        return None
    except (HfHubHTTPError, OSError, ValueError):  # transformers explains these, or finds an older download
        return cached_file(checkpoint, name, **hub_arguments)


def carries_draft_head(
    checkpoint: str | os.PathLike, hub_arguments: Mapping[str, object], variant: str | None = None
) -> bool:
    """Whether a folder or Hub repository has the tensors of a draft head; reads the index or one header only.

    Where there is a single file and an index, it asks the single file, which is the one that transformers loads.
    """
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        path = find_file(checkpoint, with_variant(name, variant), hub_arguments)
        if path is not None:
            is_index = path.endswith(".json")
            names = parse_index(Path(path).read_bytes(), path) if is_index else read_safetensors_header(path)[0]
            return any(name.startswith(DRAFT_HEAD_PREFIX) for name in names)
    return False


def names_in(folder: Path) -> set[str]:
    """The files of a folder, without its sub-folders."""
    return {path.name for path in folder.iterdir() if not path.is_dir()}


__all__ = [
    "HUB_ARGUMENTS",
    "NO_TENSOR",
    "SAVE_ID",
    "WHOLE_FILE",
    "Fault",
    "Places",
    "WeightFiles",
    "Weights",
    "carries_draft_head",
    "choose_weight_files",
    "described",
    "find_file",
    "folder_weights",
    "loaded_weights",
    "names_in",
    "parse_index",
    "read_weights",
    "with_variant",
]
