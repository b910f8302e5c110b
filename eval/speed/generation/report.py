# SPDX-License-Identifier: Apache-2.0
"""The speed comparison as Markdown and as a chart."""

from pathlib import Path

from matplotlib.figure import Figure

from eval.reports.files import markdown_table, save_figure

NOTES = """\
A case is named by its batch and tokens, for decode those of the context. Milliseconds are medians; a ratio is the
median over paired runs, in which the alternatives take turns. *In-tree* is transformers' `LongcatFlashForCausalLM` at
the same shape, with a growing cache, its only experts implementation and no n-gram embedding, which this model
computes on top. *Dynamic* is this model with a growing cache, *compiled* with a static cache and
`torch.compile(fullgraph=True)`; the name after it is the implementation of the routed experts. The *floor* is the
larger of the bare matrix products of a forward and of reading its active weights once, measured in the same run.
"""

COLOURS = {"in-tree": "#999999", "dynamic": "#4477aa", "compiled": "#228833", "floor": "#cc3311"}


def label(row: dict) -> str:
    """`decode, 1 x 8192`: batch and tokens, for decode those of the context."""
    new_tokens = f" in, {row['new_tokens']} out" if row["section"] == "generation" else ""
    return f"{row['section']}, {row['batch']} x {row['tokens']}{new_tokens}"


def best(row: dict, kind: str) -> str | None:
    """The fastest alternative of a kind."""
    names = [name for name in row["ms"] if name.startswith(kind)]
    return min(names, key=row["ms"].__getitem__, default=None)


def speed_table(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and one line per case and alternative."""
    header = ["case", "dtype", "alternative", "ms", "baseline / it", "it / floor"]
    lines = []
    for row in rows:
        for name, ms in row["ms"].items():
            faster = next((v for k, v in row["ratios"].items() if k.endswith(f" / {name}")), None)
            above = row["ratios"].get(f"{name} / floor")
            shown = f"floor: {name}" if name in ("products", "reading") else name
            numbers = [f"{ms:.2f}", f"{faster:.2f}" if faster else "", f"{above:.2f}" if above else ""]
            lines.append([label(row), row["dtype"], shown, *numbers])
        if row["section"] == "generation":
            lines.append([label(row), row["dtype"], "floor", f"{row['floor_ms']:.2f}", "", ""])
    return header, lines


def target_table(verdicts: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and one line per target."""
    header = ["target", "dtype", "alternative", "bound", "measured", "met"]
    return header, [
        [v["target"], v["dtype"], v["alternative"], v["bound"], f"{v['value']:.2f}", "yes" if v["met"] else "NO"]
        for v in verdicts
    ]


def expert_table(measured: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and one line per implementation of the experts layer."""
    header = ["experts layer", "dtype", "MFLOP", "necessary", "ATen calls", "calls per expert", "ms"]
    lines = []
    for case in measured:
        head = f"{case['tokens']} tokens, {case['selected_routed']} routed + {case['selected_zero']} zero selected, "
        for name, counts in case["implementations"].items():
            flops = [f"{counts['flops'] / 1e6:.2f}", f"{case['necessary_flops'] / 1e6:.2f}"]
            calls = [str(counts["calls"]), str(counts["calls_per_expert"]), f"{counts['ms']:.2f}"]
            lines.append([head + name, case["dtype"], *flops, *calls])
    return header, lines


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
    """The whole report; `chart` is the file of the picture beside it."""
    machine, load = results["machine"], results["load_average"]
    described = (
        f"{machine['date']}, torch {machine['torch']}, transformers {machine['transformers']}, {machine['cpu']} "
        f"({machine['cpu_capability']}), {machine['cores']} cores, {machine['threads']} threads. Load average "
        f"(1, 5, 15 minutes) {load['start']} at the start, {load['end']} at the end."
    )
    shape = ", ".join(f"{key} {value}" for key, value in results["shape"].items())
    sections = [
        f"# Generation speed\n\n{described}\n\nShape: {shape}.\n\n{NOTES}",
        *([f"Not compiled: {results['not_compiled']}.\n"] if results["not_compiled"] else []),
        "## Targets\n\n" + markdown_table(*target_table(results["targets"])),
        f"## Times\n\n![Times]({chart})\n\n" + markdown_table(*speed_table(results["rows"])),
        "## Work of the experts layer\n\nThe same weights and routing for all. *Necessary*: the router and the routed "
        "experts that were selected; zero experts multiply nothing. *Calls per expert*: calls made once for every "
        "selected expert.\n\n" + markdown_table(*expert_table(results["experts"])),
        "## Profile\n\n" + "\n".join(f"## {k}\n\n{profile_section(v)}" for k, v in results["profiles"].items()),
    ]
    return "\n".join(sections)


def draw(rows: list[dict], path: Path):
    """Bars per case, one panel a dtype, time on a logarithmic scale."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    models = [row for row in rows if row["section"] != "n-gram layer"]
    figure = Figure(figsize=(7 * len(dtypes), 1.5 + 0.75 * len(models) / len(dtypes)), layout="constrained")
    panels = figure.subplots(1, len(dtypes), squeeze=False)[0]
    for dtype, panel in zip(dtypes, panels, strict=True):
        cases = [row for row in models if row["dtype"] == dtype]
        for i, (kind, colour) in enumerate(COLOURS.items()):
            names = [best(row, kind) for row in cases]
            times = [
                row["floor_ms"] if kind == "floor" else row["ms"][name] if name else float("nan")
                for row, name in zip(cases, names, strict=True)
            ]
            places = [place + 0.2 * (i - 1.5) for place in range(len(cases))]
            bars = panel.barh(places, times, height=0.19, color=colour, label=kind)
            panel.bar_label(bars, labels=[f"{t:.3g}" if t == t else "" for t in times], padding=2, fontsize=6)
        panel.set(title=dtype, xscale="log", xlabel="ms (median)")
        panel.set_yticks(range(len(cases)), [label(row) for row in cases], fontsize=7)
        panel.invert_yaxis()
        panel.margins(x=0.12)
    panels[0].legend(fontsize=7)
    save_figure(figure, path)


__all__ = ["as_markdown", "draw", "speed_table", "target_table"]
