# SPDX-License-Identifier: Apache-2.0
"""What a run writes of itself: its method and settings, and nothing of the machine's folders."""

import json

import trl
from test_sft import run
from tiny_chat import write_tiny_chat


def test_a_run_leaves_its_settings(tmp_path):
    chat = write_tiny_chat(tmp_path)
    run(chat, tmp_path / "out", "--warmup_steps", "1")
    text = (tmp_path / "out" / "training_run.json").read_text()
    record = json.loads(text)
    assert record["method"] == "SFT" and record["devices"] == 1
    assert record["versions"]["trl"] == trl.__version__
    settings = record["settings"]
    assert settings["learning_rate"] == 1e-2 and settings["warmup_steps"] == 1 and settings["packing"] is True
    assert settings["max_steps"] == 4 and "num_train_epochs" not in settings
    assert settings["lr_scheduler_type"] == "linear" and settings["bf16"] is False
    assert str(tmp_path) not in text
