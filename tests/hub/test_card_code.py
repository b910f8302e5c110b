# SPDX-License-Identifier: Apache-2.0
"""The code in a card runs unchanged, by name from a Hub, where the package cannot be imported."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from card_cases import OF_OUR_OWN, code_blocks, run_command, section, write_facts, write_results
from fake_hub import FakeHub
from huggingface_hub import ModelCard
from packaging.requirements import Requirement
from peft import LoraConfig, PeftModel, get_peft_model
from pip._internal.commands import create_command
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_chat import write_tiny_chat
from transformers import AutoTokenizer, set_seed
from trl.scripts import sft

from model_cards import build_hub_repo as builder
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.ngram_row_files import ROW_DELTA_FILE, read_row_delta, write_row_delta

OF_AN_ADAPTER = {"base_model": ["base/model"], "base_model_relation": "adapter"}
FORBID_THE_PACKAGE = 'import sys\nsys.modules["modeling_longcat_lite"] = None\n'
SAVE_LOGITS = """
import torch
from safetensors.torch import save_file
torch.set_num_threads(1)
assert any("transformers_modules" in type(part).__module__ for part in model.modules())
with torch.no_grad():
    save_file({"input_ids": inputs["input_ids"], "logits": model(**inputs).logits}, "logits.safetensors")
"""
CHECK_MODEL = """
assert model.draft_statistics.cycles > 0 and output.shape[1] > inputs["input_ids"].shape[1]
assert "get_weather" in tokenizer.decode(inputs["input_ids"][0])
assert model.model.ngram_embeddings.placement == "disk"
"""


def build(tmp_path: Path, model: Path, *options: str, **facts) -> Path:
    folder = tmp_path / "folder"
    arguments = ["--model", str(model), "--output", str(folder), *options]
    run_command(builder, *arguments, "--facts", str(write_facts(tmp_path / "facts.yaml", **facts)))
    return folder


def run_blocks(folder: Path, name: str, *more: str, **others: Path) -> None:
    """All Python blocks of the card, one after the other, in a process that loads the folder by name from a Hub.

    `others` are folders of the owner `base` there. The process writes next to the folder.
    """
    blocks = code_blocks((folder / "README.md").read_text(), "python")
    with FakeHub() as hub:
        hub.add_folder(folder, name)
        for other, its_folder in others.items():
            hub.add_folder(its_folder, f"base/{other}")
        code = "\n".join([FORBID_THE_PACKAGE, *blocks, *more])
        hub.run(code, cwd=folder.parent, PYTHONPATH=None, CUDA_VISIBLE_DEVICES="")


def assert_equal_logits(folder: Path, model: torch.nn.Module) -> None:
    """The model of the blocks computes what `model` does."""
    found = load_file(folder.parent / "logits.safetensors")
    with torch.no_grad():
        assert torch.equal(model.eval()(found["input_ids"]).logits, found["logits"])


def parse_bash(folder: Path, name: str = ".") -> list[str]:
    """Give each command of the card to the parser of its program; returns the programs."""
    text = (folder / "README.md").read_text()
    lines = [shlex.split(line) for block in code_blocks(text, "bash") for line in block.splitlines()]
    for program, *arguments in lines:
        if program == "pip":
            command = create_command(arguments[0])
            _, requirements = command.parse_args(arguments[1:])
            assert requirements and all(Requirement(requirement).name for requirement in requirements)
        else:
            assert (program, arguments[0]) == ("trl", "sft")
            parsed = sft.make_parser().parse_args_and_config([*arguments[1:], "--use_cpu", "--bf16", "false"])
            assert parsed[1].output_dir == "my-model" and parsed[2].model_name_or_path == name
            assert parsed[0].dataset_name == "my-data" and parsed[1].trust_remote_code is True
    return [program for program, *_ in lines]


@pytest.mark.slow  # starts a process
def test_the_blocks_of_a_model_run(tmp_path):
    chat = write_tiny_chat(tmp_path, num_nextn_predict_layers=1)
    folder = build(tmp_path, chat / "model", repo_id="me/tiny")
    text = (folder / "README.md").read_text()
    for title in (
        "Call tools",
        "Keep the n-gram tables off the accelerator",
        "Faster, with the draft head",
        "Fine-tune",
    ):
        assert f"### {title}" in section(text, "Use")
    assert len(code_blocks(text, "python")) == 4
    assert parse_bash(folder, "me/tiny") == ["pip", "pip", "trl"]
    run_blocks(folder, "me/tiny", CHECK_MODEL, SAVE_LOGITS)
    assert_equal_logits(folder, LongCatLiteForCausalLM.from_pretrained(chat / "model"))


@pytest.mark.slow  # starts a process
def test_the_blocks_of_an_adapter_run(tmp_path):
    chat = write_tiny_chat(tmp_path)
    adapter = write_adapter(chat / "model", tmp_path / "adapter")
    folder = build(tmp_path, adapter, repo_id="me/adapter", **OF_AN_ADAPTER)
    assert parse_bash(folder) == ["pip"]
    run_blocks(folder, "me/adapter", SAVE_LOGITS, model=chat / "model")
    base = LongCatLiteForCausalLM.from_pretrained(chat / "model")
    base.load_ngram_rows(adapter)
    assert_equal_logits(folder, PeftModel.from_pretrained(base, str(adapter)))


@pytest.mark.parametrize("with_rows", [True, False], ids=["rows", "plain"])
def test_the_folder_of_an_adapter(tmp_path, with_rows):
    chat = write_tiny_chat(tmp_path)
    adapter = write_adapter(chat / "model", tmp_path / "adapter", with_rows)
    results = write_results(tmp_path / "harness.json", adapter, OF_OUR_OWN)
    folder = build(tmp_path, adapter, "--results", str(results), **OF_AN_ADAPTER)
    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.base_model, data.base_model_relation) == ("peft", ["base/model"], "adapter")
    assert data.eval_results[0].metric_value == OF_OUR_OWN[0]["value"] and "lora" in data.tags
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "base/model"
    assert (folder / "adapter_model.safetensors").read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()
    assert not [path for path in folder.iterdir() if str(tmp_path).encode() in path.read_bytes()]
    text = (folder / "README.md").read_text()
    trained = sum(tensor.numel() for tensor in load_file(adapter / "adapter_model.safetensors").values())
    assert f"| trained parameters | {trained:,} (" in text and "| rank | 2 |" in text
    assert (folder / ROW_DELTA_FILE).is_file() == with_rows == ("model.load_ngram_rows(folder)" in text)
    if with_rows:
        stored = sum(len(ids) for ids, _ in read_row_delta(adapter, LongCatLiteConfig.from_pretrained(chat / "model")))
        assert f"| changed n-gram rows | {stored:,} of " in text


def test_an_adapter_names_its_base(tmp_path):
    adapter = write_adapter(write_tiny_chat(tmp_path) / "model", tmp_path / "adapter")
    with pytest.raises(ValueError, match="`base_model`"):
        build(tmp_path, adapter)
    (tmp_path / "model").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"`base_model_name_or_path` in .* where no model can be found"):
        build(tmp_path, adapter, **OF_AN_ADAPTER)
    assert not (tmp_path / "folder").exists()


def test_an_adapter_of_an_adapter_is_refused(tmp_path):
    first, second = (write_adapter(write_tiny_chat(tmp_path) / "model", tmp_path / name, False) for name in "ab")
    config = json.loads((second / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(first)}))
    with pytest.raises(ValueError, match=r"`base_model_name_or_path` in .*, an adapter itself: merge"):
        build(tmp_path, second, **OF_AN_ADAPTER)


@pytest.mark.parametrize("changed", ["adapter_model.safetensors", ROW_DELTA_FILE])
def test_results_of_another_adapter_are_refused(tmp_path, changed):
    chat = write_tiny_chat(tmp_path)
    adapter, other = (write_adapter(chat / "model", tmp_path / name) for name in ("adapter", "other"))
    tensors = {
        name: tensor + 1 if tensor.is_floating_point() else tensor
        for name, tensor in load_file(other / changed).items()
    }
    with safe_open(other / changed, "pt") as file:
        save_file(tensors, other / changed, metadata=file.metadata())
    results = write_results(tmp_path / "harness.json", adapter, OF_OUR_OWN)
    with pytest.raises(ValueError, match=r"harness.json was measured on another model: its weights_sha256"):
        build(tmp_path, other, "--results", str(results), **OF_AN_ADAPTER)


def write_adapter(base: Path, folder: Path, with_rows: bool = True) -> Path:
    """An adapter that changes something, and every other row of the tables."""
    set_seed(0)
    model = LongCatLiteForCausalLM.from_pretrained(base)
    if with_rows:
        width = model.config.subtable_width
        rows = [
            (torch.arange(0, size, 2), torch.randn((size + 1) // 2, width)) for size in model.config.subtable_sizes
        ]
        write_row_delta(folder / ROW_DELTA_FILE, model.config, rows, str(base))
    targets = ["q_a_proj", "o_proj"]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    adapted.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder
