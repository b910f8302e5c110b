# SPDX-License-Identifier: Apache-2.0
"""A page beside a file of changed n-gram rows: of which model, how many, how to load them."""

from pathlib import Path

from modeling_longcat_lite import LongCatLiteConfig, read_row_delta, read_safetensors_header

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
    counts = [len(row_ids) for row_ids, _ in read_row_delta(delta, config)]
    each = config.num_subtables_per_order
    orders = [
        f"| {order} tokens | {sum(counts[begin : begin + each]):,} |"
        for order, begin in enumerate(range(0, len(counts), each), start=2)
    ]
    total = sum(config.subtable_sizes)
    text = CARD.format(
        file=delta.name,
        megabytes=delta.stat().st_size / 1e6,
        count=sum(counts),
        total=total,
        share=100 * sum(counts) / total,
        base=read_safetensors_header(delta)[1]["base_model"] or "the base model",
        orders="\n".join(orders),
    )
    path = delta.with_suffix(".md")
    beside = path.with_suffix(".md.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
    return path


__all__ = ["write_delta_card"]
