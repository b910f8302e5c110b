# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning notebook runs from top to bottom, and what it says about its results is true."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from tiny_chat import chat_rows, write_tiny_chat
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_longcat_lite import LongCatLiteForCausalLM

NOTEBOOK = Path("training/fine_tune.ipynb")
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def run(**settings) -> dict[str, Any]:
    """Runs all code cells in order, the names that the first one sets replaced by `settings`."""
    names: dict[str, Any] = {}
    for index, cell in enumerate(CODE):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK}, code cell {index + 1}", "exec"), names)
        if index == 0:
            assert settings.keys() <= names.keys()
            names.update(settings)
    return names


def write_trained_model(folder: Path) -> Path:
    """A tiny chat model that answers its training rows, as the demo's does."""
    path = write_tiny_chat(folder, hidden_size=192, embedding_amplification="layer_norm") / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(path), LongCatLiteForCausalLM.from_pretrained(path)
    batch = tokenizer.apply_chat_template(
        [row["messages"] for row in chat_rows(4)], return_dict=True, return_tensors="pt", padding=True
    )
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def base(folder) -> Path:
    return write_trained_model(folder)


@pytest.fixture(scope="module")
def names(base, folder) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plt, "show", lambda: None)
        found = run(MODEL=str(base), ADAPTER=str(folder / "adapter"))
    yield found
    plt.close("all")


def test_training_lowers_the_loss_and_the_plot_shows_it(names):
    losses = [entry["loss"] for entry in names["trainer"].state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    (line,) = names["axes"].get_lines()
    assert list(line.get_ydata()) == losses
    assert list(line.get_xdata())[-1] == names["trainer"].state.global_step
    assert (names["axes"].get_xlabel(), names["axes"].get_ylabel()) == ("step", "loss (nats per token)")


def test_only_the_adapter_changes_the_answer(names):
    assert names["after"] != names["before"] == names["without"]


def test_the_saved_adapter_computes_the_same_logits_in_a_folder_of_another_name(names, base, tmp_path):
    assert names["equal"]
    moved = shutil.copytree(names["ADAPTER"], tmp_path / "moved")
    loaded = AutoModelForCausalLM.from_pretrained(moved).eval()
    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        logits = loaded(tokens).logits
        assert torch.equal(logits, names["adapted"](tokens).logits)
        assert not torch.equal(logits, LongCatLiteForCausalLM.from_pretrained(base).eval()(tokens).logits)


def test_a_missing_model_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no-model.*make demo.*MODEL"):
        run(MODEL=str(tmp_path / "no-model"))


def test_it_takes_the_model_of_the_demo_from_where_jupyter_starts():
    names: dict[str, Any] = {}
    exec("".join(CODE[0]["source"]), names)
    root = NOTEBOOK.parent.parent.resolve()
    assert (NOTEBOOK.parent / names["MODEL"]).resolve() == root / "outputs" / "demo" / "package"
    assert (NOTEBOOK.parent / names["ADAPTER"]).resolve().parent == root / "outputs"


def test_nothing_that_a_run_or_a_machine_left_is_in_it():
    for cell in CODE:
        assert cell["outputs"] == [] and cell["execution_count"] is None
    assert not re.search(r"(?<![\w.])/(?:home|root|Users|tmp)/|[A-Z]:\\\\", NOTEBOOK.read_text(encoding="utf-8"))
