# SPDX-License-Identifier: Apache-2.0
"""What the reports on n-gram tables share: how they begin, how they write numbers, their colours."""

COLOURS = ["#4477aa", "#228833", "#ee7733", "#aa3377", "#66ccee", "#ccbb44"]
TOTAL_COLOUR = "#222222"


def binary_size(number: float) -> str:
    """Bytes for a reader, in powers of 1,024: `512 B`, `6 KiB`, `1.5 GiB`."""
    power = 0
    while number >= 1024 and power < 4:
        number /= 1024
        power += 1
    unit = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    return f"{number:.3g} {unit}" if number < 100 else f"{number:.0f} {unit}"


def percent(share: float) -> str:
    """One decimal."""
    return f"{100 * share:.1f} %"


def heading(results: dict) -> str:
    """What [`eval.ngrams.token_rows.describe`] said, and whether the numbers hold for the model's own tokenizer."""
    model, tokenizer, text = results["model"], results["tokenizer"], results["text"]
    tables, row_bytes = model["tables"], model["row_bytes"]
    lines = [
        f"{results['date']}, Python {results['python']}. These are counts, not timings: which rows are read depends "
        "only on the tokens and the config.\n",
        f"Model: {model['name']}. {tables} tables, {model['rows']:,} rows of {row_bytes} bytes, "
        f"{binary_size(model['rows'] * row_bytes)}; a token reads {tables} rows, {binary_size(tables * row_bytes)}.\n",
        f"Text: {text['source']}, {text['documents']} documents from `{text['first']}` to `{text['last']}`, "
        f"{text['tokens']:,} tokens of {text['characters'] / text['tokens']:.2f} characters.\n",
        f"Tokenizer: `{tokenizer['name']}`, {tokenizer['tokens']:,} tokens (vocabulary {tokenizer['digest']}).",
    ]
    if tokenizer["tokens"] < model["vocab_size"]:
        lines.append(
            f"The model's vocabulary has {model['vocab_size']:,}. A smaller vocabulary cuts text into shorter pieces\n"
            "with fewer distinct n-grams, repeated more often. With the model's own tokenizer, expect more\n"
            "distinct rows for the same number of tokens, lower hit rates, and other rows among the frequent ones."
        )
    return "\n".join(lines) + "\n"


__all__ = ["COLOURS", "TOTAL_COLOUR", "binary_size", "heading", "percent"]
