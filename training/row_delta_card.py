# SPDX-License-Identifier: Apache-2.0
"""A page beside a file of changed n-gram rows: of which model, how many, how to load them."""

from pathlib import Path

from modeling_longcat_lite import LongCatLiteConfig, changed_rows_by_order, read_safetensors_header

CARD = """\
# Changed n-gram rows

`{file}`, {megabytes:.1f} MB: {count:,} rows of the {total:,} in the n-gram tables of `{base}` ({share:.3g} %), changed
by fine-tuning. They belong to that model and to no other.

| n-gram | rows |
|---|---:|
{orders}

```python
from modeling_longcat_lite import LongCatLiteForCausalLM

model = LongCatLiteForCausalLM.from_pretrained("{base}", ngram_tables="disk")  # or "host", "resident"
model.load_ngram_rows("{file}")  # several files stack: the later one wins
```

An adapter in this folder goes on top: `PeftModel.from_pretrained(model, folder)`.
`python -m training.merge_row_deltas` writes a checkpoint with the rows in it.
"""


def write_delta_card(delta: Path, config: LongCatLiteConfig) -> Path:
    """Writes the page of a delta with its name and `.md`; returns its path."""
    counts = changed_rows_by_order(delta, config)
    count, total = sum(counts.values()), sum(config.subtable_sizes)
    text = CARD.format(
        file=delta.name,
        megabytes=delta.stat().st_size / 1e6,
        count=count,
        total=total,
        share=100 * count / total,
        base=read_safetensors_header(delta)[1]["base_model"] or "the base model",
        orders="\n".join(f"| {order} tokens | {rows:,} |" for order, rows in counts.items()),
    )
    path = delta.with_suffix(".md")
    beside = path.with_suffix(".md.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
    return path


__all__ = ["write_delta_card"]
