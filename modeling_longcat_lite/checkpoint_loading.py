# SPDX-License-Identifier: Apache-2.0
"""Loading of checkpoints in the released layout: what does not fit is named before a weight is read.

N-gram tables may stay in host memory or on disk (`ngram_tables.py`); they are then read from the checkpoint's files.
Rows that fine-tuning changed may be in their own file (`ngram_row_files.py`), which is read if it is next to the
weights.
"""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    logging,
)

from .adapter_rows import AdapterRowsMixin, base_of_adapter
from .checkpoint_checks import layout_faults, raise_first_fault
from .checkpoint_files import (
    HUB_ARGUMENTS,
    Places,
    carries_draft_head,
    choose_weight_files,
    described,
    find_file,
    loaded_weights,
    names_in,
    parse_index,
    with_variant,
)
from .checkpoint_fp8 import read_cut_blocks
from .checkpoint_names import ngram_table_names
from .configuration_longcat_lite import LongCatLiteConfig
from .draft_head import freeze_draft_head
from .experts_quantization import BLOCK
from .ngram_row_files import (
    ROW_DELTA_FILE,
    delta_file,
    find_row_delta,
    other_base,
    read_hot_rows,
    read_row_delta,
    sample_base,
    write_row_delta,
)
from .ngram_row_store import RowCache
from .ngram_table_files import StoredTable, find_tables
from .ngram_tables import PLACEMENTS, NgramTables
from .sparse_attention import leave_indexer
from .whole_files import check_finished

logger = logging.get_logger(__name__)


class CheckpointLoadingMixin(AdapterRowsMixin):
    """`from_pretrained` for released checkpoints, and changed rows of their tables."""

    config: LongCatLiteConfig
    _resident_sample: dict[str, torch.Tensor] | None = None
    num_indexer_tensors = 0  # in the checkpoint that it was loaded from; they are not in the model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, ngram_tables: str = "resident", **kwargs):
        """As [`PreTrainedModel.from_pretrained`]; what does not fit raises a `ValueError` instead of a warning.

        A draft head is loaded if the checkpoint has one, unless `config.num_nextn_predict_layers` is 0.

        Args:
            ngram_tables (`str`, *optional*, defaults to `"resident"`):
                `"resident"` makes the n-gram tables parameters, which move with the model. `"host"` keeps them in host
                memory, `"disk"` in the checkpoint's files; only the rows of each forward pass go to the model.

        Raises:
            `ValueError`: naming the file, tensor, field or option that does not fit, and the fix.
        """
        if ngram_tables not in PLACEMENTS:
            raise ValueError(f"`ngram_tables` is one of {', '.join(PLACEMENTS)}, not {ngram_tables!r}.")
        if ngram_tables != "resident":
            if kwargs.get("state_dict") is not None:
                raise ValueError(f'`ngram_tables="{ngram_tables}"` reads files, not a `state_dict`: drop one of them.')
            kwargs["ngram_tables"] = ngram_tables
        if isinstance(config := kwargs.get("config"), LongCatLiteConfig):  # it may have changed since it was made
            config.validate_architecture()
        changed_rows = None
        if pretrained_model_name_or_path is not None and kwargs.get("state_dict") is None:
            hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            checkpoint = base_of_adapter(pretrained_model_name_or_path, hub_arguments)
            folder = Path(checkpoint, kwargs.get("subfolder") or "")
            check_finished(folder)
            if folder.is_dir() and kwargs.get("use_safetensors") is not False:
                check_folder(folder, kwargs.get("variant"))
            kwargs["has_draft_head"] = carries_draft_head(checkpoint, hub_arguments, kwargs.get("variant"))
            changed_rows = find_file(checkpoint, ROW_DELTA_FILE, hub_arguments)
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"A weights file of {pretrained_model_name_or_path} is damaged: {error}") from error
        if changed_rows is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.load_ngram_rows(changed_rows, *model.loaded_row_deltas)  # those of an adapter go on top
        return loaded

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, expected_keys=None):
        # The one place that knows which files are loaded, after the model is built and before a weight is read.
        readable = checkpoint_files is not None and checkpoint_files[0].endswith(".safetensors")
        was_fp8 = read_cut_blocks(load_config.weight_mapping or ())
        indexer, stored = [], []
        if expected_keys is None:  # otherwise it is an adapter, and `load_adapter` knows the keys
            places = tensors_to_load(state_dict, checkpoint_files, load_config.sharded_metadata)
            indexer = leave_indexer(places or (), model.config.dense_attention_limit)
            if places is not None:
                model._check_tensors(places, load_config, was_fp8)
            stored = model._find_ngram_tables(checkpoint_files if readable else None, places or ())
        loaded = PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, expected_keys
        )
        freeze_draft_head(model)  # loading makes new parameters
        model.num_indexer_tensors += len(indexer)
        if was_fp8:  # without it, saving would convert back to FP8; from 5.24 on, transformers does the same
            del model._weight_conversions
        if stored:  # not earlier: loading takes everything in a state dict for parameters
            model._open_ngram_tables(stored)
        return loaded

    def _check_tensors(self, places: Places, load_config, was_fp8: bool):
        """Raises a `ValueError` that names the tensor that does not fit this model."""
        quantizer = load_config.hf_quantizer
        if quantizer is not None and quantizer.pre_quantized and not was_fp8:
            return  # names and shapes are the quantizer's
        block = (quantizer.quantization_config.weight_block_size or BLOCK) if was_fp8 else None
        needs_head, dtypes_only = self.base_model is not self, load_config.ignore_mismatched_sizes
        raise_first_fault(layout_faults(self.config, places, block, needs_head, dtypes_only))

    def _offloaded_ngram_embedding(self) -> Any:
        """The n-gram embedding, if its tables are not parameters of the model."""
        embedding: Any = self.base_model.ngram_embeddings
        return None if embedding is None or embedding.placement == "resident" else embedding

    def _find_ngram_tables(self, files: list[str] | None, found: Collection[str]) -> list[StoredTable]:
        """Locations of offloaded tables in `files`, whose tensors are `found`; empty when they are resident."""
        embedding = self._offloaded_ngram_embedding()
        if embedding is None:
            return []
        if files is None:
            raise ValueError(
                f'`ngram_tables="{embedding.placement}"` reads safetensors files, and the checkpoint has none: save '
                "it with `save_pretrained` first."
            )
        sizes, width, bits = self.config.subtable_sizes, self.config.subtable_width, self.config.ngram_table_bits
        names = ngram_table_names(self.config, found)
        return find_tables(files, names, sizes, width, bits)

    def _open_ngram_tables(self, stored: list[StoredTable]):
        embedding = self._offloaded_ngram_embedding()
        overlay = None if embedding.tables is None else embedding.tables.overlay
        embedding.tables = NgramTables(embedding.placement, stored, self.config.ngram_table_bits)
        embedding.tables.overlay = overlay

    @torch.no_grad()
    def load_ngram_rows(self, *deltas: str | os.PathLike, **hub_arguments):
        """Sets changed rows of the n-gram tables, in memory; where several deltas have a row, the last one wins.

        Args:
            deltas (`str` or `os.PathLike`):
                Files, or folders or repositories on the Hub with an `ngram_row_delta.safetensors`.
            hub_arguments: As for `from_pretrained`: `revision`, `token`, `cache_dir`, ...

        Raises:
            `ValueError`: naming file and field, table or row, if a delta does not belong to this config; or if the
                tables are resident and packed, so that single rows cannot be set.
        """
        embedding: Any = self.base_model.ngram_embeddings
        if embedding is None:
            raise ValueError("`load_ngram_rows`: this model has no n-gram tables.")
        resident = embedding.placement == "resident"
        if resident and embedding.row_format.is_packed:
            raise ValueError(
                f"`load_ngram_rows`: resident tables of {embedding.row_format.bits} bits take no changed rows; load "
                'the model with `ngram_tables="host"` or `"disk"`, which keeps changed rows separately.'
            )
        files = [find_row_delta(delta, **hub_arguments) for delta in deltas]
        all_changed = [read_row_delta(file, self.config) for file in files]  # all are checked before one is applied
        base_sample = self._base_sample()
        for file, changed in zip(files, all_changed, strict=True):
            if (problem := other_base(file, base_sample)) is not None:
                logger.warning(problem)
            self.loaded_row_deltas = (*self.loaded_row_deltas, os.path.realpath(delta_file(file)))
            if not resident:
                embedding.tables.change_rows(changed, self.config.subtable_width)
                continue
            for table, (row_ids, rows) in zip(embedding.embedders, changed, strict=True):
                table.weight[row_ids.to(table.weight.device)] = rows.to(table.weight)

    def _base_sample(self) -> dict[str, torch.Tensor]:
        """[`sample_base`] of this model. Resident tables are sampled once, before their rows change."""
        embedding: Any = self.base_model.ngram_embeddings

        def read(name: str, ids: torch.Tensor) -> torch.Tensor | None:
            table = 0 if name == "words" else int(name.removeprefix("table_"))
            if name != "words" and embedding.placement != "resident":
                tables = embedding.tables
                return tables.below_at(tables.keys(table, ids), torch.float32)
            module = self.get_input_embeddings() if name == "words" else embedding.embedders[table]
            weight = module.weight if type(module) is nn.Embedding else None
            # A weight that is offloaded, sharded or packed cannot be sampled.
            if type(weight) is not nn.Parameter or weight.is_meta or len(weight) <= int(ids.max()):
                return None
            return weight.detach()[ids.to(weight.device)]

        found = sample_base(self.config, read)
        if embedding.placement == "resident":
            self._resident_sample = self._resident_sample or {k: v for k, v in found.items() if k != "words"}
            found |= self._resident_sample
        return found

    def save_ngram_rows(self, folder: str | os.PathLike):
        """Writes the changed rows of tables in host memory or on disk, as `ngram_row_delta.safetensors`."""
        embedding = self._offloaded_ngram_embedding()
        if embedding is None or embedding.tables.overlay is None:
            raise ValueError("`save_ngram_rows`: this model has no changed rows next to offloaded tables.")
        name, rows = self.name_or_path or "", embedding.tables.changed_rows()
        write_row_delta(Path(folder) / ROW_DELTA_FILE, self.config, rows, name, self._base_sample())

    def keep_ngram_rows(self, hot_rows: str | os.PathLike, rows_per_table: int | None = None) -> RowCache:
        """Keeps the most used rows of tables in host memory or on disk on the model's device.

        Args:
            hot_rows (`str` or `os.PathLike`): A file of [`write_hot_rows`] or `eval.ngrams.working_set --hot-rows`.
            rows_per_table (`int`, *optional*): Keep this many, the most used ones; by default all in the file.

        Returns:
            `RowCache`: its `hit_rate` counts from now on.

        Raises:
            `ValueError`: if the file belongs to another config, or the tables are resident.
        """
        embedding = self._offloaded_ngram_embedding()
        if embedding is None:
            raise ValueError('`keep_ngram_rows` is for `ngram_tables="host"` or `"disk"`: these tables are resident.')
        row_ids = [ids[:rows_per_table] for ids in read_hot_rows(hot_rows, self.config)]
        return embedding.tables.keep(row_ids, embedding.post_proj.weight.device)


def check_folder(folder: str | os.PathLike, variant: str | None = None):
    """Checks what transformers would answer with an error that names nothing, or with none.

    Raises:
        `ValueError`: naming an index that is wrong, two sets of weights, or a file that is missing.
    """
    folder, names = Path(folder), names_in(Path(folder))
    safe, single, index = (
        with_variant(name, variant) for name in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    )
    if safe in names:
        files = choose_weight_files(names, lambda name: (folder / name).read_bytes(), folder, variant).files
    elif index in names and not names & {with_variant(SAFE_WEIGHTS_NAME, variant), single}:
        files = sorted(set(parse_index((folder / index).read_bytes(), folder / index).values()))
    else:
        return
    for file in files:
        if file not in names:
            raise ValueError(f"{folder / file} is missing. Download it.")


def tensors_to_load(state_dict, checkpoint_files, sharded_metadata) -> Places | None:
    """File, dtype and shape of every tensor that is going to be loaded; `None` for files of another format.

    Raises:
        `ValueError`: naming file, tensor and field of what contradicts itself.
    """
    if state_dict is not None:
        return {name: ("`state_dict`", described(name, tensor, "")) for name, tensor in state_dict.items()}
    if not checkpoint_files or not checkpoint_files[0].endswith((".safetensors", ".bin")):
        return None
    return loaded_weights(checkpoint_files, sharded_metadata).places


__all__ = ["CheckpointLoadingMixin"]
