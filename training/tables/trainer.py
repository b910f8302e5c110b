# SPDX-License-Identifier: Apache-2.0
"""Makes a TRL trainer train n-gram tables row by row.

    frozen        tables do not change: no gradient, no state
    row_sparse    gradients hold the rows that were read, and `RowwiseAdamW` updates those: 8 bytes of state per row
    all           as any other weight: a dense gradient and two numbers of state per weight, for small tables

    class TableTrainer(TableTrainerMixin, ResumableSFTTrainer): ...
    TableTrainer(..., tables="row_sparse", table_learning_rate=1e-3)

Tables in host memory or on disk train with `row_sparse` too; the rows that change are saved next to the weights or the
adapter (`overlay.py`).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback
from transformers.training_args import OptimizerNames
from transformers.utils import CONFIG_NAME

from modeling_longcat_lite.ngram_row_files import ROW_DELTA_FILE, read_row_delta
from tokenization.number_options import check_number
from training.tables.optimizer import RowwiseAdamW, clip_gradients, sum_at_once, sum_rows
from training.tables.overlay import ROW_DELTA_CARD, OverlayRows, overlay_rows, save_changed_rows

if TYPE_CHECKING:
    from trl import SFTTrainer as Trainer
else:
    Trainer = object

TRAINED = ("frozen", "row_sparse", "all")


class TableTrainerMixin(Trainer):
    """Comes before a trainer of TRL in the bases of a class. Without `tables`, nothing changes.

    Args:
        tables (`str`, *optional*, defaults to `"all"`): `"frozen"`, `"row_sparse"` or `"all"`, see above.
        table_learning_rate (`float`, *optional*): Learning rate of the tables with `"row_sparse"`, by default that of
            the trainer. The schedule scales both.

    Raises:
        `ValueError`: naming the option, if the tables cannot be trained that way.
    """

    def __init__(self, *args, tables: str = "all", table_learning_rate: float | None = None, **kwargs):
        if tables not in TRAINED:
            raise ValueError(f"`tables` is one of {', '.join(TRAINED)}, not {tables!r}")
        if table_learning_rate is not None and tables != "row_sparse":
            raise ValueError(f"`table_learning_rate` is for `tables: row_sparse`, but `tables` is {tables}")
        check_number("table_learning_rate", table_learning_rate, least=0)
        super().__init__(*args, **kwargs)
        self.tables, self.table_learning_rate = tables, table_learning_rate
        model: Any = self.accelerator.unwrap_model(self.model)
        self._base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self._overlay_rows: OverlayRows | None = None  # set if the tables are not parameters
        self._trained_tables: list[Any] = []  # row by row
        trunk: Any = self._base.base_model
        embedding = trunk.ngram_embeddings
        if tables == "frozen" and embedding is not None:
            embedding.embedders.requires_grad_(False)
        elif tables == "row_sparse":
            self._train_rows(embedding)

    def _train_rows(self, embedding: Any) -> None:
        if embedding is None:
            raise ValueError("`tables: row_sparse`: this model has no n-gram tables")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("`tables: row_sparse` works in one process and with DDP: FSDP and DeepSpeed cannot shard")
        if self.optimizer is not None or self.optimizer_cls_and_kwargs is not None:
            raise ValueError("`tables: row_sparse` makes the optimizer itself: pass none")
        if embedding.placement != "resident":
            if self.accelerator.num_processes > 1:
                raise ValueError("`tables: row_sparse` with tables on host or disk works in one process")
            if self.args.torch_compile:
                raise ValueError("`torch_compile`: a compiled graph passes no gradient to tables on host or disk")
            self._overlay_rows = overlay_rows(embedding, self._base.base_model.embed_tokens.weight.dtype)
            self._trained_tables = [self._overlay_rows.parameter]
            self.add_callback(ClearGradient(self._overlay_rows.parameter))
            return
        if not all(type(table) is nn.Embedding for table in embedding.embedders):
            raise ValueError(
                "`tables: row_sparse`: quantized tables, and tables with an adapter, cannot train as parameters: load "
                'the model with `ngram_tables="host"` or `"disk"`'
            )
        if isinstance(self.model, PeftModel):
            raise ValueError(
                "`tables: row_sparse`: an adapter would not carry tables that are parameters: load the model with "
                '`ngram_tables="host"` or `"disk"`; the changed rows are then saved next to the adapter'
            )
        for table in embedding.embedders:
            table.sparse = True
            table.weight.requires_grad_(True)
            sum_at_once(table.weight)
        self._trained_tables = [table.weight for table in embedding.embedders]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """`RowwiseAdamW` with the trainer's own AdamW options, if tables are trained by rows."""
        if self.tables != "row_sparse" or self.optimizer is not None:
            return super().create_optimizer(model)
        model = self.model if model is None else model
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        if optimizer_class is not torch.optim.AdamW:
            name = OptimizerNames(self.args.optim).value
            raise ValueError(f"`optim: {name}` cannot update sparse rows: choose `adamw_torch_fused`")
        by_rows = {id(table) for table in self._trained_tables}
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and id(parameter) not in by_rows:
                groups[name in decayed].append(parameter)
        rate = self.args.learning_rate if self.table_learning_rate is None else self.table_learning_rate
        optimizer = RowwiseAdamW(
            [
                {"params": groups[True], "weight_decay": self.args.weight_decay},
                {"params": groups[False], "weight_decay": 0.0},
                {"params": self._trained_tables, "rowwise": True, "lr": rate},
            ],
            **options,
        )
        if self._overlay_rows is not None:
            optimizer.store(self._overlay_rows.parameter, self._overlay_rows)
        self.optimizer = optimizer
        return optimizer

    # The Trainer's two methods call `clip_grad_norm_`, which refuses sparse gradients.
    def _clip_grad_norm(self, model):
        return super()._clip_grad_norm(model) if self.tables != "row_sparse" else self._clip(self.args.max_grad_norm)

    def _get_grad_norm(self, model, grad_norm=None):
        if grad_norm is None and self.tables == "row_sparse":
            grad_norm = self._clip(float("inf"))  # the norm alone
        return super()._get_grad_norm(model, grad_norm)

    def _clip(self, max_norm: float) -> torch.Tensor:
        """Scales all gradients by one norm over dense and sparse ones; returns the norm."""
        self.accelerator.unscale_gradients()
        tables = [table for table in self._trained_tables if table.grad is not None]
        for table in tables:
            table.grad = sum_rows(table.grad)
        rows = (
            [table.grad.values() for table in tables] if self._overlay_rows is None else self._overlay_rows.gradients()
        )
        model: Any = self.model
        dense = [p.grad for p in model.parameters() if p.grad is not None and not p.grad.is_sparse]
        return clip_gradients([*dense, *rows], max_norm)

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self._save_rows(Path(str(output_dir or self.args.output_dir)))

    def _save_rows(self, folder: Path) -> None:
        """Write the rows that this run changed, or the adapter was trained on; else remove those of an earlier run."""
        trunk: Any = self._base.base_model
        tables = None if trunk.ngram_embeddings is None else trunk.ngram_embeddings.tables
        is_adapter = isinstance(self.model, PeftModel)
        if self._overlay_rows is not None or (is_adapter and tables is not None and tables.overlay is not None):
            save_changed_rows(self._base, folder)
        elif is_adapter and not self._base.loaded_row_deltas and not (folder / CONFIG_NAME).exists():
            for name in (ROW_DELTA_FILE, ROW_DELTA_CARD):  # PEFT leaves them next to its adapter
                (folder / name).unlink(missing_ok=True)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._take_rows(resume_from_checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        self._take_rows(self.state.best_model_checkpoint)

    def _take_rows(self, checkpoint: Any) -> None:
        if self._overlay_rows is not None:
            self._overlay_rows.replace(read_row_delta(checkpoint, self._base.config))


class ClearGradient(TrainerCallback):
    """Clears the gradient of the placeholder, which is not part of the model whose gradients the trainer clears."""

    def __init__(self, parameter: nn.Parameter):
        self.parameter = parameter

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.parameter.grad = None


__all__ = ["TableTrainerMixin"]
