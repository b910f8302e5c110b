# SPDX-License-Identifier: Apache-2.0
"""Training of n-gram tables in host memory or on disk: the rows that change are kept in memory, and saved as a file.

Fine-tuning reads few rows of 31 billion parameters. The rows of a batch are fetched for the forward; their gradient
goes to a placeholder parameter, and `RowwiseAdamW` writes new rows to an overlay in memory. The base checkpoint is
never written. The overlay is saved as `ngram_row_delta.safetensors`, some megabytes next to a LoRA adapter or the
weights (`modeling_longcat_lite/ngram_row_files.py`), with a page about it, `ngram_row_delta.md`.

Rows of a delta that was loaded earlier continue to learn, and are saved with the others. A checkpoint of the trainer
holds rows twice: in its delta, and with second moments and stamps in the optimizer's state, from which it resumes.

Results equal those of tables that are parameters, bit for bit: rows are summed, clipped and updated in the same order.

Shapes: W width of a table row, U distinct rows touched; n is the number of rows in the overlay.
"""

import itertools
from pathlib import Path
from typing import Any

import torch

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.checkpoint_header import read_safetensors_header
from modeling_longcat_lite.ngram_row_files import ROW_DELTA_FILE, changed_rows_by_order
from modeling_longcat_lite.ngram_tables import NgramTables
from modeling_longcat_lite.whole_files import write_whole

ROW_DELTA_CARD = str(Path(ROW_DELTA_FILE).with_suffix(".md"))
CARD = """\
# Changed n-gram rows

`{file}`, {megabytes:.1f} MB: {count:,} rows of the {total:,} in the n-gram tables of `{base}` ({share:.3g} %), changed
by fine-tuning. They belong to that model only.

| n-gram | rows |
|---|---:|
{orders}

```python
from modeling_longcat_lite import LongCatLiteForCausalLM

model = LongCatLiteForCausalLM.from_pretrained("{base}", ngram_tables="disk")  # or "host", "resident"
model.load_ngram_rows("{file}")  # several files stack: the later one wins
```

To add an adapter from this folder: `PeftModel.from_pretrained(model, folder)`.
`python -m eval.checkpoints.merge_rows` writes a checkpoint with the rows merged into it.
"""


class OverlayRows:
    """The rows of all tables as one `RowStore`; those that changed are in the tables' overlay.

    Args:
        tables (`NgramTables`): From a model that was loaded with `ngram_tables="host"` or `"disk"`.
        width (`int`): W.
        dtype (`torch.dtype`): Of the rows while they train: that of the model.
    """

    def __init__(self, tables: NgramTables, width: int, dtype: torch.dtype):
        self.tables = tables
        self.overlay = tables.lay_over(width, dtype)
        # A placeholder for the rows of all tables, one table after another: it holds one number and gets the gradient.
        self.parameter = self.overlay.train(tables.num_keys)
        self._forget()

    def _forget(self) -> None:
        self.second_moments = torch.zeros(len(self.overlay))  # [n], by slot
        self.stamps = torch.zeros(len(self.overlay), dtype=torch.int32)

    def read(self, touched: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For sorted keys `[U]`: rows `[U, W]`, second moments and stamps `[U]`. The forward has read the disk."""
        is_here, slots = self.overlay.find(touched)
        second_moments, stamps = torch.zeros(len(touched)), torch.zeros(len(touched), dtype=torch.int32)
        second_moments[is_here], stamps[is_here] = self.second_moments[slots], self.stamps[slots]
        return self.tables.rows_at(touched, self.overlay.dtype), second_moments, stamps

    def write(self, touched: torch.Tensor, rows: torch.Tensor, second_moments: torch.Tensor, step: int) -> None:
        """Sets rows; those that are new to the overlay are added."""
        slots = self.overlay.put(touched, rows)
        fresh = len(self.overlay) - len(self.stamps)
        self.second_moments = torch.nn.functional.pad(self.second_moments, (0, fresh))
        self.stamps = torch.nn.functional.pad(self.stamps, (0, fresh))
        self.second_moments[slots], self.stamps[slots] = second_moments, step

    def state(self) -> dict[str, torch.Tensor]:
        """Keys `[n]`, rows `[n, W]`, second moments and stamps `[n]`, sorted by key."""
        keys, rows = self.overlay.by_key()
        slots = self.overlay.slots
        return {"keys": keys, "rows": rows, "second_moment": self.second_moments[slots], "stamp": self.stamps[slots]}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Restores what [`state`] returned and drops everything else."""
        self.overlay.clear()
        self.overlay.put(state["keys"], state["rows"])
        self.second_moments, self.stamps = state["second_moment"], state["stamp"]

    def replace(self, changed: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Replaces everything by the rows of a delta, one entry per table, as if no step had touched them."""
        self.overlay.clear()
        for table, (row_ids, rows) in enumerate(changed):
            self.overlay.put(self.tables.keys(table, row_ids), rows)
        self._forget()

    def gradients(self) -> list[torch.Tensor]:
        """The gradient of each table, `[any, W]`, summed: views, for a norm that is taken table by table."""
        gradient = self.parameter.grad
        if gradient is None:
            return []
        _, bounds = self.tables.by_table(gradient.indices()[0])
        return [gradient.values()[begin:end] for begin, end in itertools.pairwise(bounds)]


def overlay_rows(embedding: Any, dtype: torch.dtype) -> OverlayRows:
    """Makes the tables of an n-gram embedding trainable that are not among its parameters."""
    return OverlayRows(embedding.tables, embedding.post_proj.in_features // len(embedding.tables.stored), dtype)


def save_changed_rows(model: LongCatLiteForCausalLM, folder: Path) -> None:
    """Writes the changed rows of a model, and the page about them."""
    model.save_ngram_rows(folder)
    write_whole(folder / ROW_DELTA_CARD, delta_card(folder / ROW_DELTA_FILE, model.config))


def delta_card(delta: Path, config: LongCatLiteConfig) -> str:
    """The page about a delta, as Markdown."""
    counts = changed_rows_by_order(delta, config)
    count, total = sum(counts.values()), sum(config.subtable_sizes)
    return CARD.format(
        file=delta.name,
        megabytes=delta.stat().st_size / 1e6,
        count=count,
        total=total,
        share=100 * count / total,
        base=read_safetensors_header(delta)[1]["base_model"] or "the base model",
        orders="\n".join(f"| {order} tokens | {rows:,} |" for order, rows in counts.items()),
    )


__all__ = ["ROW_DELTA_CARD", "OverlayRows", "overlay_rows", "save_changed_rows"]
