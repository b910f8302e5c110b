# SPDX-License-Identifier: Apache-2.0
"""The harness's results for people: tables, examples, the published numbers beside ours, and a figure."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from eval.harness.published import published_suites
from eval.harness.suites import SUITES, Benchmark
from eval.reports.files import markdown_table, save_figure

TITLES = {"base": "Base benchmarks", "chat": "Chat benchmarks", "smoke": "Smoke suite"}
ABOUT_SMOKE = (
    "Made from Python's documentation: `core` are builtins, which the demo repeats in training; `held_out` it never "
    "sees. `text`: bits per byte of answers. `choice`: the documented answer among three others, by log-likelihood. "
    "`answer`: written, word for word. `tool_choice`: the right call among three wrong ones, behind declared tools. "
    "`tool_call`: written, and read with `parse_tool_calls`.\n"
)
ABOUT_PUBLISHED = (
    "Published: {source}; * reported elsewhere, as the paper marks it. The paper does not give its prompts: scores "
    "are comparable, not equal. All in percent.\n"
)
MOST_SHOWN = 160  # characters of an example


def main_results(results: dict[str, Any], suite: str) -> dict[str, dict[str, Any]]:
    """The metric that stands for each benchmark that was run, in the order of the suite."""
    found = {}
    for benchmark in SUITES[suite]:
        of_task = [result for result in results["results"] if result["task"] == benchmark.name]
        if of_task:
            found[benchmark.name] = of_task[0]
    return found


def chance_of(suite: str) -> dict[str, float]:
    """What guessing gives, by benchmark; those are left out where there is nothing to guess."""
    return {one.name: one.chance for one in SUITES[suite] if isinstance(one, Benchmark) and one.chance is not None}


def percent(result: dict[str, Any]) -> str:
    """A share in percent, with its standard error."""
    error = f" ± {100 * result['stderr']:.2f}" if "stderr" in result else ""
    return f"{100 * result['value']:.2f}{error}"


def all_metrics_table(results: dict[str, Any], suite: str) -> str:
    """Every metric of every benchmark, with what guessing would give the first of each."""
    chance = chance_of(suite)
    seen: set[str] = set()
    rows = []
    for result in results["results"]:
        name = result["task"]
        guess = None if name in seen else chance.get(name)
        seen.add(name)
        # Bits per byte and the like are no shares.
        value = percent(result) + " %" if result["higher_is_better"] else f"{result['value']:.4f}"
        guessed = "" if guess is None else f"{100 * guess:.0f} %"
        rows.append([name, result["metric"], value, guessed, f"{result['samples']:,}" if "samples" in result else ""])
    return markdown_table(["task", "metric", "value", "guessing", "questions"], rows)


def published_table(results: dict[str, Any], suite: str) -> str:
    """Ours beside what the paper publishes, for all benchmarks of the table, run or not."""
    published, ours = published_suites()[suite], main_results(results, suite)
    rows = []
    for benchmark, name in published.names.items():
        scores = published.scores[benchmark]
        measured = percent(ours[benchmark]) if benchmark in ours else "–"
        rows.append([name, measured, *(str(scores[model]) if model in scores else "–" for model in published.models)])
    return markdown_table(["benchmark", f"`{results['model']['name']}`", *published.models], rows)


def examples_section(results: dict[str, Any]) -> list[str]:
    """The first answers that were generated, each in one line, and what was wanted."""
    lines = []
    for name, benchmark in results["benchmarks"].items():
        for example in benchmark["examples"]:
            lines += [f"* {name}: {in_one_line(example['answer'])}", f"  wanted: {in_one_line(example['wanted'])}"]
    return ["## Generated answers\n", *lines, ""] if lines else []


def in_one_line(text: str) -> str:
    """Text as code in Markdown: line breaks as arrows, cut to a line."""
    flat = text.replace("\n", " ⏎ ").replace("`", "'")
    return f"`{flat[:MOST_SHOWN]}{'…' if len(flat) > MOST_SHOWN else ''}`" if flat.strip() else "(nothing)"


def not_run_section(results: dict[str, Any]) -> list[str]:
    """What has no number, why, and the commands."""
    lines = []
    for one in results["not_run"]:
        lines += [f"### {one['task']}\n", *(f"* {need}" for need in one["needs"])]
        lines += ["\n```bash", *one["commands"], "```\n"]
    return ["## Not run\n", *lines] if lines else []


def as_markdown(results: dict[str, Any], suite: str, name: str) -> str:
    """The report; its figure is `{name}.png`."""
    machine, settings = results["machine"], results["settings"]
    notes = "" if settings["limit"] is None else f" Only {settings['limit']} questions of each task: no result."
    if settings["ablation"] != "on":
        notes += f" N-gram tables {settings['ablation']}: not the model's own scores."
    seconds = sum(benchmark["seconds"] for benchmark in results["benchmarks"].values())
    head = [
        f"# {TITLES[suite]}\n",
        f"{machine['date']}, lm-eval {settings['lm_eval']}, torch {machine['torch']}, transformers "
        f"{machine['transformers']}, Python {machine['python']}, {machine['cpu']}, {machine['threads']} thread(s).",
        f"Model `{results['model_folder']}`, weights {results['model']['weights_sha256'][:12]}, dtype "
        f"{settings['dtype']}, seed {settings['seed']}; {seconds:.0f} s.{notes}\n",
    ]
    if suite in published_suites():
        about = ABOUT_PUBLISHED.format(source=published_suites()[suite].source)
        head += [about, published_table(results, suite), "All metrics:\n"]
    else:
        head.append(ABOUT_SMOKE)
    figure = f"![Scores]({name}.png)\n"
    return "\n".join(
        [*head, all_metrics_table(results, suite), figure, *examples_section(results), *not_run_section(results)]
    )


def draw(results: dict[str, Any], suite: str, path: Path) -> None:
    """Bars: ours beside the published ones; of the smoke suite, ours beside guessing."""
    if suite in published_suites():
        draw_published(results, suite, path)
    else:
        draw_smoke(results, suite, path)


def draw_published(results: dict[str, Any], suite: str, path: Path) -> None:
    """A group of bars for each benchmark that was run."""
    ours, published = main_results(results, suite), published_suites()[suite]
    columns = {results["model"]["name"]: {name: 100 * one["value"] for name, one in ours.items()}}
    for model in published.models:
        columns[f"{model}, published"] = {
            name: published.scores[name][model].value for name in ours if model in published.scores[name]
        }
    figure = Figure(figsize=(9, 1.4 + 0.7 * len(ours)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(columns)
    for number, (label, values) in enumerate(columns.items()):
        places = [
            place + (number - (len(columns) - 1) / 2) * height for place, name in enumerate(ours) if name in values
        ]
        bars = axes.barh(places, list(values.values()), height, label=label)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axes.set_yticks(range(len(ours)), [published.names[name] for name in ours])
    axes.invert_yaxis()
    axes.set(xlabel="score, %", xlim=(0, 105))
    axes.margins(y=0.02)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    save_figure(figure, path)


def draw_smoke(results: dict[str, Any], suite: str, path: Path) -> None:
    """Bits per byte to the left; shares with standard errors, and guessing as a line, to the right."""
    ours = main_results(results, suite)
    chance = chance_of(suite)
    texts = {name: one for name, one in ours.items() if not one["higher_is_better"]}
    shares = {name: one for name, one in ours.items() if one["higher_is_better"]}
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(max(len(texts), 1), max(len(shares), 1)))
    bars = left.bar([spoken(name) for name in texts], [one["value"] for one in texts.values()], 0.6, color="tab:gray")
    left.bar_label(bars, fmt="%.2f", padding=2)
    left.set_ylabel("bits per byte, less is better")
    left.margins(y=0.12)
    names = [f"{spoken(name)}\n({one['metric']})" for name, one in shares.items()]
    heights = [100 * one["value"] for one in shares.values()]
    errors = [100 * one.get("stderr", 0.0) for one in shares.values()]
    bars = right.bar(names, heights, 0.6, yerr=errors, capsize=3)
    right.bar_label(bars, fmt="%.1f", padding=2)
    guessing = [(place, 100 * chance[name]) for place, name in enumerate(shares) if name in chance]
    if guessing:
        places, levels = zip(*guessing, strict=True)
        ends = [place - 0.4 for place in places], [place + 0.4 for place in places]
        right.hlines(levels, *ends, colors="black", linestyles="dashed", label="guessing")
        right.legend()
    right.set(ylabel="right, %", ylim=(0, 112))
    for axes in (left, right):
        axes.tick_params(axis="x", labelsize=8)
    figure.suptitle(f"Smoke suite, {results['model_folder']}")
    save_figure(figure, path)


def spoken(name: str) -> str:
    """A task's name without what all share, in two lines."""
    return name.removeprefix("pydoc_").replace("_", " ").replace(" ", "\n", 1)


__all__ = ["as_markdown", "draw", "percent"]
