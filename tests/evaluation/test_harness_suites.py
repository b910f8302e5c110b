# SPDX-License-Identifier: Apache-2.0
"""The suites of the harness: what cannot be run here says what it needs, and ours stand beside what is published."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import datasets
import pytest
from harness_cases import few_tasks_of_lm_eval, run, write_model

from eval.harness import __main__ as harness
from eval.harness.report import percent
from eval.harness.suites import SUITES


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
        "gpqa": "asked for at https://huggingface.co/datasets/Idavidrein/gpqa",
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
    assert {name.strip() for name in said} == {benchmark.name for benchmark in SUITES[suite]}
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


BESIDE_OURS = {
    "base": ("gsm8k", "multipl_e", "| GSM8K | {} | 50.50 | 50.00 |", "| MultiPL-E | – | 30.03 | 30.20 |"),
    "chat": (
        "ceval",
        "tau2_airline",
        "| C-Eval | {} | 86.55 | 78.48 | 90.91 | 75.16 |",
        "| Tau2 Airline | – | 58.00 | 44.00 | 45.50* | 35.00 |",
    ),
}


@pytest.mark.parametrize("suite", BESIDE_OURS)
def test_ours_stand_beside_the_published_numbers(model, suite, tmp_path, monkeypatch):
    task, not_run, row, row_without = BESIDE_OURS[suite]
    monkeypatch.setattr(datasets, "load_dataset", fake_hub)
    status, results = run(model, tmp_path, "--limit", 1, "--tasks", task, not_run, suite=suite)
    assert status == 1  # one of them is not run here
    first, *others = results["results"]
    assert {one["task"] for one in results["results"]} == {task} and others
    assert first["samples"] == {"gsm8k": 1, "ceval": 52}[task]
    assert results["benchmarks"][task]["num_fewshot"] == 5
    text = (tmp_path / f"harness_{suite}.md").read_text()
    assert row.format(percent(first)) in text
    assert row_without in text and f"### {not_run}" in text
    assert (tmp_path / f"harness_{suite}.png").read_bytes().startswith(b"\x89PNG")
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
