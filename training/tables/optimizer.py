# SPDX-License-Identifier: Apache-2.0
"""AdamW that updates n-gram tables row by row, at the cost of the rows that a batch reads.

Dense Adam keeps two numbers for each weight and updates all of them in every step: 251 GB of state for the released
n-gram tables. Here a table's gradient is sparse (`nn.Embedding(sparse=True)`), and a row has 8 bytes of state: its
second moment v, one number, and the step that touched it last. There is no first moment (beta1 = 0), so a row without
a gradient does not move, and only its v decays. The decay is applied when the row is next touched:

    v     = beta^(step - stamp) v + (1 - beta) mean(gradient^2)        stamp = step
    row   = row - lr gradient / (sqrt(v / (1 - beta^step)) + eps)      no weight decay: it would erase rare rows

The result equals the same rule applied to all rows of a dense gradient. As in Adam, the correction 1 - beta^step
counts the optimizer's steps, not the row's: a row that is touched rarely moves by `lr / sqrt(1 - beta)`, 4.5 lr at the
default beta of 0.95, while a row that is touched in every step moves by lr.

After KellerJordan/modded-nanogpt, pull request 360 (one v per row, beta1 = 0, lazy decay).

Arithmetic is float32. A bfloat16 table keeps 8 bits of a value, rounded to nearest: a change below about 1/512 of a
value is lost, however often it occurs, although v counts it. Use float32 for tables that learn so slowly.

Shapes: R rows of a table, W width of a table row, U distinct rows touched.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch

from tokenization.number_options import check_number

TABLE_BETAS = (0.0, 0.95)
PIECE = 2**16  # values that are updated at a time


def update_rows(
    rows: torch.Tensor,
    gradients: torch.Tensor,
    second_moments: torch.Tensor,
    stamps: torch.Tensor,
    step: int,
    lr: float,
    beta: float = TABLE_BETAS[1],
    eps: float = 1e-8,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of distinct rows: new rows `[U, W]` in the dtype of the old, and new second moments `[U]` in float32.

    Args:
        rows (`torch.Tensor` of shape `[U, W]`): Any float dtype.
        gradients (`torch.Tensor` of shape `[U, W]`): Summed over all reads of each row.
        second_moments (`torch.Tensor` of shape `[U]`, float32): 0 for a row that was never touched.
        stamps (`torch.Tensor` of shape `[U]`, int32): The step that touched each row last; the caller updates it.
        step (`int`): Counted from 1.
    """
    gradients = gradients.float()
    # In float64: the last bit of a power in float32 depends on its position in the vector.
    decay = torch.pow(beta, (step - stamps).double()).float()
    mean_squares = torch.linalg.vector_norm(gradients, dim=1).square() / gradients.shape[1]
    second_moments = decay * second_moments + (1 - beta) * mean_squares
    scale = lr / ((second_moments / (1 - beta**step)).sqrt() + eps)  # [U]
    return torch.addcmul(rows.float(), gradients, scale[:, None], value=-1).to(rows.dtype), second_moments


def sum_rows(gradient: torch.Tensor) -> torch.Tensor:
    """A sparse gradient `[R, W]` with one entry per row, sorted: the sum of the row's entries.

    `Tensor.coalesce` adds in an unspecified order, and in the gradient's dtype. Here entries are added in their order
    and in float32, so that the result has the same bits wherever the rows are summed. It is also faster.
    """
    if gradient.is_coalesced():
        return gradient
    # `indices` and `values`, which are public, refuse what is not coalesced.
    touched, places = gradient._indices()[0].unique(return_inverse=True)  # [U]
    values = gradient._values()
    sums = values.new_zeros(len(touched), *values.shape[1:], dtype=torch.float32)
    sums.index_add_(0, places, values.float())
    return torch.sparse_coo_tensor(
        touched[None], sums.to(values.dtype), gradient.shape, is_coalesced=True, check_invariants=False
    )


def sum_at_once(table: torch.nn.Parameter) -> None:
    """Makes every backward pass sum the reads of each row, before passes are accumulated.

    Memory is then proportional to the distinct rows of the micro-batches, not to their tokens.
    """
    table.register_hook(lambda gradient: sum_rows(gradient) if gradient.is_sparse else gradient)


def clip_gradients(gradients: list[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scales gradients in place so that their common norm is at most `max_norm`; returns the norm before, a scalar.

    Like `torch.nn.utils.clip_grad_norm_`, but for gradients. For a sparse gradient, pass its values after
    [`sum_rows`]: entries that are still to be summed have no meaningful norm.
    """
    total = torch.nn.utils.get_total_norm(gradients)
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.device))
    return total


class RowStore(Protocol):
    """Where the rows of a table are, with their second moments and stamps."""

    def read(self, touched: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows `[U, W]`, second moments `[U]` float32 and stamps `[U]` int32 of sorted distinct indices `[U]`."""

    def write(self, touched: torch.Tensor, rows: torch.Tensor, second_moments: torch.Tensor, step: int) -> None:
        """Sets them."""

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that has to be saved."""

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Restores what `state` returned."""


class TableInMemory:
    """The rows of a parameter (`RowStore`), with their state in the optimizer."""

    def __init__(self, table: torch.Tensor, state: dict[str, torch.Tensor]):
        if "stamp" not in state:
            state["second_moment"] = torch.zeros(len(table), dtype=torch.float32, device=table.device)
            state["stamp"] = torch.zeros(len(table), dtype=torch.int32, device=table.device)
        self.table, self.second_moments, self.stamps = table, state["second_moment"], state["stamp"]

    def read(self, touched: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        each = [x.index_select(0, touched) for x in (self.table, self.second_moments, self.stamps)]
        return each[0], each[1], each[2]

    def write(self, touched: torch.Tensor, rows: torch.Tensor, second_moments: torch.Tensor, step: int) -> None:
        self.table.index_copy_(0, touched, rows)
        self.second_moments.index_copy_(0, touched, second_moments)
        self.stamps.index_fill_(0, touched, step)


class RowwiseAdamW(torch.optim.AdamW):
    """AdamW, with the rule above for groups with `rowwise=True`, which have their own `lr`, `betas` and `eps`.

    Args:
        params: As for every optimizer. `{"params": tables, "rowwise": True, "lr": 1e-3}` is a group of tables
            `[R, W]`; its `betas` are `(0, 0.95)` and its `weight_decay` is 0 unless given.

    Raises:
        `ValueError`: for a first moment or weight decay on tables, a table whose gradient is dense, or a number that
            is not finite or is outside its range.
    """

    # Makes a gradient scaler unscale all gradients itself: the fused kernel would unscale those of its groups only.
    _step_supports_amp_scaling = property(lambda self: False, lambda self, value: None)

    def __init__(self, params: Iterable[Any], **options: Any):
        self._stores: dict[torch.Tensor, RowStore] = {}
        super().__init__(params, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        param_group.setdefault("rowwise", False)
        if param_group["rowwise"]:
            param_group.setdefault("betas", TABLE_BETAS)
            param_group.setdefault("weight_decay", 0.0)
            if param_group["betas"][0] != 0:
                raise ValueError(f"`betas` of a group of tables is {param_group['betas']}; the first must be 0")
            if param_group["weight_decay"] != 0:
                raise ValueError(
                    f"`weight_decay` of a group of tables is {param_group['weight_decay']}; it must be 0, "
                    "because decay would erase rows that are rarely read"
                )
        check_group(self.defaults | param_group)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        by_rows = [(table, group) for group in self.param_groups if group["rowwise"] for table in group["params"]]
        gradients = [table.grad for table, _ in by_rows]
        try:
            for (table, group), gradient in zip(by_rows, gradients, strict=True):
                if gradient is not None:
                    self._step_table(table, gradient, group)
                    table.grad = None  # AdamW skips parameters without a gradient
            # Without the wrapper that torch puts around a class's `step`: ours has it too, and hooks would run twice.
            inspect.unwrap(torch.optim.AdamW.step)(self)
        finally:
            for (table, _), gradient in zip(by_rows, gradients, strict=True):
                table.grad = gradient
        return loss

    def store(self, table: torch.Tensor, rows: RowStore) -> None:
        """Reads and writes the rows of a parameter, which is only a placeholder, elsewhere."""
        self._stores[table] = rows

    def _step_table(self, table: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        if not gradient.is_sparse:
            raise ValueError(
                f"a table of shape {list(table.shape)} in a group with `rowwise=True` has a dense gradient: make it "
                "`nn.Embedding(sparse=True)`"
            )
        state = self.state[table]
        state.setdefault("step", torch.zeros((), dtype=torch.float32))
        state["step"] += 1
        step = int(state["step"])
        gradient = sum_rows(gradient)
        touched, values, stored = gradient.indices()[0], gradient.values(), self._stores.get(table)
        store = TableInMemory(table, state) if stored is None else stored
        beta, rate = float(group["betas"][1]), float(group["lr"])
        # On a CPU in pieces, which are still in its cache when they are written.
        in_pieces = stored is None and table.device.type == "cpu"
        at_once = max(1, PIECE // table.shape[1] if in_pieces else len(touched))
        for piece, change in zip(touched.split(at_once), values.split(at_once), strict=True):
            rows, moments, stamps = store.read(piece)
            store.write(piece, *update_rows(rows, change, moments, stamps, step, rate, beta, group["eps"]), step)

    def state_dict(self) -> dict[str, Any]:
        """As for every optimizer; it includes rows that are stored elsewhere."""
        saved = super().state_dict()
        for group, indices in zip(self.param_groups, saved["param_groups"], strict=True):
            for table, index in zip(group["params"], indices["params"], strict=True):
                if table in self._stores and index in saved["state"]:
                    saved["state"][index] = {**saved["state"][index], **self._stores[table].state()}
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As for every optimizer, but the state of tables keeps its dtypes, which torch would cast to the tables'."""
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for table, index in zip(group["params"], saved["params"], strict=True):
                state = state_dict["state"].get(index)
                if not group["rowwise"] or not state:
                    continue
                rest = {name: value.to(table.device, copy=True) for name, value in state.items() if name != "step"}
                self.state[table] = {"step": state["step"].to("cpu", copy=True)}
                if table in self._stores:
                    self._stores[table].load(rest)
                else:
                    self.state[table] |= rest


def check_group(group: dict[str, Any]) -> None:
    """Raise a `ValueError` that names a setting with which weights would become NaN or training would go uphill."""
    for name in ("lr", "eps", "weight_decay"):
        check_number(name, float(group[name]), least=0)
    check_number("betas", tuple(map(float, group["betas"])), least=0, below=1)
    if group["rowwise"]:
        check_number("eps", float(group["eps"]), above=0)  # a row whose gradient is zero would be divided by zero


__all__ = ["RowStore", "RowwiseAdamW", "clip_gradients", "sum_at_once", "sum_rows", "update_rows"]
