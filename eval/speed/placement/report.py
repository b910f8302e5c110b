# SPDX-License-Identifier: Apache-2.0
"""The placements of the tables as Markdown and as a chart."""

from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from eval.reports.files import markdown_table, save_figure
from eval.speed.placement.verdicts import middle

NOTES = """\
*Resident* tables are parameters. On a CPU, in the dtype of the file, they are memory-mapped and not copied: what was
touched counts as file memory, and what was not stays on the drive. *Host* tables are copied into anonymous memory,
*disk* tables are read row by row from the checkpoint.

*Warm*: the page cache holds the checkpoint, and resident tables were touched before. *Cold*: nothing of the checkpoint
was in the page cache when it was loaded, and nothing of the tables when a run or a prefill began; every token is a new
random one, so that its rows are cold too. *Evicted*: the tables are dropped from the page cache before every token,
which leaves less than any limit on the process's memory would; no such limit was set. The page cache is this
machine's own: a virtual drive's host may cache below it.

*Added* is a cold token or prompt less another one beside it whose rows were read into the page cache before, the two
in turns: of a run the median over its tokens, *p90* their 90th percentile, then the median over runs. With host tables
it is what the method cannot tell from nothing. *Bare reads* ask for as many other random rows of the same files, cold
too, and copy them out, without a model. Memory is the most of a load, or of decoding and a prefill, over the process
before it loaded anything; in use, the backbone's {backbone:.0f} MB are among the file pages. Sizes are decimal.
"""

MEANT_FOR = 8 * 10**9  # bytes of tables
COLOURS = {"model": "#bbbbbb", "added": "#4477aa", "bare": "#cc3311", "anonymous": "#aa3377", "file": "#66ccee"}


def name_of(case: dict) -> str:
    """`disk, cold`, with the tables' size unless it is the full one."""
    sizes = {"full": "", "eighth": ", 1/8 of the tables", "none": ", hardly any tables"}
    return f"{case['placement']}, {case['state']}{sizes[case['tables']]}"


def shown(runs: list[dict] | None, field: str, scale: float = 1.0, digits: int = 2) -> str:
    """Median over runs, or nothing where it was not measured."""
    return f"{scale * middle(runs, field):.{digits}f}" if runs and field in runs[0] else ""


def time_table(cases: list[dict]) -> str:
    """One line per case with full tables."""
    header = ["case", "load, s", "decode, ms", "added", "added, p90", "bare", "prefill, s", "added", "bare"]
    lines = []
    for case in cases:
        if case["tables"] == "full":
            decode, prefill = case["decode"], case.get("prefill")
            line = [name_of(case), f"{case['load']['seconds']:.2f}", shown(decode, "seconds", 1000)]
            line += [
                shown(decode, f"{kind}_seconds{rest}", 1000)
                for kind, rest in (("added", ""), ("added", "_p90"), ("bare", ""))
            ]
            lines.append(line + [shown(prefill, f) for f in ("seconds", "added_seconds", "bare_seconds")])
    return markdown_table(header, lines)


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
    header = ["placement", "decode, ms", "of resident", "prefill, s", "of resident"]
    lines = []
    for name in turns["placements"]:
        line = [name]
        for phase, scale in (("decode", 1000), ("prefill", 1)):
            ratio = turns[phase]["ratios"].get(name)
            line += [f"{scale * median(turns[phase]['seconds'][name]):.2f}", f"{ratio:.3f}" if ratio else ""]
        lines.append(line)
    return markdown_table(header, lines)


def deduplication_table(results: dict) -> str:
    """What reading each row of a prefill once saves, on random tokens and on text."""
    header = ["tokens", "rows asked for", "distinct", "saved", "read from the drive, MB", "added, s", "bare reads, s"]
    lines = []
    for case in results["cases"]:
        if (case["placement"], case["state"], case["tables"]) == ("disk", "cold", "full"):
            for name, field in (("random", "prefill"), ("Python's library, a byte a token", "text_prefill")):
                runs = case[field]
                rows, distinct = middle(runs, "rows"), middle(runs, "distinct_rows")
                numbers = [f"{rows:,.0f}", f"{distinct:,.0f}", f"{100 * (1 - distinct / rows):.1f} %"]
                numbers += [shown(runs, "bytes_read", 1e-6, 1), shown(runs, "added_seconds")]
                lines.append([name, *numbers, shown(runs, "bare_seconds")])
    return markdown_table(header, lines)


def verdict_lines(verdicts: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and one line per target."""
    lines = [[v["requirement"], v["target"], v["figure"], "met" if v["met"] else "MISSED"] for v in verdicts]
    return ["requirement", "target", "figure", "verdict"], lines


def heading(results: dict) -> str:
    """Date, machine, tables, model."""
    machine, load, tables = results["machine"], results["load_average"], results["tables"]
    lines = [
        f"{machine['date']}, torch {machine['torch']}, transformers {machine['transformers']}, {machine['cpu']} "
        f"({machine['cpu_capability']}), {machine['cores']} cores, {machine['threads']} threads. Load average "
        f"(1, 5, 15 minutes) {load['start']} at the start, {load['end']} at the end.\n",
        f"{tables['number']} tables of {tables['bytes'] / 1e9:.2f} GB together, {tables['rows']:,} rows of "
        f"{tables['row_bytes']} bytes, in bfloat16, made for the run. Batch 1, decoding behind "
        f"{results['plan']['context']} tokens, prefill of {results['plan']['prefill_tokens']:,}.\n",
        "Shape: " + ", ".join(f"{key} {value}" for key, value in results["shape"].items()) + ".\n",
    ]
    if results["quick"]:
        lines.append("**A quick run: tables and model are too small for its verdicts to mean anything.**\n")
    elif tables["bytes"] < MEANT_FOR:
        lines.append(f"**The verdicts are meant for tables of {MEANT_FOR / 1e9:.0f} GB or more.**\n")
    return "\n".join(lines + [f"Left out: {reason}\n" for reason in results["left_out"]])


def as_markdown(results: dict) -> str:
    """The whole report."""
    sections = [
        f"# Placement of the n-gram tables\n\n{heading(results)}",
        "## Verdicts\n\n" + markdown_table(*verdict_lines(results["verdicts"])),
        "![Time and memory](table_placement.png)\n",
        NOTES.format(backbone=results["backbone_bytes"] / 1e6),
        "## Times\n\nMedians, each case in a process of its own.\n\n" + time_table(results["cases"]),
        "## Warm, in turns\n\nOne process holds all placements; ratios are medians over paired runs.\n\n"
        + turns_table(results["in_turns"]),
        "## Rows read once\n\nA prefill from disk, cold: each distinct row is read once, however often tokens ask for "
        "it.\n\n" + deduplication_table(results),
        "## Memory and reads\n\n*Cached before*: the share of the tables' pages in the page cache as the load "
        "begins. *File* memory can be dropped by the kernel at any time.\n\n" + memory_table(results["cases"]),
    ]
    return "\n".join(sections)


def draw_times(panel, cases: list[dict], phase: str, scale: float):
    """A bar per case: what it takes warm, and what was added to that; bare reads as a mark."""
    longest = 0.0
    for place, case in enumerate(cases):
        runs = case[phase]
        total, added = scale * middle(runs, "seconds"), 0.0
        if "added_seconds" in runs[0]:
            added = max(0.0, scale * middle(runs, "added_seconds"))
            panel.plot([scale * middle(runs, "bare_seconds")], [place], "|", ms=14, mew=2, color=COLOURS["bare"])
        panel.barh(place, total - added, color=COLOURS["model"])
        panel.barh(place, added, left=total - added, color=COLOURS["added"])
        panel.annotate(f" {total:.3g}", (total, place), va="center", fontsize=7)
        longest = max(longest, total)
    for name, colour in (("warm", "model"), ("added", "added")):
        panel.barh(0, 0, color=COLOURS[colour], label=name)
    panel.plot([], [], "|", color=COLOURS["bare"], label="bare reads")
    panel.set_xlim(0, 1.15 * longest)
    panel.set_yticks(range(len(cases)), [name_of(case) for case in cases], fontsize=7)


def draw_memory(panel, cases: list[dict]):
    """Two bars per case: anonymous memory and file pages in use."""
    for kind, shift in (("anonymous", -0.2), ("file", 0.2)):
        sizes = [case["memory"][kind] / 1e9 for case in cases]
        places = [place + shift for place in range(len(cases))]
        bars = panel.barh(places, sizes, height=0.38, color=COLOURS[kind], label=kind)
        panel.bar_label(bars, fmt=" %.2f", fontsize=6)
    panel.margins(x=0.14)
    panel.set_yticks(range(len(cases)), [name_of(case) for case in cases], fontsize=7)


def draw(results: dict, path: Path):
    """Decode, prefill and memory of every case."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    full = [case for case in results["cases"] if case["tables"] == "full"]
    decode, prefill, memory = figure.subplots(1, 3)
    draw_times(decode, full, "decode", 1000)
    decode.set(title="decoded token", xlabel="ms")
    draw_times(prefill, [case for case in full if "prefill" in case], "prefill", 1)
    prefill.set(title=f"prefill of {results['plan']['prefill_tokens']:,}", xlabel="s")
    draw_memory(memory, results["cases"])
    memory.set(title="memory in use", xlabel="GB")
    for panel in (decode, prefill, memory):
        panel.invert_yaxis()
        panel.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    save_figure(figure, path)


__all__ = ["as_markdown", "draw", "verdict_lines"]
