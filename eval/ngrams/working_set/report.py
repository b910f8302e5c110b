# SPDX-License-Identifier: Apache-2.0
"""The working set of the n-gram tables as Markdown and as a chart."""

from pathlib import Path

from matplotlib.figure import Figure

from eval.reports.files import markdown_table, save_figure

NOTES = """\
*All* is every table together; an n-gram order is its {per_order} tables. A cache is named by its rows, which the
tables of its column share; it holds nothing else. *LRU* drops the row that was not read for longest; it starts empty.
*Frequent* holds the rows that were read most often in the first half of the tokens and never changes; it is measured
on the second half. So is the LRU cache beside it, which comes filled from the first. Reads of the word embedding are
not counted.
"""

COLOURS = ["#4477aa", "#228833", "#ee7733", "#aa3377", "#66ccee", "#ccbb44"]
TOTAL_COLOUR = "#222222"


def size(number: float) -> str:
    """Bytes for a reader: `512 B`, `6 KiB`, `1.5 GiB`."""
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
    """What was read with what, and how far the numbers carry."""
    model, tokenizer, text = results["model"], results["tokenizer"], results["text"]
    tables, row_bytes = model["tables"], model["row_bytes"]
    lines = [
        f"{results['date']}, Python {results['python']}. Counted, not timed: ids depend on tokens and config alone.\n",
        f"Model: {model['name']}. {tables} tables, {model['rows']:,} rows of {row_bytes} bytes, "
        f"{size(model['rows'] * row_bytes)}; a token reads {tables} rows, {size(tables * row_bytes)}.\n",
        f"Text: {text['source']}, {text['documents']} documents from `{text['first']}` to `{text['last']}`, "
        f"{text['tokens']:,} tokens of {text['characters'] / text['tokens']:.2f} characters.\n",
        f"Tokenizer: `{tokenizer['name']}`, {tokenizer['tokens']:,} tokens (vocabulary {tokenizer['digest']}).",
    ]
    if tokenizer["tokens"] < model["vocab_size"]:
        lines.append(
            f"The model has {model['vocab_size']:,}. A smaller vocabulary cuts text into shorter pieces, whose\n"
            "n-grams are fewer and come back more often: with the model's own tokenizer, expect more distinct rows\n"
            "for as many tokens and lower hit rates, and other rows among the frequent ones."
        )
    return "\n".join(lines) + "\n"


def summary_table(results: dict) -> str:
    """One line per order: rows, bytes, repeats."""
    bytes_per_row = results["model"]["row_bytes"]
    header = ["tables", "reads", "distinct rows", "bytes", "repeated", "distinct / 1,000 tokens", "bytes", "new, last"]
    lines = [
        [
            name,
            f"{part['reads']:,}",
            f"{part['distinct_rows']:,}",
            size(part["distinct_rows"] * bytes_per_row),
            percent(part["repeated_share"]),
            f"{part['distinct_rows_per_thousand_tokens']:,.0f}",
            size(part["distinct_rows_per_thousand_tokens"] * bytes_per_row),
            f"{part['new_rows_of_last_thousand_tokens']:,}",
        ]
        for name, part in results["orders"].items()
    ]
    return markdown_table(header, lines)


def curve_table(results: dict) -> str:
    """Distinct rows against tokens seen."""
    orders = results["orders"]
    curves = [part["distinct_rows_by_tokens"] for part in orders.values()]
    bytes_per_row = results["model"]["row_bytes"]
    lines = [
        [f"{tokens:,}", *(f"{rows:,}" for rows in counts), size(counts[-1] * bytes_per_row)]
        for tokens, *counts in zip(results["curve_tokens"], *curves, strict=True)
    ]
    return markdown_table(["tokens", *orders, "bytes, all"], lines)


def hit_table(results: dict, key: str) -> str:
    """Hit rate against cache size."""
    orders = results["orders"]
    rates = [part[key] for part in orders.values()]
    lines = [
        [f"{rows:,}", size(rows * results["model"]["row_bytes"]), *map(percent, shares)]
        for rows, *shares in zip(results["cache_rows"], *rates, strict=True)
    ]
    return markdown_table(["rows", "bytes", *orders], lines)


def as_markdown(results: dict) -> str:
    """The whole report."""
    orders = results["orders"]
    seen = ", ".join(f"{name} {percent(part['second_half_seen_in_first'])}" for name, part in orders.items())
    sections = [
        f"# Working set of the n-gram tables\n\n{heading(results)}\n"
        + NOTES.format(per_order=first(orders)["tables"]),
        "![Distinct rows and hit rates](working_set.png)\n",
        "## Rows\n\n*Distinct / 1,000 tokens*: mean over windows of that length. *New, last*: rows that the last\n"
        "1,000 tokens were first to read.\n\n" + summary_table(results),
        "## Distinct rows by tokens seen\n\n" + curve_table(results),
        "## LRU, whole text\n\n" + hit_table(results, "lru_hit_rate"),
        "## LRU, second half\n\n" + hit_table(results, "lru_hit_rate_second_half"),
        f"## Frequent, second half\n\nNo static cache chosen on the first half can hit more than what that half read: "
        f"{seen}.\n\n" + hit_table(results, "static_hit_rate_second_half"),
    ]
    return "\n".join(sections)


def first(orders: dict[str, dict]) -> dict:
    """The measurements of the lowest order."""
    return next(iter(orders.values()))


def draw(results: dict, path: Path):
    """Distinct rows against tokens, and hit rates of the second half against rows; one colour an order."""
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    growth, caches = figure.subplots(1, 2)
    bytes_per_row = results["model"]["row_bytes"]
    orders = results["orders"]
    for i, (name, part) in enumerate(orders.items()):
        colour = TOTAL_COLOUR if name == "all" else COLOURS[i % len(COLOURS)]
        growth.plot(results["curve_tokens"], part["distinct_rows_by_tokens"], "o-", ms=3, color=colour, label=name)
        for key, style, label in (
            ("lru_hit_rate_second_half", "o-", f"{name}, LRU"),
            ("static_hit_rate_second_half", "s--", f"{name}, frequent"),
        ):
            rates = [100 * rate for rate in part[key]]
            caches.plot(results["cache_rows"], rates, style, ms=3, color=colour, label=label)
    most = [tokens * orders["all"]["tables"] for tokens in results["curve_tokens"]]
    growth.plot(results["curve_tokens"], most, ":", color="#999999", label="all, if none came back")
    growth.set(xscale="log", yscale="log", xlabel="tokens seen", ylabel="distinct rows", title="Rows touched")
    to_mib = bytes_per_row / 2**20
    bytes_axis = growth.secondary_yaxis("right", functions=(lambda rows: rows * to_mib, lambda mib: mib / to_mib))
    bytes_axis.set_ylabel("MiB")
    caches.set(xscale="log", xlabel=f"rows in the cache ({bytes_per_row} bytes each)", ylabel="hit rate, %")
    caches.set(ylim=(0, 100), title="Second half of the text")
    for panel in (growth, caches):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    save_figure(figure, path)


__all__ = ["COLOURS", "as_markdown", "draw", "heading", "percent"]
