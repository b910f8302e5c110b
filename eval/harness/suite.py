# SPDX-License-Identifier: Apache-2.0
"""What a suite is: benchmarks, what is written before they run, published numbers, and a figure.

Each file and each folder in `eval/harness/suites/` is a suite and defines `SUITE`; see `adding_a_suite.md`.
"""

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from eval.checkpoints.load import ModelFolder
from modeling_longcat_lite.whole_files import write_whole

SUITES_PACKAGE = "eval.harness.suites"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that lm-eval runs.

    Args:
        name (`str`): Its name on the command line and in reports.
        task (`str`): Task or group of lm-eval.
        metric (`str`): The metric that tables and figures show.
        dataset (`str`): Repository of its data on the Hub, or what the data is made from.
        filter (`str`, *optional*, defaults to `"none"`): The filter of lm-eval that is applied before that metric.
        num_fewshot (`int`, *optional*): Examples before the question; the task's own number if not given.
        as_chat (`bool`, *optional*, defaults to `False`): Whether prompts are rendered with the chat template.
        chance (`float`, *optional*): The metric that guessing gives.
        gated (`bool`, *optional*, defaults to `False`): Whether access to the data has to be requested on its page.
        runs_code (`bool`, *optional*, defaults to `False`): Whether scoring executes what the model wrote.
    """

    name: str
    task: str
    metric: str
    dataset: str
    filter: str = "none"
    num_fewshot: int | None = None
    as_chat: bool = False
    chance: float | None = None
    gated: bool = False
    runs_code: bool = False

    @property
    def file_stem(self) -> str:
        """Name of the file with its results: `mmlu` through the chat template is another file than as plain text."""
        return f"{self.name}.chat" if self.as_chat else self.name


@dataclass(frozen=True)
class ExternalBenchmark:
    """A benchmark that another program runs, mostly against a server that speaks OpenAI's protocol.

    Args:
        name (`str`): Its name on the command line and in reports.
        repository (`str`): Where the program is.
        program (`str`): Its command, to see whether it is installed; empty if it runs in a checkout.
        commands (`tuple[str, ...]`): What to run. `{model}`, `{name}` and `{server}` are filled in.
        docker (`bool`, *optional*, defaults to `True`): Whether it runs containers.
        server (`bool`, *optional*, defaults to `True`): Whether it asks a server of the model.
        also (`str`, *optional*): What else it needs, in words.
    """

    name: str
    repository: str
    program: str
    commands: tuple[str, ...]
    docker: bool = True
    server: bool = True
    also: str = ""

    chance = None

    @property
    def file_stem(self) -> str:
        """Name of the file with its results."""
        return self.name


@dataclass(frozen=True)
class PublishedTable:
    """A table of a publication.

    Args:
        source (`str`): The publication and the number of the table.
        models (`list[str]`): Its models, LongCat-Flash-Lite first.
        names (`dict[str, str]`): What it calls each benchmark.
        scores (`dict[str, dict[str, str]]`): Percentages by benchmark and model, as printed: `45.50*`. Those that it
            lacks are left out.
    """

    source: str
    models: list[str]
    names: dict[str, str]
    scores: dict[str, dict[str, str]]

    @property
    def about(self) -> str:
        """What a report says about numbers that are shown next to these."""
        return (
            f"Published: {self.source}; * reported elsewhere, as the paper marks it. The paper does not give its "
            "prompts: scores are comparable, not equal. All in percent."
        )


@dataclass(frozen=True)
class Suite:
    """Benchmarks that are run and reported together.

    Args:
        name (`str`): Its name on the command line.
        title (`str`): Heading of the report.
        about (`str`): Paragraph below it: what is measured.
        benchmarks (`tuple`): What it measures, in the order of the report.
        draw (`Callable[[Suite, dict], Figure]`): Draws a result file; `eval/harness/charts.py` has two.
        prepare (`Callable[[Path, ModelFolder, int], str]`, *optional*): Writes tasks and data to a folder, given the
            model and a seed, and returns a hash of everything that decides a score. [`write_tasks`] does both.
        published (`PublishedTable`, *optional*): Numbers to show next to ours.
    """

    name: str
    title: str
    about: str
    benchmarks: tuple[Benchmark | ExternalBenchmark, ...]
    draw: "Callable[[Suite, dict[str, Any]], Figure]"
    prepare: Callable[[Path, ModelFolder, int], str] | None = None
    published: PublishedTable | None = None

    def chosen(self, names: Sequence[str] | None = None) -> list[Benchmark | ExternalBenchmark]:
        """The benchmarks that `names` lists, in the suite's order; all if there are no names.

        Raises:
            `ValueError`: naming a benchmark that the suite does not have, and those that it has.
        """
        known = [benchmark.name for benchmark in self.benchmarks]
        for name in names or ():
            if name not in known:
                raise ValueError(
                    f"`--tasks` has {name!r}, which is not in suite {self.name}: choose from {', '.join(known)}"
                )
        return [benchmark for benchmark in self.benchmarks if not names or benchmark.name in names]

    def main_results(self, results: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The first metric of each benchmark that has a number, in the suite's order."""
        first: dict[str, dict[str, Any]] = {}
        for result in results["results"]:
            first.setdefault(result["task"], result)
        return {benchmark.name: first[benchmark.name] for benchmark in self.benchmarks if benchmark.name in first}

    @property
    def chance(self) -> dict[str, float]:
        """What guessing gives, for the benchmarks that can be guessed."""
        return {one.name: one.chance for one in self.benchmarks if one.chance is not None}


@cache
def suites() -> dict[str, Suite]:
    """All suites by name.

    Raises:
        `ValueError`: naming a file or folder in `eval/harness/suites/` without `SUITE`, or two suites with one name.
    """
    found: dict[str, Suite] = {}
    for module in pkgutil.iter_modules(importlib.import_module(SUITES_PACKAGE).__path__):
        suite = vars(importlib.import_module(f"{SUITES_PACKAGE}.{module.name}")).get("SUITE")
        if not isinstance(suite, Suite):
            raise ValueError(f"{SUITES_PACKAGE}.{module.name} must define `SUITE`, a `Suite`")
        if suite.name in found:
            raise ValueError(f"two files in {SUITES_PACKAGE} define a suite named {suite.name!r}: rename one")
        found[suite.name] = suite
    return found


def suite_named(name: str) -> Suite:
    """A suite by the name that the user gave.

    Raises:
        `ValueError`: naming the existing ones, if it does not exist.
    """
    if name not in suites():
        raise ValueError(f"`--suite` is {name!r}: choose one of {', '.join(suites())}")
    return suites()[name]


def read_published(path: Path) -> dict[str, PublishedTable]:
    """Tables of published numbers by suite, from a file such as `eval/harness/suites/published.yaml`."""
    found = {}
    for suite, table in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        names = {benchmark: name for benchmark, (name, *_) in table["benchmarks"].items()}
        scores = {
            benchmark: {
                model: score if isinstance(score, str) else f"{score:.2f}"
                for model, score in zip(table["models"], printed, strict=True)
                if score != "-"
            }
            for benchmark, (_, *printed) in table["benchmarks"].items()
        }
        found[suite] = PublishedTable(table["source"], table["models"], names, scores)
    return found


def write_tasks(folder: Path, definitions: Path, rows: dict[str, list[dict[str, Any]]]) -> str:
    """Write tasks that lm-eval can run, with their data.

    Args:
        folder (`Path`): Where to write them. `lm_eval run --include_path FOLDER` can use it too.
        definitions (`Path`): Folder with `{task}.yaml` for each task, without its data files.
        rows (`dict[str, list[dict]]`): The documents of each task.

    Returns:
        `str`: SHA-256, in hexadecimal, of all rows and of the files in `definitions`.
    """
    folder, digest = folder.resolve(), hashlib.sha256()
    for file in sorted(file for file in definitions.iterdir() if file.is_file()):
        digest.update(file.read_bytes())
    for task, documents in rows.items():
        text = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
        digest.update(text.encode())
        data = folder / f"{task}.jsonl"
        if not data.exists() or data.read_text(encoding="utf-8") != text:  # a new file would be cached anew
            write_whole(data, text)
        kwargs = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
        config = {"include": str(definitions / f"{task}.yaml"), "dataset_kwargs": kwargs}
        write_whole(folder / f"{task}.yaml", yaml.safe_dump(config))
    return digest.hexdigest()


__all__ = [
    "Benchmark",
    "ExternalBenchmark",
    "PublishedTable",
    "Suite",
    "read_published",
    "suite_named",
    "suites",
    "write_tasks",
]
