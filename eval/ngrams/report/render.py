# SPDX-License-Identifier: Apache-2.0
"""The n-gram report as Markdown and as a chart."""

from matplotlib.figure import Figure

from eval.ngrams.presentation import COLOURS, heading, percent
from eval.reports.files import format_table, markdown_table

COLLISIONS = """\
A table has a *collision* for every distinct n-gram beyond the first in its row; *sharing* counts the n-grams that
share their row. *Expected* is the number for as many distinct n-grams if each read a row at random. *Hit rate* is the
share of the rows that this text reads at all; it grows with the text.
"""
USED = """\
The most read rows of the first table of each order, and the n-grams that read them with their number of reads, most
read first. A shorter n-gram is at the beginning of a document. N-grams in the same row all get the same vector from
this table.
"""


COLUMNS = (
    ("table", "{table}, {order}-grams"),
    ("rows", "{rows:,}"),
    ("distinct n-grams", "{ngrams:,}"),
    ("hit rate", "{percent}"),
    ("collisions", "{collisions:,}"),
    ("expected", "{expected_collisions:,.0f}"),
    ("sharing", "{sharing:,}"),
    ("expected", "{expected_sharing:,.0f}"),
)


def rules_table(rules: list[dict]) -> str:
    """One line per rule."""
    columns = (("rule", "{rule}"), ("", "{result}"), ("measured", "{value:.4g}"), ("limit", "{limit:g}"))
    rows = [{**rule, "result": "kept" if rule["kept"] else "**warning**"} for rule in rules]
    return format_table(columns, rows) + "\n" + "".join(f"* {rule['text']}\n" for rule in rules)


def norms_table(norms: dict) -> str:
    """Norms of the embedding, of its parts, and of the first attention."""
    names = {
        "word_term": "word embedding, scaled as it is added",
        "ngram_terms": "projected n-gram rows, divided by the number of terms",
        "embedding": "embedding, amplified by the config's rule",
        "attention": "output of the first attention",
    }
    lines = [[label, f"{norms[key]:.4g}"] for key, label in names.items()]
    lines.append(["first attention / embedding", f"{norms['ratio']:.3f}"])
    return markdown_table([f"mean L2 norm, {norms['tokens']:,} tokens in windows of {norms['window']:,}", ""], lines)


def as_code(text: str) -> str:
    """Any text as code in a cell of a table."""
    return "`" + repr(text).replace("`", "'").replace("|", "\\|") + "`"


def used_table(entries: list[dict]) -> str:
    """The most used rows of an order."""
    lines = []
    for entry in entries:
        ngrams = ", ".join(f"{as_code(ngram['text'])} {ngram['reads']:,}" for ngram in entry["ngrams"])
        more = entry["distinct"] - len(entry["ngrams"])
        lines.append(
            [
                f"{entry['row']:,}",
                f"{entry['reads']:,}",
                str(entry["distinct"]),
                ngrams + (f", {more} more" if more else ""),
            ]
        )
    return markdown_table(["row", "reads", "n-grams", "the n-grams"], lines)


def as_markdown(results: dict, name: str) -> str:
    """The whole report; its chart is `{name}.png`."""
    sections = [
        f"# N-gram tables\n\n{heading(results)}",
        "## Rules\n\nThe rules of arXiv 2601.21204, section 3.2, and *occupied rows*, which is not in the paper.\n\n"
        + rules_table(results["rules"]),
        f"![Hit rates and collisions]({name}.png)\n",
    ]
    if "norms" in results:
        sections.append("## Norms\n\n" + norms_table(results["norms"]))
    sections.append(
        f"## Hit rates and collisions\n\n{COLLISIONS}\n"
        + format_table(COLUMNS, [{**table, "percent": percent(table["hit_rate"])} for table in results["tables"]])
    )
    used = [
        f"{order}, table {rows[0]['table']}:\n\n{used_table(rows)}" for order, rows in results["most_used"].items()
    ]
    sections.append(f"## Most used rows\n\n{USED}\n" + "\n".join(used))
    return "\n".join(sections)


def draw(results: dict) -> Figure:
    """Hit rate against tokens, collisions compared with chance, and, with a model, its norms."""
    panels = 3 if "norms" in results else 2
    figure = Figure(figsize=(5.5 * panels, 4.2), layout="constrained")
    hits, collisions, *rest = figure.subplots(1, panels)
    for colour, (order, part) in zip(COLOURS, results["orders"].items(), strict=False):
        rates = [100 * rate for rate in part["hit_rate_by_tokens"]]
        hits.plot(results["curve_tokens"], rates, "o-", ms=3, color=colour, label=order)
    hits.set(xscale="log", ylim=(0, None), xlabel="tokens read", ylabel="rows read, %", title="Hit rate")
    hits.grid(alpha=0.3)
    hits.legend()
    tables = results["tables"]
    places = range(len(tables))
    first = tables[0]["order"]
    colours = [COLOURS[(table["order"] - first) % len(COLOURS)] for table in tables]
    collisions.bar(places, [table["collisions"] for table in tables], color=colours, label="measured")
    expected = [table["expected_collisions"] for table in tables]
    collisions.plot(places, expected, "_", color="black", ms=18, mew=2, label="at random")
    collisions.set_xticks(list(places), [f"{table['order']}-gr." for table in tables], rotation=45)
    collisions.yaxis.set_major_formatter("{x:,.0f}")
    collisions.set(ylabel="collisions", title="Collisions of each table")
    collisions.legend()
    if rest:
        norms = results["norms"]
        keys = ("word_term", "ngram_terms", "embedding", "attention")
        bars = rest[0].bar(["word\nterm", "n-gram\nterms", "embedding", "first\nattention"], [norms[k] for k in keys])
        rest[0].margins(y=0.15)
        rest[0].bar_label(bars, fmt="%.3g")
        rest[0].set(yscale="log", ylabel="mean L2 norm", title=f"First attention / embedding: {norms['ratio']:.2f}")
    return figure


__all__ = ["as_markdown", "draw"]
