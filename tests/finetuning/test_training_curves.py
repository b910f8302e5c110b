# SPDX-License-Identifier: Apache-2.0
"""What a run writes besides the model: every metric as JSON, a plot, and tokens per second."""

import json

import pytest
from PIL import Image
from tiny_chat import write_tiny_chat

from training import sft
from training.run.curves import write_curves

HISTORY = [
    {"step": 0, "eval_loss": 8.0, "epoch": 0.0},
    {"step": 1, "loss": 5.0, "learning_rate": 1e-3, "epoch": 0.5},
    {"step": 2, "loss": float("nan"), "learning_rate": 5e-4, "experts/mean": 2.5, "epoch": 1.0},
    {"step": 2, "eval_loss": 4.0, "epoch": 1.0},
    {"step": 2, "train_runtime": 3.0, "epoch": 1.0},
]


def test_every_metric_is_written_as_steps_and_values(tmp_path):
    write_curves(HISTORY, tmp_path / "new")
    metrics = json.loads((tmp_path / "new" / "training_metrics.json").read_text())
    assert metrics["eval_loss"] == [[0, 8.0], [2, 4.0]]
    assert metrics["loss"] == [[1, 5.0], [2, None]]
    assert metrics.keys() == {"loss", "eval_loss", "learning_rate", "experts/mean", "train_runtime"}
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "training_curves.png",
        "training_metrics.json",
    ]


def test_a_panel_for_each_kind_of_metric(tmp_path):
    heights = []
    for count in (2, 3):
        write_curves(HISTORY[:count], tmp_path)
        heights.append(Image.open(tmp_path / "training_curves.png").height)
    assert heights[1] / heights[0] == pytest.approx(3 / 2, abs=0.05)  # loss and rate; and then experts


def test_nothing_logged_is_no_plot(tmp_path):
    write_curves([], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["training_metrics.json"]


def test_tokens_per_second_are_logged(tmp_path, capsys):
    chat = write_tiny_chat(tmp_path)
    options = ["--model_name_or_path", str(chat / "model"), "--dataset_name", str(chat / "data")]
    options += ["--output_dir", str(tmp_path / "out"), "--use_cpu", "--bf16", "false", "--report_to", "none"]
    options += ["--max_steps", "2", "--logging_steps", "1", "--save_strategy", "no", "--max_length", "64"]
    trainer = sft.main(*sft.make_parser().parse_args_and_config(options))
    speeds = [entry["tokens_per_second"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(speeds) == 2 and min(speeds) > 0
    metrics = json.loads((tmp_path / "out" / "training_metrics.json").read_text())
    assert [speed for _, speed in metrics["tokens_per_second"]] == speeds
    printed = capsys.readouterr()
    assert "tokens_per_second" in printed.out + printed.err  # the bar's line


def test_tokens_per_second_are_logged_after_an_interruption_too(tmp_path):
    chat = write_tiny_chat(tmp_path)
    options = ["--model_name_or_path", str(chat / "model"), "--dataset_name", str(chat / "data")]
    options += ["--output_dir", str(tmp_path / "out"), "--use_cpu", "--bf16", "false", "--report_to", "none"]
    options += ["--logging_steps", "1", "--save_strategy", "steps", "--save_steps", "2", "--max_length", "64"]
    for more in (["--max_steps", "2"], ["--max_steps", "4", "--resume_from_checkpoint", "last"]):
        trainer = sft.main(*sft.make_parser().parse_args_and_config([*options, *more]))
    steps = [entry["step"] for entry in trainer.state.log_history if entry.get("tokens_per_second", 0) > 0]
    assert steps == [1, 2, 3, 4]
