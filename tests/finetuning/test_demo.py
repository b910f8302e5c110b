# SPDX-License-Identifier: Apache-2.0
"""The demo's parts that need no training: the model it trains, the questions it draws, the report it writes."""

import importlib
import json

import pytest

from modeling_longcat_lite import LongCatLiteForCausalLM
from training.demo import __main__ as demo
from training.demo import report as demo_report


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "OUTPUT", tmp_path)
    return tmp_path


def test_the_model_keeps_to_the_paper(output):
    demo.write_untrained_model(demo.write_conversations()[0])
    model = LongCatLiteForCausalLM.from_pretrained(output / "untrained")
    assert model.config.max_ngram_order in (3, 4)
    assert model.config.num_subtables_per_order >= 2
    assert 0.2 < model.config.ngram_vocab_size_ratio % 1 < 0.8
    tables = sum(p.numel() for name, p in model.named_parameters() if ".embedders." in name)
    assert 0.3 < tables / sum(p.numel() for p in model.parameters()) <= 0.5


def test_questions_are_drawn_alike_each_time(output):
    _, questions = demo.write_conversations()
    core = [question for question in questions if question["from"] == "core"]
    assert len(core) == 10
    assert len({question["expected"] for question in core}) == 10
    assert all(len(question["expected"]) >= 40 for question in core)
    asked = json.loads((output / "questions.json").read_text())
    assert asked == [question["question"] for question in questions]


def write_trainer_state(output):
    history = [
        {"step": 0, "eval_loss": 8.0},
        {"step": 50, "loss": 5.0, "num_tokens": 1000.0},
        {"step": 100, "loss": 3.0, "num_tokens": 2000.0},
        {"step": 100, "eval_loss": 4.0},
    ]
    (output / "model").mkdir()
    state = {"log_history": history, "global_step": 100}
    (output / "model" / "trainer_state.json").write_text(json.dumps(state))


def questions_and_answers(output, right: int):
    expected = [f"Return {index:02d} of the things that were handed over here." for index in range(10)]
    questions = [{"from": "core", "question": f"Q{index}", "expected": text} for index, text in enumerate(expected)]
    questions.append({"from": "held-out", "question": "Q", "expected": "Something else."})
    answers = [text[:40] + "..." if index < right else f"No {index}" for index, text in enumerate(expected)]
    rows = [
        {"question": question["question"], "answer": answer}
        for question, answer in zip(questions, [*answers, "x"], strict=True)
    ]
    (output / "answers.json").write_text(json.dumps({"model_class": "a.B", "answers": rows}))
    return questions


@pytest.mark.parametrize(("right", "passed"), [(7, True), (6, False)])
def test_report_judges_by_the_first_forty_characters(output, right, passed):
    write_trainer_state(output)
    questions = questions_and_answers(output, right)
    report = demo_report.write_report(output, 0, questions, {"fine-tuning": 1.0})
    assert report == json.loads((output / "report.json").read_text()) | {"training_loss": [(50, 5.0), (100, 3.0)]}
    assert (report["right_answers"], report["distinct_answers"]) == (right, 10)
    assert report["heldout_loss_ratio"] == 0.5
    assert report["training_tokens"] == 2000
    assert report["passed"] is passed
    assert (output / "loss.png").stat().st_size > 1000


def test_report_before_the_questions_has_what_the_card_needs(output):
    write_trainer_state(output)
    report = demo_report.write_report(output, 0, [], {})
    assert report["heldout_loss_before"] == 8.0
    assert "answers" not in report


def test_measurement_package_and_card_are_asked_for_with_options_that_exist(output, monkeypatch):
    ran = []
    monkeypatch.setattr(demo, "run_module", lambda module, *arguments: ran.append((module, list(map(str, arguments)))))
    for stage in (demo.measure, demo.package, demo.write_card):
        stage()
    mains = {"eval.losses": "eval.losses.__main__"}
    parsers = [importlib.import_module(mains.get(module, module)).make_parser() for module, _ in ran]
    parsed = [parser.parse_args(arguments) for parser, (_, arguments) in zip(parsers, ran, strict=True)]
    measured, package, card = parsed
    assert measured.output / "held_out_answers.json" == package.results[0] == card.results[0]
    assert (package.output, package.facts) == (card.folder, card.facts) == (output / "package", demo.FACTS)
    assert package.report == card.report == output / "report.json"


def test_everything_is_printed(output, capsys):
    write_trainer_state(output)
    report = demo_report.write_report(output, 0, questions_and_answers(output, 6), {"fine-tuning": 61.0})
    demo_report.print_answers(report)
    demo_report.print_summary(report, output)
    printed = capsys.readouterr().out
    for part in ("8.000, 4.000", "6 of 10", "61 s", "Short of the mark"):
        assert part in printed
