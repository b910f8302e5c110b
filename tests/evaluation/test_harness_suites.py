# SPDX-License-Identifier: Apache-2.0
"""The suites of the harness: what cannot run here says what it needs, and our scores are next to published ones."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import datasets
import lm_eval.tasks
import pytest
from drawn_figures import drawn_figures
from harness_cases import added_suites, few_tasks_of_lm_eval, run, write_model
from lm_eval.tasks import TaskManager

from eval.harness import __main__ as harness
from eval.harness.report import percent
from eval.harness.suite import suites


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with few_tasks_of_lm_eval():
        yield write_model(tmp_path_factory.mktemp("chat"))


NEEDS = {
    "base": {
        "mmlu": "data set cais/mmlu of the Hub",
        "mmlu_pro": "data set TIGER-Lab/MMLU-Pro of the Hub",
        "ceval": "data set ceval/ceval-exam of the Hub",
        "cmmlu": "data set haonan-li/cmmlu of the Hub",
        "bbh": "data set SaylorTwift/bbh of the Hub",
        "gpqa": "requested at https://huggingface.co/datasets/Idavidrein/gpqa",
        "drop": "data set EleutherAI/drop of the Hub",
        "gsm8k": "data set openai/gsm8k of the Hub, which is not in the cache here (HF_HUB_OFFLINE is set)",
        "humaneval_plus": "--tasks humaneval_plus --allow-code-execution",
        "multipl_e": "a checkout of https://github.com/bigcode-project/bigcode-evaluation-harness",
        "bigcodebench": "`bigcodebench.generate`, which is not installed here",
    },
    "chat": {
        "math500": "data set HuggingFaceH4/MATH-500 of the Hub",
        "aime24": "data set Maxwell-Jia/AIME_2024 of the Hub",
        "aime25": "data set math-ai/aime25 of the Hub",
        "gpqa_diamond": "data set Idavidrein/gpqa of the Hub",
        "mmlu": "data set cais/mmlu of the Hub",
        "mmlu_pro": "data set TIGER-Lab/MMLU-Pro of the Hub",
        "ceval": "data set ceval/ceval-exam of the Hub",
        "cmmlu": "data set haonan-li/cmmlu of the Hub",
        "tau2_airline": "tau2 run --domain airline --agent-llm openai/model",
        "tau2_retail": "at http://127.0.0.1:1/v1, where nothing answers now",
        "tau2_telecom": "`tau2`, which is not installed here",
        "vitabench": "models that play the user and the judge",
        "swe_bench": "docker, which is not installed here",
        "terminal_bench": "--agent-kwarg api_base=http://127.0.0.1:1/v1",
        "swe_bench_multilingual": "--dataset_name SWE-bench/SWE-bench_Multilingual",
        "prdbench": "a checkout of https://github.com/fulingyue/PRDBench",
    },
}


@pytest.mark.parametrize("suite", NEEDS)
def test_what_cannot_be_run_says_what_it_needs(model, suite, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(harness, "load_model", None)  # a call would fail: no weights are read for this
    status, results = run(model, tmp_path, "--server", "http://127.0.0.1:1/v1", suite=suite)
    assert (status, results) == (1, None)
    assert [path.name for path in tmp_path.iterdir()] == []
    said = dict(part.split(" needs:\n", 1) for part in capsys.readouterr().out.split("──\n")[1:])
    assert {name.strip() for name in said} == {benchmark.name for benchmark in suites()[suite].benchmarks}
    for name, words in NEEDS[suite].items():
        assert words in said[name], said[name]
        assert "Run there:" in said[name]
        assert "{model}" not in said[name] and "{server}" not in said[name] and "{name}" not in said[name]


class Models(BaseHTTPRequestHandler):
    """A server that has a list of models and nothing else."""

    def do_GET(self):
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.end_headers()

    def log_message(self, *args):
        """Says nothing."""


def test_a_server_that_answers_is_seen(model, tmp_path, capsys):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Models)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/v1"
    assert run(model, tmp_path, "--tasks", "tau2_airline", "--server", address, suite="chat")[0] == 1
    server.shutdown()
    assert f"at {address}, where one answers" in capsys.readouterr().out


def fake_hub(path, name=None, **kwargs):
    """Rows in the form of two data sets of the Hub."""
    if path == "openai/gsm8k":
        rows = [{"question": f"What is {n} and {n}?", "answer": f"Twice.\n#### {2 * n}"} for n in range(6)]
    else:
        rows = [
            {"question": f"{name} {n}?", **dict(zip("ABCD", "pqrs", strict=True)), "answer": "A"} for n in range(5)
        ]
    return datasets.DatasetDict({part: datasets.Dataset.from_list(rows) for part in ("train", "dev", "val", "test")})


NEXT_TO_OURS = {
    "base": ("gsm8k", "multipl_e", "| GSM8K | {} | 50.50 | 50.00 |", "| MultiPL-E | – | 30.03 | 30.20 |"),
    "chat": (
        "ceval",
        "tau2_airline",
        "| C-Eval | {} | 86.55 | 78.48 | 90.91 | 75.16 |",
        "| Tau2 Airline | – | 58.00 | 44.00 | 45.50* | 35.00 |",
    ),
}


@pytest.mark.parametrize("suite", NEXT_TO_OURS)
def test_ours_are_shown_next_to_the_published_numbers(model, suite, tmp_path, monkeypatch):
    task, not_run, row, row_without = NEXT_TO_OURS[suite]
    monkeypatch.setattr(datasets, "load_dataset", fake_hub)
    with drawn_figures() as figures:
        status, results = run(model, tmp_path, "--limit", 1, "--tasks", task, not_run, suite=suite)
    assert status == 1  # one of them is not run here
    first, *others = results["results"]
    assert {one["task"] for one in results["results"]} == {task} and others
    assert first["samples"] == {"gsm8k": 1, "ceval": 52}[task]
    assert results["benchmarks"][task]["num_fewshot"] == 5
    text = (tmp_path / f"harness_{suite}.md").read_text()
    assert row.format(percent(first)) in text
    assert row_without in text and f"### {not_run}" in text
    figure = figures[f"harness_{suite}.png"]
    (panel,) = figure.panels
    _, spoken, _, *published = [text.strip("* ") for text in row.split("|")[:-1]]
    models = suites()[suite].published.models
    assert panel.x_label == "score, %" and panel.y_ticks == [spoken]
    assert panel.labels == figure.legend == ["model", *(f"{one}, published" for one in models)]
    shown = [panel.series(label).named[spoken] for label in panel.labels]
    assert shown == pytest.approx([100 * first["value"], *map(float, published)])
    assert str(model) not in text + json.dumps(results)


def test_reports_gather_what_several_commands_finished(model, tmp_path):
    for task in ("pydoc_text_held_out", "pydoc_text_core"):
        status, results = run(model, tmp_path, "--limit", 2, "--tasks", task)
        assert status == 0
    assert [one["task"] for one in results["results"]] == ["pydoc_text_core", "pydoc_text_held_out"]


def test_scores_of_other_programs_are_recorded(model, tmp_path, capsys):
    options = ("--tasks", "tau2_airline", "tau2_retail")
    assert run(model, tmp_path, *options, "--record", "tau2_airline=0.58", suite="chat")[0] == 1
    status, results = run(model, tmp_path, "--tasks", "tau2_airline", suite="chat")
    assert status == 0
    (recorded,) = results["results"]
    assert (recorded["task"], recorded["value"]) == ("tau2_airline", 0.58)
    assert recorded["metric"] == "score, recorded"  # nobody takes it for measured here, in a card neither
    text = (tmp_path / "harness_chat.md").read_text()
    assert "| Tau2 Airline | 58.00 | 58.00 | 44.00 | 45.50* | 35.00 |" in text
    assert "tau2_retail needs:" in capsys.readouterr().out


def test_answers_longer_than_the_context_are_no_traceback(model, tmp_path, monkeypatch, capsys):
    rows = datasets.Dataset.from_list([{"problem": "1 + 1", "answer": "2"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.DatasetDict({"test": rows}))
    assert run(model, tmp_path, "--tasks", "aime25", suite="chat") == (1, None)
    assert "answers of 32,768 tokens; this one's is 2,048" in capsys.readouterr().out


def test_data_that_cannot_be_read_does_not_stop_the_others(model, tmp_path, monkeypatch, capsys):
    def load(path, name=None, **kwargs):
        if path == "EleutherAI/drop":
            raise RuntimeError("Dataset scripts are no longer supported, but found drop.py")
        if path == "cais/mmlu":
            raise ValueError(f"Couldn't find cache for cais/mmlu for config '{name}'\nAvailable configs: ['all']")
        return fake_hub(path, name)

    monkeypatch.setattr(datasets, "load_dataset", load)
    status, results = run(model, tmp_path, "--limit", 1, "--tasks", "mmlu", "drop", "gsm8k", suite="base")
    assert status == 1 and {one["task"] for one in results["results"]} == {"gsm8k"}
    said = capsys.readouterr().out
    assert "data set cais/mmlu of the Hub" in said and "data set EleutherAI/drop of the Hub" in said


GUIDE = Path(harness.__file__).with_name("adding_a_suite.md")


def guide_files(folder: Path) -> list[Path]:
    """The files that the guide shows, written to `folder` as if it were the folder of suites."""
    shown = re.findall(r"`eval/harness/suites/(\S+)`:\n\n```\w+\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    for name, text in shown:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return [Path(name) for name, _ in shown]


def test_a_suite_is_added_as_the_guide_says(model, tmp_path):
    files = guide_files(tmp_path)
    assert {file.parts[0] for file in files} == {"reasoning.py", "sums"}  # one file, and one folder
    with added_suites(tmp_path), drawn_figures() as figures:
        status, results = run(model, tmp_path / "out", "--limit", 20, suite="sums")
        title, about = suites()["sums"].title, suites()["sums"].about
    assert status == 0
    (result,) = results["results"]
    assert (result["task"], result["metric"], result["samples"]) == ("sums_choice", "acc", 20)
    assert sorted(path.name for path in (tmp_path / "out").glob("harness_*")) == [
        "harness_sums.json",
        "harness_sums.md",
        "harness_sums.png",
    ]
    text = (tmp_path / "out" / "harness_sums.md").read_text()
    assert text.startswith(f"# {title}\n") and about in text and "| sums_choice | acc |" in text
    figure = figures["harness_sums.png"]
    (panel,) = figure.panels
    assert figure.title.startswith("Sums, ") and panel.y_label == "right, %"
    (bars,), (guessing,) = panel.of_kind("bars"), panel.of_kind("segments")
    assert bars.named == {"choice\n(acc)": pytest.approx(100 * result["value"])}
    assert bars.errors == [pytest.approx(100 * result["stderr"])]
    assert (guessing.label, guessing.y) == ("guessing", [25.0])


def test_a_suite_of_lm_evals_tasks_says_what_it_needs(model, tmp_path, monkeypatch, capsys):
    guide_files(tmp_path)
    tasks = Path(lm_eval.tasks.__file__).parent
    managers = [TaskManager(include_path=[tasks / "hellaswag", tasks / "piqa"], include_defaults=False)]
    monkeypatch.setattr(harness, "TaskManager", lambda include_path, include_defaults: managers[not include_defaults])
    with added_suites(tmp_path):
        assert run(model, tmp_path / "out", suite="reasoning") == (1, None)
    said = capsys.readouterr().out
    assert "data set Rowan/hellaswag of the Hub" in said and "--suite reasoning --tasks piqa" in said


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"mine.py": "suite = 1"}, "eval.harness.suites.mine must define `SUITE`"),
        (
            {"mine.py": "from eval.harness.suites.base import SUITE"},
            "two files in eval.harness.suites define a suite named 'base'",
        ),
    ],
)
def test_a_broken_suite_is_named(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with added_suites(tmp_path), pytest.raises(ValueError, match=message):
        suites()
