# SPDX-License-Identifier: Apache-2.0
"""What a TRL trainer has to know to train n-gram tables row by row.

    frozen        tables stay as they are: no gradient, no state
    row_sparse    gradients hold the rows that were read, `RowwiseAdamW` updates those: 8 bytes of state a row
    all           as any other weight: a dense gradient and two numbers of state a weight, for small tables

    class TableTrainer(TableTrainerMixin, ResumableSFTTrainer): ...
    TableTrainer(..., tables="row_sparse", table_learning_rate=1e-3)

Tables in host memory or on disk are no parameters; `row_deltas.py` trains those.
"""

from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import nn

from training.row_optimizer import RowwiseAdamW, clip_gradients, sum_at_once, sum_rows

if TYPE_CHECKING:
    from trl import SFTTrainer as Trainer
else:
    Trainer = object

TRAINED = ("frozen", "row_sparse", "all")


class TableTrainerMixin(Trainer):
    """Stands before a trainer class. Without `tables`, nothing changes.

    Args:
        tables (`str`, *optional*, defaults to `"all"`): `"frozen"`, `"row_sparse"` or `"all"`, see above.
        table_learning_rate (`float`, *optional*): Of tables with `"row_sparse"`; that of the trainer by default. The
            schedule scales both alike.

    Raises:
        `ValueError`: naming the option, where tables cannot be trained that way.
    """

    def __init__(self, *args, tables: str = "all", table_learning_rate: float | None = None, **kwargs):
        if tables not in TRAINED:
            raise ValueError(f"`tables` is one of {', '.join(TRAINED)}, not {tables!r}")
        if table_learning_rate is not None and tables != "row_sparse":
            raise ValueError(f"`table_learning_rate` is for `tables: row_sparse`, and `tables` is {tables}")
        super().__init__(*args, **kwargs)
        self.tables, self.table_learning_rate = tables, table_learning_rate
        self.table_modules = self._find_tables()
        if tables == "frozen":
            for table in self.table_modules:
                table.requires_grad_(False)
        elif tables == "row_sparse":
            self._check_row_sparse()
            for table in self.table_modules:
                table.sparse = True
                table.weight.requires_grad_(True)
                sum_at_once(table.weight)

    def _find_tables(self) -> list[Any]:
        model: Any = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            model = model.get_base_model()
        embedding = model.base_model.ngram_embeddings
        return [] if embedding is None else list(embedding.embedders)

    def _check_row_sparse(self) -> None:
        if not self.table_modules:
            raise ValueError(
                "`tables: row_sparse` trains tables that are parameters, and this model has none: load it with "
                '`ngram_tables="resident"`'
            )
        if not all(type(table) is nn.Embedding for table in self.table_modules):
            raise ValueError("`tables: row_sparse` needs tables of 16 or 32 bits; `ngram_table_bits` are fewer here")
        if isinstance(self.model, PeftModel):
            raise ValueError("`tables: row_sparse` trains the tables themselves, which no adapter would carry")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("`tables: row_sparse` works in one process and with DDP: FSDP and DeepSpeed cannot shard")
        if self.optimizer is not None or self.optimizer_cls_and_kwargs is not None:
            raise ValueError("`tables: row_sparse` makes the optimizer itself: pass none")

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """`RowwiseAdamW` with the trainer's own AdamW options, if tables are trained by rows."""
        if self.tables != "row_sparse" or self.optimizer is not None:
            return super().create_optimizer(model)
        model = self.model if model is None else model
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        if optimizer_class is not torch.optim.AdamW:
            raise ValueError(f"`optim: {self.args.optim}` cannot update sparse rows: choose `adamw_torch_fused`")
        tables = [table.weight for table in self.table_modules]
        places, decayed = {id(table) for table in tables}, set(self.get_decay_parameter_names(model))
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and id(parameter) not in places:
                groups[name in decayed].append(parameter)
        rate = self.args.learning_rate if self.table_learning_rate is None else self.table_learning_rate
        self.optimizer = RowwiseAdamW(
            [
                {"params": groups[True], "weight_decay": self.args.weight_decay},
                {"params": groups[False], "weight_decay": 0.0},
                {"params": tables, "rowwise": True, "lr": rate},
            ],
            **options,
        )
        return self.optimizer

    def _clip_grad_norm(self, model):
        return super()._clip_grad_norm(model) if self.tables != "row_sparse" else self._clip(self.args.max_grad_norm)

    def _get_grad_norm(self, model, grad_norm=None):
        if grad_norm is None and self.tables == "row_sparse":
            grad_norm = self._clip(float("inf"))  # the norm alone
        return super()._get_grad_norm(model, grad_norm)

    def _clip(self, max_norm: float) -> torch.Tensor:
        """One norm over dense and sparse gradients, and all scaled by it."""
        self.accelerator.unscale_gradients()
        tables = [table.weight for table in self.table_modules if table.weight.grad is not None]
        for table in tables:
            table.grad = sum_rows(table.grad)
        model: Any = self.model
        gradients = [p.grad for p in model.parameters() if p.grad is not None and not p.grad.is_sparse]
        return clip_gradients([*gradients, *(table.grad._values() for table in tables)], max_norm)


__all__ = ["TableTrainerMixin"]
