# SPDX-License-Identifier: Apache-2.0
"""The placements of the tables as Markdown and as a chart."""

from collections.abc import Sequence
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.reports.files import markdown_table
from eval.reports.machine import machine_sentence
from eval.speed.models import Shape

NOTES = """\
*Resident* tables are parameters. On a CPU, in the dtype of the file, they are memory-mapped and not copied: what was
touched counts as file memory, and what was not stays on the drive. *Host* tables are copied into anonymous memory,
*disk* tables are read row by row from the checkpoint.

*Warm*: the page cache holds the checkpoint, and resident tables were touched before. *Cold*: the page cache held
nothing of the checkpoint when it was loaded, and nothing of the tables when a run or a prefill began; every token is a
new random one, so that its rows are cold too. *Evicted*: the tables are dropped from the page cache before every
token, which leaves less than any limit on the process's memory would; no such limit was set. The page cache is this
machine's own: the host of a virtual drive may cache as well.

*Added* is the time of a cold token or prompt minus that of a warm one, whose rows were read into the page cache just
before; the two take turns. For a run it is the median over its tokens and *p90* their 90th percentile; the table gives
the median over runs. With host tables it shows what the method cannot tell from nothing. *Drive reads* read as many
other random rows of the same files, cold too, without a model. Memory is the peak of a load, or of decoding and a
prefill, minus that of the process before it loaded anything; in use, the backbone's {backbone:.0f} MB are among the
file pages. Sizes are decimal.
"""

COLOURS = {"model": "#bbbbbb", "added": "#4477aa", "drive": "#cc3311", "anonymous": "#aa3377", "file": "#66ccee"}
SIZES = {"full": "", "eighth": ", 1/8 of the tables", "none": ", hardly any tables"}


def name_of(case: dict) -> str:
    """`disk, cold`, with the tables' size unless it is the full one."""
    return f"{case['placement']}, {case['state']}{SIZES[case['tables']]}"


def find_case(results: dict, placement: str, state: str, tables: str = "full") -> dict | None:
    """The case of a placement, state and size of tables; `None` if it was left out."""
    wanted = f"{placement}, {state}{SIZES[tables]}"
    return next((case for case in results["cases"] if name_of(case) == wanted), None)


def middle(runs: Sequence[dict], field: str) -> float:
    """Median over runs."""
    return median(run[field] for run in runs)


def shown(runs: list[dict] | None, field: str, scale: float = 1.0, digits: int = 2) -> str:
    """Median over runs, or nothing where it was not measured."""
    return f"{scale * middle(runs, field):.{digits}f}" if runs and field in runs[0] else ""


def summary_table(results: dict) -> str:
    """What the placements add, one line a figure; what was not measured is left out."""
    cold, evicted = (find_case(results, "disk", state) for state in ("cold", "evicted"))
    backbone = find_case(results, "resident", "warm", "none")
    lines = []

    def add_cold(figure: str, runs: list[dict], unit: str):
        scale = 1000 if unit == "ms" else 1
        added, drive = (shown(runs, field, scale) for field in ("added_seconds", "drive_seconds"))
        ratio = median(run["added_seconds"] / run["drive_seconds"] for run in runs)
        lines.append([figure, f"{added} {unit}; drive reads {drive} {unit}, ratio {ratio:.2f}"])

    if cold:
        add_cold("disk, cold: added per decoded token", cold["decode"], "ms")
        tokens = results["workload"]["prefill_tokens"]
        add_cold(f"disk, cold: added per prefill of {tokens:,}", cold["prefill"], "s")
    if evicted:
        add_cold("disk, evicted before every token: added per decoded token", evicted["decode"], "ms")
    for phase in ("decode", "prefill"):
        for placement, ratio in results["in_turns"][phase]["ratios"].items():
            lines.append([f"{placement}, warm: {phase} time / resident's", f"{ratio:.3f}"])
    if backbone:
        for tables in ("full", "eighth"):
            if case := find_case(results, "disk", "cold", tables):
                grown = (case["memory"]["anonymous"] - backbone["memory"]["anonymous"]) / 1e6
                lines.append([f"disk{SIZES[tables]}: anonymous memory over the backbone's", f"{grown:.0f} MB"])
    if cold and backbone:
        grown = (cold["load"]["memory"]["anonymous"] - backbone["load"]["memory"]["anonymous"]) / 1e6
        lines.append(["disk, cold: load", f"{cold['load']['seconds']:.2f} s, {grown:.0f} MB over the backbone's"])
    return markdown_table(["figure", "measured"], lines)


def time_table(cases: list[dict]) -> str:
    """One line per case with full tables."""
    header = ["case", "load, s", "decode, ms", "added", "added, p90", "drive reads", "prefill, s", "added"]
    lines = []
    for case in cases:
        if case["tables"] == "full":
            decode, prefill = case["decode"], case.get("prefill")
            line = [name_of(case), f"{case['load']['seconds']:.2f}"]
            line += [
                shown(decode, field, 1000)
                for field in ("seconds", "added_seconds", "added_seconds_p90", "drive_seconds")
            ]
            lines.append(line + [shown(prefill, field) for field in ("seconds", "added_seconds", "drive_seconds")])
    return markdown_table([*header, "drive reads"], lines)


def memory_table(cases: list[dict]) -> str:
    """One line per case: memory of both kinds and bytes read."""
    header = ["case", "cached before", "load: anonymous, MB", "load: file", "in use: anonymous", "in use: file"]
    header += ["read by load, MB", "read per token, kB", "read per prefill, MB"]
    lines = []
    for case in cases:
        both = [case["load"]["memory"], case["memory"]]
        sizes = [f"{part[kind] / 1e6:,.0f}" for part in both for kind in ("anonymous", "file")]
        read = [f"{case['load']['bytes_read'] / 1e6:,.0f}", shown(case["decode"], "bytes_read", 1e-3, 1)]
        cached = f"{100 * case['load']['cached_share']:.1f} %"
        lines.append([name_of(case), cached, *sizes, *read, shown(case.get("prefill"), "bytes_read", 1e-6, 1)])
    return markdown_table(header, lines)


def turns_table(turns: dict) -> str:
    """Warm times of the placements, timed in turns."""
    header = ["placement", "decode, ms", "/ resident", "prefill, s", "/ resident"]
    lines = []
    for name in turns["placements"]:
        line = [name]
        for phase, scale in (("decode", 1000), ("prefill", 1)):
            ratio = turns[phase]["ratios"].get(name)
            line += [f"{scale * median(turns[phase]['seconds'][name]):.2f}", f"{ratio:.3f}" if ratio else ""]
        lines.append(line)
    return markdown_table(header, lines)


def deduplication_table(results: dict) -> str:
    """What a prefill saves by reading each row once, on random tokens and on text."""
    header = ["tokens", "rows used", "distinct", "saved", "read from the drive, MB", "added, s", "drive reads, s"]
    lines = []
    if case := find_case(results, "disk", "cold"):
        for name, field in (("random", "prefill"), ("Python's library, a byte a token", "text_prefill")):
            runs = case[field]
            rows, distinct = middle(runs, "rows"), middle(runs, "distinct_rows")
            numbers = [f"{rows:,.0f}", f"{distinct:,.0f}", f"{100 * (1 - distinct / rows):.1f} %"]
            numbers += [shown(runs, "bytes_read", 1e-6, 1), shown(runs, "added_seconds")]
            lines.append([name, *numbers, shown(runs, "drive_seconds")])
    return markdown_table(header, lines)


def heading(results: dict) -> str:
    """Date, machine, tables, model."""
    tables, workload = results["tables"], results["workload"]
    lines = [
        machine_sentence(results["machine"], *results["load_average"].values()) + "\n",
        f"{tables['number']} tables of {tables['bytes'] / 1e9:.2f} GB together, {tables['rows']:,} rows of "
        f"{tables['row_bytes']} bytes, in bfloat16, made for this report. Batch 1, decoding after "
        f"{workload['context']} tokens, prefill of {workload['prefill_tokens']:,}.\n",
        f"Shape: {Shape(**results['shape'])}.\n",
    ]
    if results["quick"]:
        lines.append("**A quick run: tables and model are too small for its figures to mean anything.**\n")
    return "\n".join(lines + [f"Left out: {reason}\n" for reason in results["left_out"]])


def as_markdown(results: dict, chart: str) -> str:
    """The whole report; `chart` is the file of the picture in the same folder."""
    sections = [
        f"# Placement of the n-gram tables\n\n{heading(results)}",
        "## Summary\n\n" + summary_table(results),
        f"![Time and memory]({chart})\n",
        NOTES.format(backbone=results["backbone_bytes"] / 1e6),
        "## Times\n\nMedians, each case in its own process.\n\n" + time_table(results["cases"]),
        "## Warm, in turns\n\nOne process holds all placements; ratios are medians over paired runs.\n\n"
        + turns_table(results["in_turns"]),
        "## Rows read once\n\nA prefill from disk, cold: each distinct row is read once, however many tokens use it."
        "\n\n" + deduplication_table(results),
        "## Memory and reads\n\n*Cached before*: the share of the tables' pages in the page cache when the load "
        "begins. The kernel can drop *file* memory at any time.\n\n" + memory_table(results["cases"]),
    ]
    return "\n".join(sections)


def draw_times(panel: Axes, cases: list[dict], phase: str, scale: float) -> None:
    """A bar per case: its time when warm, and what is added when it is not; drive reads as a mark."""
    names = [name_of(case) for case in cases]
    totals = [scale * middle(case[phase], "seconds") for case in cases]
    is_cold = ["added_seconds" in case[phase][0] for case in cases]
    added = [
        max(0.0, scale * middle(case[phase], "added_seconds")) if cold else 0.0
        for case, cold in zip(cases, is_cold, strict=True)
    ]
    warm = [total - more for total, more in zip(totals, added, strict=True)]
    panel.barh(names, warm, color=COLOURS["model"], label="warm")
    bars = panel.barh(names, added, left=warm, color=COLOURS["added"], label="added")
    panel.bar_label(bars, [f" {total:.3g}" for total in totals], fontsize=7)
    marked = [
        (scale * middle(case[phase], "drive_seconds"), name_of(case))
        for case in cases
        if "drive_seconds" in case[phase][0]
    ]
    panel.plot(*zip(*marked, strict=True), "|", ms=14, mew=2, color=COLOURS["drive"], label="drive reads")
    panel.set_xlim(0, 1.15 * max(totals))


def draw_memory(panel: Axes, cases: list[dict]) -> None:
    """Two bars per case: anonymous memory and file pages in use."""
    for kind, shift in (("anonymous", -0.2), ("file", 0.2)):
        sizes = [case["memory"][kind] / 1e9 for case in cases]
        places = [place + shift for place in range(len(cases))]
        bars = panel.barh(places, sizes, height=0.38, color=COLOURS[kind], label=kind)
        panel.bar_label(bars, fmt=" %.2f", fontsize=6)
    panel.margins(x=0.14)
    panel.set_yticks(range(len(cases)), [name_of(case) for case in cases])


def draw(results: dict) -> Figure:
    """Decode, prefill and memory of every case."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    full = [case for case in results["cases"] if case["tables"] == "full"]
    decode, prefill, memory = figure.subplots(1, 3)
    draw_times(decode, full, "decode", 1000)
    decode.set(title="decoded token", xlabel="ms")
    draw_times(prefill, [case for case in full if "prefill" in case], "prefill", 1)
    prefill.set(title=f"prefill of {results['workload']['prefill_tokens']:,}", xlabel="s")
    draw_memory(memory, results["cases"])
    memory.set(title="memory in use", xlabel="GB")
    for panel in (decode, prefill, memory):
        panel.tick_params(axis="y", labelsize=7)
        panel.invert_yaxis()
        panel.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    return figure


__all__ = ["as_markdown", "draw", "find_case", "summary_table"]
