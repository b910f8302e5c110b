# SPDX-License-Identifier: Apache-2.0
"""Loading of checkpoints in the released layout: what does not fit is named before a byte is read.

N-gram tables may stay in host memory or on disk (`ngram_tables.py`); they are opened where the checkpoint lies. Rows
that fine-tuning changed may come in a file of their own (`ngram_row_files.py`); one beside the weights is read with
them.
"""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import cached_file, logging

from .adapter_rows import AdapterRowsMixin, base_of_adapter
from .checkpoint_files import Places, check_folder, check_same_save, described, loaded_weights, save_ids
from .checkpoint_fp8 import BLOCK, check_scales, read_cut_blocks
from .checkpoint_header import read_safetensors_header
from .checkpoint_layout import (
    DRAFT_HEAD_PREFIX,
    HUB_ARGUMENTS,
    carries_draft_head,
    check_against_model,
    check_dtypes,
    oe_name,
    spelling_of,
)
from .configuration_longcat_lite import LongCatLiteConfig
from .draft_head import freeze_draft_head
from .ngram_quantization import row_format
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

TABLES = "ngram_embeddings.embedders."
logger = logging.get_logger(__name__)


class CheckpointLoadingMixin(AdapterRowsMixin):
    """`from_pretrained` of released checkpoints, and changed rows of their tables."""

    config: LongCatLiteConfig
    _resident_sample: dict[str, torch.Tensor] | None = None
    num_indexer_tensors = 0  # of the checkpoint that it was loaded from, which are not in the model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, ngram_tables: str = "resident", **kwargs):
        """As [`PreTrainedModel.from_pretrained`]; what does not fit raises a `ValueError` instead of a warning.

        A draft head is loaded if the checkpoint carries one, unless `config.num_nextn_predict_layers` is 0.

        Args:
            ngram_tables (`str`, *optional*, defaults to `"resident"`):
                `"resident"` makes the n-gram tables parameters, which go where the model goes. `"host"` keeps them in
                host memory, `"disk"` in the checkpoint's files; the rows of each forward alone go to the model.
        """
        if ngram_tables not in PLACEMENTS:
            raise ValueError(f"`ngram_tables` is one of {', '.join(PLACEMENTS)}, not {ngram_tables!r}.")
        if ngram_tables != "resident":
            if kwargs.get("state_dict") is not None:
                raise ValueError(f'`ngram_tables="{ngram_tables}"` reads files, and `state_dict` has none: drop one.')
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
            changed_rows = cached_file(
                checkpoint,
                ROW_DELTA_FILE,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
                **hub_arguments,
            )
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
        readable = checkpoint_files is not None and checkpoint_files[0].endswith(".safetensors")
        # `load_adapter` names the keys that it expects: theirs to check.
        found = None if expected_keys is not None else model._stored_tensors(state_dict, checkpoint_files, load_config)
        if readable and len(checkpoint_files) > 1:
            check_same_save(save_ids(checkpoint_files), load_config.sharded_metadata)
        indexer = leave_indexer(found or (), model.config.dense_attention_limit)
        was_fp8 = read_cut_blocks(load_config.weight_mapping or ())
        if found is not None:
            model._check_tensors({n: where for n, where in found.items() if n not in indexer}, load_config, was_fp8)
        stored = model._find_ngram_tables(checkpoint_files if readable else None) if expected_keys is None else []
        loaded = PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, expected_keys
        )
        freeze_draft_head(model)  # loading makes new parameters
        model.num_indexer_tensors += len(indexer)
        if was_fp8:  # its conversions lead back to FP8, which the model is no more: it is saved as any other
            del model._weight_conversions
        if stored:  # not before: while loading, all of a state dict is taken for parameters
            model._open_ngram_tables(stored)
        return loaded

    @staticmethod
    def _stored_tensors(state_dict, checkpoint_files, load_config) -> Places | None:
        """File, dtype and shape of every tensor that is going to be loaded, checked against each other."""
        if state_dict is not None:
            return {name: ("`state_dict`", described(name, tensor, "")) for name, tensor in state_dict.items()}
        if not checkpoint_files or not checkpoint_files[0].endswith((".safetensors", ".bin")):
            return None
        return loaded_weights(checkpoint_files, (load_config.sharded_metadata or {}).get("weight_map")).places

    def _check_tensors(self, found: Places, load_config, was_fp8: bool):
        """Raises a `ValueError` that names the tensor that does not fit this model."""
        quantizer = load_config.hf_quantizer
        if was_fp8:
            found = check_scales(found, quantizer.quantization_config.weight_block_size)
        elif quantizer is not None:  # it changes names and shapes, and where it finds them changed, dtypes
            if not quantizer.pre_quantized:
                plain = {
                    name: torch.empty(0, dtype=torch.uint8 if name.endswith(".packed") else None) for name in found
                }
                check_dtypes(found, plain)
            return
        if not any(name.startswith("model.") for name in found):  # written by the trunk alone
            found = {f"model.{name}": where for name, where in found.items()}
        released, fused, optional = self._expected_tensors()
        if load_config.ignore_mismatched_sizes:
            check_dtypes(found, {**fused, **released}, was_fp8)
        else:
            check_against_model(found, released, fused, optional, was_fp8)

    @classmethod
    def check_weights(cls, config: LongCatLiteConfig, found: Places):
        """Compares the tensors of a checkpoint with what loading a model of `config` from it would ask for.

        Args:
            config (`LongCatLiteConfig`): Of the checkpoint.
            found (`Mapping[str, tuple[str, StoredTensor]]`): Of every tensor its file, and its entry in the header.

        Raises:
            `ValueError`: naming the tensor that is missing, of another shape or dtype, or not part of the model.
        """
        is_trunk = not any(name.startswith("model.") for name in found)
        found = {f"model.{name}" if is_trunk else name: where for name, where in found.items()}
        quantization = vars(config).get("quantization_config") or {}
        method = quantization.get("quant_method")
        if method not in (None, "fp8"):
            return  # names and shapes are the quantizer's
        if method == "fp8":
            found = check_scales(found, quantization.get("weight_block_size") or BLOCK)
        indexer = leave_indexer(found, config.dense_attention_limit)
        with torch.device("meta"):
            model = cls(
                copy.deepcopy(config), has_draft_head=any(name.startswith(DRAFT_HEAD_PREFIX) for name in found)
            )
        released, fused, optional = model._expected_tensors()
        found = {name: where for name, where in found.items() if name not in indexer}
        check_against_model(found, released, fused, [*optional, "lm_head."] if is_trunk else optional, method == "fp8")

    def _expected_tensors(self):
        """Arguments of `check_against_model`: released names, fused names, optional prefixes; all with `model.`."""
        prefix = "" if self.base_model_prefix in self._modules else f"{self.base_model_prefix}."
        state = self.state_dict()
        tied = self.all_tied_weights_keys
        fused = {prefix + name: tensor for name, tensor in state.items() if name not in tied}
        released = {prefix + k: v for k, v in revert_weight_conversion(self, state).items() if k not in tied}
        optional = ["model.embedding_amplification.norm.", *tied]
        if prefix:
            optional.append("lm_head.")
        if not self.config.num_nextn_predict_layers:
            optional.append("model.mtp.")
        if self._offloaded_ngram_embedding() is not None:
            for name in self._table_names():  # checked when they are opened
                optional += [f"model.{name}", f"model.{oe_name(name)}"]
        return released, fused, optional

    def _offloaded_ngram_embedding(self) -> Any:
        """The n-gram embedding if its tables are no parameters of the model."""
        embedding: Any = self.base_model.ngram_embeddings
        return None if embedding is None or embedding.placement == "resident" else embedding

    def _table_names(self) -> list[str]:
        """The tables in a checkpoint of the trunk alone, under released names."""
        suffix = row_format(self.config.ngram_table_bits).suffix
        return [f"{TABLES}{i}.{suffix}" for i in range(self.config.num_subtables)]

    def _find_ngram_tables(self, files: list[str] | None) -> list[StoredTable]:
        """Where the tables are that are no parameters; none if they are."""
        embedding = self._offloaded_ngram_embedding()
        if embedding is None:
            return []
        if files is None:
            raise ValueError(f'`ngram_tables="{embedding.placement}"` reads safetensors files, which are not there.')
        sizes, width, bits = self.config.subtable_sizes, self.config.subtable_width, self.config.ngram_table_bits
        found = {name for file in files for name in read_safetensors_header(file)[0]}
        in_trunk = [spelling_of(found)(name) for name in self._table_names()]
        names = in_trunk if in_trunk[0] in found else [f"model.{name}" for name in in_trunk]
        return find_tables(files, names, sizes, width, bits)

    def _open_ngram_tables(self, stored: list[StoredTable]):
        embedding = self._offloaded_ngram_embedding()
        overlay = None if embedding.tables is None else embedding.tables.overlay
        embedding.tables = NgramTables(embedding.placement, stored, self.config.ngram_table_bits)
        embedding.tables.overlay = overlay

    @torch.no_grad()
    def load_ngram_rows(self, *deltas: str | os.PathLike, **hub_arguments):
        """Puts changed rows of the n-gram tables in their place, in memory; of several deltas, later ones win.

        Args:
            deltas (`str` or `os.PathLike`):
                Files, or folders or repositories on the Hub with an `ngram_row_delta.safetensors`.
            hub_arguments: As for `from_pretrained`: `revision`, `token`, `cache_dir`, ...

        Raises:
            `ValueError`: naming file and field, table or row, if a delta is not of this config; or if the tables are
                resident and of few bits, which cannot take single rows.
        """
        embedding: Any = self.base_model.ngram_embeddings
        if embedding is None:
            raise ValueError("`load_ngram_rows`: this model has no n-gram tables.")
        resident = embedding.placement == "resident"
        if resident and embedding.row_format.is_packed:
            raise ValueError(
                f"`load_ngram_rows`: tables of {embedding.row_format.bits} bits take no changed rows; load the model "
                'with `ngram_tables="host"` or `"disk"`, which lays them over.'
            )
        files = [find_row_delta(delta, **hub_arguments) for delta in deltas]
        all_changed = [read_row_delta(file, self.config) for file in files]  # all are right before one is applied
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
        """[`sample_base`] of this model. Resident tables are sampled once, before rows of them change."""
        embedding: Any = self.base_model.ngram_embeddings

        def read(name: str, ids: torch.Tensor) -> torch.Tensor | None:
            table = 0 if name == "words" else int(name.removeprefix("table_"))
            if name != "words" and embedding.placement != "resident":
                tables = embedding.tables
                return tables.below_at(tables.keys(table, ids), torch.float32)
            module = self.get_input_embeddings() if name == "words" else embedding.embedders[table]
            weight = module.weight if type(module) is nn.Embedding else None
            # Not where it is elsewhere, in parts, or packed.
            if type(weight) is not nn.Parameter or weight.is_meta or len(weight) <= int(ids.max()):
                return None
            return weight.detach()[ids.to(weight.device)]

        found = sample_base(self.config, read)
        if embedding.placement == "resident":
            self._resident_sample = self._resident_sample or {k: v for k, v in found.items() if k != "words"}
            found |= self._resident_sample
        return found

    def save_ngram_rows(self, folder: str | os.PathLike):
        """Writes the rows that were laid over tables in host memory or on disk, as `ngram_row_delta.safetensors`."""
        embedding = self._offloaded_ngram_embedding()
        if embedding is None or embedding.tables.overlay is None:
            raise ValueError("`save_ngram_rows`: no rows are laid over the tables of this model.")
        name, rows = self.name_or_path or "", embedding.tables.changed_rows()
        write_row_delta(Path(folder) / ROW_DELTA_FILE, self.config, rows, name, self._base_sample())

    def keep_ngram_rows(self, hot_rows: str | os.PathLike, rows_per_table: int | None = None) -> RowCache:
        """Keeps the rows that are read most where the model reads them, beside tables in host memory or on disk.

        Args:
            hot_rows (`str` or `os.PathLike`): A file of [`write_hot_rows`] or `eval.ngrams.working_set --hot-rows`.
            rows_per_table (`int`, *optional*): Take the most used ones only; all in the file by default.

        Returns:
            `RowCache`: with its `hit_rate` from now on.

        Raises:
            `ValueError`: if the file belongs to another config, or the tables are resident.
        """
        embedding = self._offloaded_ngram_embedding()
        if embedding is None:
            raise ValueError('`keep_ngram_rows` is for `ngram_tables="host"` or `"disk"`: these tables are resident.')
        row_ids = [ids[:rows_per_table] for ids in read_hot_rows(hot_rows, self.config)]
        return embedding.tables.keep(row_ids, embedding.post_proj.weight.device)


__all__ = ["CheckpointLoadingMixin"]
