# SPDX-License-Identifier: Apache-2.0
"""Saving of checkpoints in the released layout: a folder or a repository holds one whole model at any moment.

transformers writes to a sub-folder of the target, and changed n-gram rows are written next to the weights there. Then
all files are put in place together (`whole_files.py`), and files of an earlier save are removed that would be loaded
instead of them or with them: a single file where there are shards now, or the reverse, other shards, changed rows. A
push does the same in one commit. Other files stay.
"""

import contextlib
import hashlib
import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from safetensors import SafetensorError
from transformers import modeling_utils
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, logging

from .checkpoint_files import SAVE_ID, names_in, parse_index, with_variant
from .checkpoint_header import read_safetensors_header, sort_metadata
from .checkpoint_loading import CheckpointLoadingMixin
from .ngram_row_files import ROW_DELTA_FILE
from .sparse_attention import warn_of_lost_indexer
from .whole_files import StagedFiles, staged_files, write_whole

SAMPLED_VALUES = 1024  # of each tensor, for the save id
SAMPLED_ON_DISK = 16  # of each table that is read from disk, where a value may cost a page
MARKING = threading.RLock()

logger = logging.get_logger(__name__)


class CheckpointSavingMixin(CheckpointLoadingMixin):
    """`save_pretrained` and `push_to_hub`."""

    _put_in_place: Callable[[], list[str]] | None = None  # while `save_pretrained` runs

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        *args,
        **kwargs,
    ):
        """As [`PreTrainedModel.save_pretrained`]. The folder holds the old model or the new one at any moment, also if
        the process is killed or the disk is full. Tables on disk are copied from file to file; changed rows are saved
        next to the weights.

        Raises:
            `OSError`: if the files could not be written; the folder is then as it was.
        """
        distributed_config = vars(self.config).get("distributed_config")
        options: Any = (state_dict, push_to_hub, max_shard_size, variant, *args)
        if not is_main_process or kwargs.get("distributed_checkpoint") or Path(save_directory).is_file():
            super().save_pretrained(save_directory, is_main_process, *options, **kwargs)
            if not kwargs.get("distributed_checkpoint"):
                self.barrier_after_gathered_checkpoint_save(distributed_config)
            return
        if push_to_hub:
            kwargs.setdefault("repo_id", os.fspath(save_directory).split(os.path.sep)[-1])
        save_id = identify_weights(self.state_dict() if state_dict is None else state_dict, self._tables_on_disk())
        with staged_files(save_directory) as staged:
            put_in_place = _once(lambda: self._settle(staged, save_id, variant))
            try:
                with shards_marked(save_id):  # one save at a time, so that threads do not mix their files
                    self._put_in_place = put_in_place
                    try:
                        super().save_pretrained(staged.new, True, *options, **kwargs)
                    finally:
                        del self._put_in_place
                put_in_place()
            except SafetensorError as error:
                raise OSError(
                    f"{save_directory}: the model could not be saved ({error}); the folder is as it was."
                ) from error
        # transformers waits for all processes after writing its files, but they are in place only now.
        self.barrier_after_gathered_checkpoint_save(distributed_config)
        warn_of_lost_indexer(self.num_indexer_tensors, str(save_directory))

    def _settle(self, staged: StagedFiles, save_id: str, variant: str | None) -> list[str]:
        """Completes the staged files and puts them in place; returns their names."""
        if not any(staged.new.iterdir()):  # in a sharded run, another process saves
            return []
        embedding = self._offloaded_ngram_embedding()
        tables = None if embedding is None else embedding.tables
        if tables is not None and tables.overlay is not None:
            self.save_ngram_rows(staged.new)
        index = staged.new / with_variant(SAFE_WEIGHTS_INDEX_NAME, variant)
        if index.exists():
            content = json.loads(index.read_text(encoding="utf-8"))
            content["metadata"][SAVE_ID] = save_id
            write_whole(index, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
        names = sorted(names_in(staged.new))
        stale = superseded(names, names_in(staged.folder), variant, indexed_files(staged.folder / index.name))
        moving = [] if tables is None else [place_of(table.path) for table in tables.stored]
        has_moved = bool({staged.folder.resolve() / name for name in (*names, *stale)} & set(moving))
        # Checked before anything is replaced: a state dict without tables cannot replace mapped ones.
        weights = [
            str(staged.new / name) for name in names if name.endswith(".safetensors") and name != ROW_DELTA_FILE
        ]
        found = {name for file in weights for name in read_safetensors_header(file)[0]} if has_moved else set()
        stored = self._find_ngram_tables(weights, found) if has_moved else []
        if CONFIG_NAME in names and (staged.folder / ADAPTER_CONFIG_NAME).exists():
            logger.warning(
                f"{staged.folder} also holds an adapter, {ADAPTER_CONFIG_NAME}, which `from_pretrained` applies to "
                "the model that is saved there now. If the model contains it already, remove the adapter's files."
            )
        staged.swap(stale)
        if tables is not None and has_moved:
            stored = [table._replace(path=str(staged.folder / Path(table.path).name)) for table in stored]
            if {(table.dtype, table.shape[1]) for table in stored} == {(tables.dtype, tables.columns)}:
                tables.follow(stored)
            else:  # saved from a state dict of another dtype
                self._open_ngram_tables(stored)
        return names

    def _tables_on_disk(self) -> set[int]:
        """Addresses of the tables that are mapped files."""
        embedding = self._offloaded_ngram_embedding()
        tables = None if embedding is None else embedding.tables
        return {rows.data_ptr() for rows in tables.rows} if tables is not None and tables.mapped else set()

    def _upload_modified_files(
        self,
        working_dir: str | os.PathLike,
        repo_id: str,
        files_timestamps: dict[str, float],
        commit_message: str | None = None,
        token: bool | str | None = None,
        create_pr: bool = False,
        revision: str | None = None,
        commit_description: str | None = None,
    ):
        """One commit that adds the saved files, and removes files of an earlier push that would be loaded too."""
        folder, api = Path(working_dir), HfApi(token=token)
        if self._put_in_place is None:  # saved by `push_to_hub`, to a folder of its own
            names = sorted(names_in(folder))
        else:
            names, folder = self._put_in_place(), folder.parent.parent
        if revision is not None and not revision.startswith("refs/pr"):
            with contextlib.suppress(OSError) if create_pr else contextlib.nullcontext():
                api.create_branch(repo_id, branch=revision, exist_ok=True)
        stale = superseded(names, api.list_repo_files(repo_id, revision=revision))
        if stale:
            logger.warning(f"Removing files of an earlier push from {repo_id}: {', '.join(stale)}.")
        operations: list[Any] = [CommitOperationDelete(name) for name in stale]
        operations += [CommitOperationAdd(name, folder / name) for name in names]
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            commit_description=commit_description,
            create_pr=create_pr,
            revision=revision,
        )


def superseded(
    saved: Iterable[str], there: Iterable[str], variant: str | None = None, indexed: Iterable[str] = ()
) -> list[str]:
    """Files of an earlier save, in a folder or a repository, that would be loaded instead of new ones or with them.

    Args:
        saved (`Iterable[str]`): Names of the new files.
        there (`Iterable[str]`): Names of the files in the folder or repository.
        variant (`str`, *optional*): Variant of the new weights; files of other variants stay.
        indexed (`Iterable[str]`, *optional*): Shards in the index of the old files, which may have other names.
    """
    saved, there, stale = set(saved), set(there), set[str]()
    for stem in ("model", "adapter_model"):
        name = re.escape(f"{stem}.{variant}" if variant else stem)
        index_name = re.escape(with_variant(f"{stem}.safetensors.index.json", variant))
        form = re.compile(rf"{name}(-\d{{5}}-of-\d{{5}})?\.safetensors|{index_name}")
        if any(map(form.fullmatch, saved)):
            stale |= set(filter(form.fullmatch, there))
            if stem == "model":
                stale |= set(indexed) & there
    if CONFIG_NAME in saved or CONFIG_NAME not in there:  # an adapter leaves the changed rows of a model next to it
        stale |= {ROW_DELTA_FILE} & there
    return sorted(stale - saved)


def indexed_files(path: Path) -> set[str]:
    """The shards that an index names; none if there is no index that can be read."""
    try:
        return set(parse_index(path.read_bytes(), path).values())
    except (OSError, ValueError):
        return set()


def place_of(path: str | os.PathLike) -> Path:
    """A path without symbolic links in its folder; the file itself may be one."""
    return Path(path).parent.resolve() / Path(path).name


def identify_weights(state_dict: Mapping[str, Any], on_disk: set[int]) -> str:
    """The id of a save: equal for equal weights, and almost certainly different for others.

    It is a hash of names, dtypes, shapes and some values of every tensor.
    """
    digest = hashlib.sha256()
    for name, tensor in state_dict.items():
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.is_meta or tensor.is_quantized:
            return uuid.uuid4().hex  # sharded or offloaded, so that this process has no values
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        tensor = tensor.detach() if tensor.is_contiguous() else tensor.detach()[:1].contiguous()  # to avoid a copy
        values = tensor.reshape(-1, 1).view(torch.uint8)  # [values, bytes of one]
        count = min(len(values), SAMPLED_ON_DISK if tensor.data_ptr() in on_disk else SAMPLED_VALUES)
        places = torch.linspace(0, max(len(values) - 1, 0), count, dtype=torch.float64).long()
        digest.update(values[places.to(values.device)].cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


@contextlib.contextmanager
def shards_marked(save_id: str) -> Iterator[None]:
    """Makes transformers write the id into the metadata of the safetensors files that it saves.

    transformers sets the metadata where it writes a file, and has no hook there.
    """
    with MARKING:
        save_file: Any = vars(modeling_utils).get("safe_save_file")

        def save_marked(tensors, filename, metadata=None):
            save_file(tensors, filename, metadata={**(metadata or {}), SAVE_ID: save_id})
            sort_metadata(filename)

        if save_file is None:  # a version that writes in another way; only the journal then separates saves
            yield
            return
        modeling_utils.safe_save_file = save_marked  # type: ignore[attr-defined]
        try:
            yield
        finally:
            modeling_utils.safe_save_file = save_file  # type: ignore[attr-defined]


def _once(function: Callable[[], list[str]]) -> Callable[[], list[str]]:
    results: list[list[str]] = []

    def call() -> list[str]:
        if not results:
            results.append(function())
        return results[0]

    return call


__all__ = ["CheckpointSavingMixin", "superseded"]
