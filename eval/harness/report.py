# SPDX-License-Identifier: Apache-2.0
"""The harness's results as Markdown: scores, published numbers, generated answers, and what has no score yet."""

from typing import Any

from eval.harness.suite import PublishedTable, Suite
from eval.reports.files import markdown_table

MOST_SHOWN = 160  # characters of an example


def percent(result: dict[str, Any]) -> str:
    """A share in percent, with its standard error."""
    error = f" ± {100 * result['stderr']:.2f}" if "stderr" in result else ""
    return f"{100 * result['value']:.2f}{error}"


def all_metrics_table(results: dict[str, Any], suite: Suite) -> str:
    """Every metric of every benchmark, and what guessing gives for the first of each."""
    chance = dict(suite.chance)
    rows = []
    for result in results["results"]:
        guess = chance.pop(result["task"], None)
        # Bits per byte and the like are not shares.
        value = percent(result) + " %" if result["higher_is_better"] else f"{result['value']:.4f}"
        guessed = "" if guess is None else f"{100 * guess:.0f} %"
        questions = f"{result['samples']:,}" if "samples" in result else ""
        rows.append([result["task"], result["metric"], value, guessed, questions])
    return markdown_table(["task", "metric", "value", "guessing", "questions"], rows)


def published_table(results: dict[str, Any], suite: Suite, published: PublishedTable) -> str:
    """Our scores and the published ones, for every benchmark of the table."""
    ours = suite.main_results(results)
    rows = []
    for benchmark, name in published.names.items():
        measured = percent(ours[benchmark]) if benchmark in ours else "–"
        rows.append([name, measured, *(published.scores[benchmark].get(model, "–") for model in published.models)])
    return markdown_table(["benchmark", f"`{results['model']['name']}`", *published.models], rows)


def examples_section(results: dict[str, Any]) -> list[str]:
    """The first generated answers and the expected ones, each in one line."""
    lines = []
    for name, benchmark in results["benchmarks"].items():
        for example in benchmark["examples"]:
            lines += [f"* {name}: {in_one_line(example['answer'])}", f"  wanted: {in_one_line(example['wanted'])}"]
    return ["## Generated answers\n", *lines, ""] if lines else []


def in_one_line(text: str) -> str:
    """Text as code in Markdown: shortened, and with arrows for line breaks."""
    flat = text.replace("\n", " ⏎ ").replace("`", "'")
    return f"`{flat[:MOST_SHOWN]}{'…' if len(flat) > MOST_SHOWN else ''}`" if flat.strip() else "(nothing)"


def not_run_section(results: dict[str, Any]) -> list[str]:
    """What has no score, why, and the commands."""
    lines = []
    for one in results["not_run"]:
        lines += [f"### {one['task']}\n", *(f"* {need}" for need in one["needs"])]
        lines += ["\n```bash", *one["commands"], "```\n"]
    return ["## Not run\n", *lines] if lines else []


def as_markdown(results: dict[str, Any], suite: Suite, name: str) -> str:
    """The report, which shows the figure `{name}.png`."""
    machine, settings = results["machine"], results["settings"]
    notes = "" if settings["limit"] is None else f" Only {settings['limit']} questions of each task: not a score."
    if settings["ablation"] != "on":
        notes += f" N-gram tables {settings['ablation']}: not the model's own scores."
    seconds = sum(benchmark["seconds"] for benchmark in results["benchmarks"].values())
    head = [
        f"# {suite.title}\n",
        f"{machine['date']}, lm-eval {settings['lm_eval']}, torch {machine['torch']}, transformers "
        f"{machine['transformers']}, Python {machine['python']}, {machine['cpu']}, {machine['threads']} thread(s).",
        f"Model `{results['model_folder']}`, weights {results['model']['weights_sha256'][:12]}, dtype "
        f"{settings['dtype']}, seed {settings['seed']}; {seconds:.0f} s.{notes}\n",
        f"{suite.about}\n",
    ]
    if suite.published is not None:
        head += [published_table(results, suite, suite.published), "All metrics:\n"]
    figure = f"![Scores]({name}.png)\n"
    return "\n".join(
        [*head, all_metrics_table(results, suite), figure, *examples_section(results), *not_run_section(results)]
    )


__all__ = ["as_markdown", "percent"]
