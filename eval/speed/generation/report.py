# SPDX-License-Identifier: Apache-2.0
"""The speed comparison as Markdown and as a chart."""

from matplotlib.figure import Figure

from eval.reports.files import markdown_table
from eval.reports.machine import machine_sentence
from eval.speed.generation.roofline import PARTS
from eval.speed.models import Shape

NOTES = """\
A case is named by its batch and tokens; for decode, tokens are those of the context. Milliseconds are medians. A ratio
is the median over paired runs, in which the alternatives take turns. *In-tree* is transformers'
`LongcatFlashForCausalLM` of the same shape, with a growing cache, its only experts implementation, and without the
n-gram embedding that our model also computes. *Dynamic* is our model with a growing cache, *compiled* with a static
cache and `torch.compile(fullgraph=True)`; the name that follows is the implementation of the routed experts. The
*roofline* estimates the least time: the larger of the bare matrix products of a forward and of reading its active
weights once, measured in the same run.
"""

COLOURS = {"in-tree": "#999999", "dynamic": "#4477aa", "compiled": "#228833", "roofline": "#cc3311"}


def label(row: dict) -> str:
    """`decode, 1 x 8192`: batch and tokens, for decode those of the context."""
    new_tokens = f" in, {row['new_tokens']} out" if row["section"] == "generation" else ""
    return f"{row['section']}, {row['batch']} x {row['tokens']}{new_tokens}"


def time_table(rows: list[dict]) -> str:
    """One line per case and alternative."""
    lines = []
    for row in rows:
        for name, ms in row["ms"].items():
            faster = next((v for k, v in row["ratios"].items() if k.endswith(f" / {name}")), None)
            above = row["ratios"].get(f"{name} / roofline")
            numbers = [f"{ms:.2f}", f"{faster:.2f}" if faster else "", f"{above:.2f}" if above else ""]
            lines.append([label(row), row["dtype"], f"roofline: {name}" if name in PARTS else name, *numbers])
        if row["section"] == "generation":
            lines.append([label(row), row["dtype"], "roofline", f"{row['roofline_ms']:.2f}", "", ""])
    return markdown_table(["case", "dtype", "alternative", "ms", "baseline / it", "it / roofline"], lines)


def expert_table(measured: list[dict]) -> str:
    """One line per implementation of the experts layer."""
    lines = []
    for case in measured:
        head = f"{case['tokens']} tokens, {case['selected_routed']} routed + {case['selected_zero']} zero selected, "
        for name, counts in case["implementations"].items():
            flops = [f"{counts['flops'] / 1e6:.2f}", f"{case['necessary_flops'] / 1e6:.2f}"]
            calls = [str(counts["calls"]), str(counts["calls_per_expert"]), f"{counts['ms']:.2f}"]
            lines.append([head + name, case["dtype"], *flops, *calls])
    header = ["experts layer", "dtype", "MFLOP", "necessary", "ATen calls", "calls per expert", "ms"]
    return markdown_table(header, lines)


def profile_section(profiles: dict[str, dict]) -> str:
    """The operations of every profiled case."""
    parts = []
    for name, profile in profiles.items():
        parts.append(f"### {name}: {profile['operation_calls']:.0f} calls, {profile['operation_ms']:.2f} ms\n")
        lines = [
            [f"`{o['name'].strip('# ')[:70]}`", f"{o['calls']:.0f}", f"{o['ms']:.3f}", f"{100 * o['share']:.1f} %"]
            for o in profile["operations"]
        ]
        parts.append(markdown_table(["operation", "calls", "own ms", "share"], lines))
    return "\n".join(parts)


def as_markdown(results: dict, chart: str) -> str:
    """The whole report; `chart` is the file of the picture in the same folder."""
    machine = machine_sentence(results["machine"], *results["load_average"].values())
    sections = [
        f"# Generation speed\n\n{machine}\n\nShape: {Shape(**results['shape'])}.\n\n{NOTES}",
        *([f"Not compiled: {results['not_compiled']}.\n"] if results["not_compiled"] else []),
        f"## Times\n\n![Times]({chart})\n\n" + time_table(results["rows"]),
        "## Operations of the experts layer\n\nWeights and routing are the same for all. *Necessary*: the router and "
        "the routed experts that were selected; zero experts multiply nothing. *Calls per expert*: calls made once "
        "for every selected expert.\n\n" + expert_table(results["experts"]),
        "## Profiles\n\n" + "\n".join(f"## {k}\n\n{profile_section(v)}" for k, v in results["profiles"].items()),
    ]
    return "\n".join(sections)


def fastest_ms(row: dict, kind: str) -> float:
    """Milliseconds of the fastest alternative of a kind; NaN without one."""
    if kind == "roofline":
        return row["roofline_ms"]
    return min((ms for name, ms in row["ms"].items() if name.startswith(kind)), default=float("nan"))


def draw(rows: list[dict]) -> Figure:
    """Bars per case, one panel a dtype, time on a logarithmic scale."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    models = [row for row in rows if row["section"] != "n-gram layer"]
    figure = Figure(figsize=(7 * len(dtypes), 1.5 + 0.75 * len(models) / len(dtypes)), layout="constrained")
    panels = figure.subplots(1, len(dtypes), squeeze=False)[0]
    for dtype, panel in zip(dtypes, panels, strict=True):
        cases = [row for row in models if row["dtype"] == dtype]
        for i, (kind, colour) in enumerate(COLOURS.items()):
            times = [fastest_ms(row, kind) for row in cases]
            places = [place + 0.2 * (i - 1.5) for place in range(len(cases))]
            bars = panel.barh(places, times, height=0.19, color=colour, label=kind)
            panel.bar_label(bars, labels=[f"{t:.3g}" if t == t else "" for t in times], padding=2, fontsize=6)
        panel.set(title=dtype, xscale="log", xlabel="ms (median)")
        panel.set_yticks(range(len(cases)), [label(row) for row in cases], fontsize=7)
        panel.invert_yaxis()
        panel.margins(x=0.12)
    panels[0].legend(fontsize=7)
    return figure


__all__ = ["as_markdown", "draw", "time_table"]
