# SPDX-License-Identifier: Apache-2.0
"""The model card: what the model, its training run, its result files and its facts say, put into `card_template.md`.

Everything in a card comes from one of these four. What none of them says is left out, or the card says that it is
unknown.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import get_token
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.reports.files import markdown_table
from eval.reports.results import config_hash, model_identity
from model_cards.card_metadata import check_repo_id, check_round_trip, make_metadata
from model_cards.card_results import Measured, figures, hub_entries, model_index, read_measured
from model_cards.described_model import DescribedModel, describe
from model_cards.facts import no_facts, read_facts
from model_cards.training_record import formatted, read_training
from model_cards.upload_checks import check_text
from modeling_longcat_lite.whole_files import write_whole

TEMPLATES = Path(__file__).parent
REQUIREMENT = "transformers>=5.16,<6"  # as in pyproject.toml
SHOWN_ANSWERS = 2  # of each kind of question
CARD, RESULTS_FOLDER = "README.md", ".eval_results"


@dataclass(frozen=True)
class CardSources:
    """What a card is made from, apart from the model's own folder.

    Args:
        facts (`Path`, *optional*): A facts file, see `model_cards/facts.py`.
        results (`Sequence[Path]`, *optional*):
            Result files of evaluations, see `eval/reports/results.py`. The card shows the PNG of the same name, if
            there is one next to the file.
        report (`Path`, *optional*): A report of the training run, see `model_cards/training_record.py`.
        run (`Path`, *optional*):
            Folder of the training run, or a Hub folder with its record; the model's own folder by default.
        license (`str`, *optional*): Licence of the weights, if there is no facts file.
        repo_id (`str`, *optional*):
            Repository that the card's code loads the model from. The facts may name it instead.
    """

    facts: Path | None = None
    results: Sequence[Path] = ()
    report: Path | None = None
    run: Path | None = None
    license: str | None = None
    repo_id: str | None = None


@dataclass(frozen=True)
class Card:
    """A finished card.

    Args:
        text (`str`): Content of `README.md`.
        base_model (`str`, *optional*): The base that the facts name, as on the Hub.
        hub_results (`dict`): Content of each `.eval_results/{name}.yaml`, by name.
        files (`dict`): Files to put next to `README.md`, by name.
    """

    text: str
    base_model: str | None = None
    hub_results: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the card into the model's folder; results and figures of an older card are removed."""
        for name, file in self.files.items():
            if file.resolve() != (folder / name).resolve():
                write_whole(folder / name, file.read_bytes())
        for old in folder.glob(f"{RESULTS_FOLDER}/*.yaml"):
            if old.stem not in self.hub_results:
                old.unlink()
        for figure in shown_figures(folder / CARD) - self.files.keys():
            if not (folder / figure).with_suffix(".json").exists():  # else an evaluation wrote it here
                (folder / figure).unlink(missing_ok=True)
        for name, entries in self.hub_results.items():
            (folder / RESULTS_FOLDER).mkdir(exist_ok=True)
            text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
            write_whole(folder / RESULTS_FOLDER / f"{name}.yaml", text.encode())
        write_whole(folder / CARD, self.text.encode())


def make_card(folder: Path, sources: CardSources) -> Card:
    """Make the card of the model, or of the adapter, in `folder`. No weights are read.

    Raises:
        `ValueError`: naming the file and the key that is wrong: facts that the Hub would refuse, results of another
            model, a report of another run, or a token or key in any of them.
    """
    model = describe(folder)
    if sources.facts is None:
        facts = no_facts(folder.resolve().name, sources.license)
    elif sources.license is not None:
        raise ValueError("`license` is for a card without `facts`; with them, write it into the facts file")
    else:
        facts = read_facts(sources.facts)
    if facts.repo_id is not None:
        check_repo_id("repo_id", facts.repo_id)
        if sources.repo_id not in (None, facts.repo_id):
            raise ValueError(
                f"`repo_id` in {sources.facts} is {facts.repo_id}, but the upload goes to {sources.repo_id}"
            )
    if sources.run is not None and not sources.run.is_dir():
        raise ValueError(f"`run` {sources.run} is not a folder")
    measured: list[Measured] = []
    if sources.results:
        measured = read_measured(sources.results, model_identity(folder), config_hash(folder, respelled=True))
    training = read_training(sources.run or folder, sources.report)
    images = figures(sources.results)
    metadata = make_metadata(facts, model_tags(model), library_name(model), model_index(measured))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    text = environment.get_template("card_template.md").render(
        metadata=metadata.to_yaml().strip(),
        facts=facts,
        model=model,
        name=facts.repo_id or sources.repo_id or ".",
        requirement=REQUIREMENT,
        results=results_table(measured),
        figures=list(images),
        training=training,
        shown=SHOWN_ANSWERS,
        fenced=fenced,
        quoted=quoted,
    )
    check_round_trip(text, metadata)
    check_text(f"{CARD}, made from {sources.facts or 'its sources'}", text.encode(), get_token())
    base_model = facts.base_model[0] if facts.base_model else None
    return Card(text, base_model, hub_entries(measured), {**images, **training.files})


def shown_figures(card: Path) -> set[str]:
    """Names of the result figures in a card: `card_template.md` writes them with their file name as the text."""
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    return {
        name for alt, name in re.findall(r"^!\[([\w. -]+)\]\(([\w. -]+\.png)\)$", text, re.MULTILINE) if alt == name
    }


def model_tags(model: DescribedModel) -> list[str]:
    tags = ["longcat", "mixture-of-experts", "custom_code"]
    if model.config.use_ngram_embedding:
        tags.append("n-gram-embedding")
    return [*tags, dict(model.rows)["adapter"].lower()] if model.is_adapter else tags


def library_name(model: DescribedModel) -> str:
    return "peft" if model.is_adapter else "transformers"


def results_table(measured: list[Measured]) -> str:
    """A table of task, metric and its direction, value, standard error, samples and data, less its empty columns."""
    rows = []
    for result in measured:
        direction = {True: " ↑", False: " ↓", None: ""}[result.higher_is_better]
        numbers = ["" if n is None else formatted(n) for n in (result.value, result.stderr, result.samples)]
        data = ", ".join(part for part in (result.dataset, result.config, result.split) if part)
        unit = f", {result.unit}" if result.unit else ""
        rows.append([result.task, f"{result.metric}{direction}{unit}", *numbers, data])
    header = ["task", "metric", "value", "standard error", "samples", "data"]
    filled = [column for column in range(len(header)) if any(row[column] for row in rows)]
    cells = [[" ".join(row[i].split()).replace("|", r"\|") for i in filled] for row in rows]
    return markdown_table([header[i] for i in filled], cells) if rows else ""


def quoted(text: str) -> str:
    """A text as a Python string literal: JSON's form, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def fenced(text: str) -> str:
    """A block of literal text; its fence is longer than any in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}text\n{text}\n{fence}"


__all__ = ["CARD", "RESULTS_FOLDER", "Card", "CardSources", "make_card"]
