# SPDX-License-Identifier: Apache-2.0
"""The memory plan against what runs take, against arithmetic, and on the command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import tiny_config
from datasets import Dataset
from measured_memory import held_by, peak_growth
from tiny_chat import write_rows, write_tiny_chat
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from eval.fit.training import __main__ as plan
from eval.fit.training.live_memory import LiveMemory
from eval.fit.training.memory import plan_memory
from eval.fit.training.recipe import Adapter, Setup, is_recipe, read_setup
from modeling_longcat_lite import LongCatLiteConfig
from training import sft
from training.run.trainers import ResumableSFTTrainer

RECIPES = sorted(filter(is_recipe, Path("training/recipes").glob("*.yaml")))
# Of 55 MB: weights, gradients and states weigh as much as what a step of 256 tokens makes.
SMALL = {
    "hidden_size": 384,
    "num_attention_heads": 4,
    "ffn_hidden_size": 768,
    "expert_ffn_hidden_size": 256,
    "q_lora_rank": 128,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 12,
    "zero_expert_num": 4,
    "moe_topk": 4,
    "ngram_vocab_size_ratio": 20.3,
}
ADAPTER = {"use_peft": True, "lora_dropout": 0.0, "lora_target_modules": ["q_a_proj", "q_b_proj", "o_proj"]}
RUNS = {
    "full": {"gradient_checkpointing": False, "per_device_train_batch_size": 2},
    "full, accumulated": {"gradient_checkpointing": False, "gradient_accumulation_steps": 2, "max_length": 64},
    "full, checkpointing": {"gradient_checkpointing": True, "max_length": 64},
    "lora": {"gradient_checkpointing": False, "per_device_train_batch_size": 2, **ADAPTER},
}


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    """A model of 55 MB, and conversations longer than a row."""
    folder = write_tiny_chat(tmp_path_factory.mktemp("plan"), **SMALL)
    answer = " ".join(f"Return {index} the length." for index in range(100))
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": answer}]
    write_rows(folder / "data" / "train.jsonl", [{"messages": messages}] * 16)
    return folder


def write_recipe(chat: Path, path: Path, **keys) -> Path:
    """Three steps on a CPU."""
    recipe = {
        "model_name_or_path": str(chat / "model"),
        "dataset_name": str(chat / "data"),
        "chat_template_path": "tokenization/chat_template_training.jinja",
        "assistant_only_loss": True,
        "max_length": 128,
        "packing": True,
        "per_device_train_batch_size": 1,
        "max_steps": 3,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "output_dir": str(path.with_suffix("")),
        "learning_rate": 1e-4,
        **keys,
    }
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def measured(recipe: Path, monkeypatch) -> int:
    """The most bytes that the recipe's training holds: the model, and what training adds to it."""
    held, train = [], ResumableSFTTrainer.train

    def train_and_measure(self, **options):
        held.append(held_by(self.model))
        held.append(peak_growth(lambda: train(self, **options)))

    monkeypatch.setattr(ResumableSFTTrainer, "train", train_and_measure)
    sft.main(*sft.make_parser().parse_args_and_config(["--config", str(recipe)]))
    return sum(held)


@pytest.mark.slow
@pytest.mark.parametrize("keys", RUNS.values(), ids=RUNS)
def test_the_plan_is_within_a_tenth_of_what_a_run_takes(chat, tmp_path, monkeypatch, keys):
    recipe = write_recipe(chat, tmp_path / "recipe.yaml", **keys)
    planned = plan_memory(LongCatLiteConfig.from_pretrained(chat / "model"), read_setup(recipe)).counted
    assert planned == pytest.approx(measured(recipe, monkeypatch), rel=0.1)


@pytest.mark.slow
def test_preferences_are_planned_with_their_reference(chat, tmp_path):
    keys = {"per_device_train_batch_size": 2, "max_length": 64, "gradient_checkpointing": False, "bf16": False}
    recipe = tmp_path / "dpo.yaml"
    recipe.write_text(yaml.safe_dump({**keys, "beta": 0.1}), encoding="utf-8")
    planned = plan_memory(LongCatLiteConfig.from_pretrained(chat / "model"), read_setup(recipe)).counted
    answer = " ".join(f"Return {index} the length." for index in range(60))
    rows = [{"prompt": "What?", "chosen": answer, "rejected": answer[::-1]}] * 8
    quiet = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "max_steps": 3}
    trainer: Any = DPOTrainer(
        model=str(chat / "model"),
        args=DPOConfig(**keys, **quiet, output_dir=str(tmp_path)),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(chat / "model"),
    )
    held = held_by(trainer.model) + held_by(trainer.ref_model)
    assert planned == pytest.approx(held + peak_growth(trainer.train), rel=0.1)


def test_live_memory_is_that_of_the_allocator():
    def model() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.GELU(), torch.nn.Linear(512, 8))

    real = model()
    grown = peak_growth(lambda: real(torch.zeros(100, 64)).sum().backward())
    with FakeTensorMode():
        fake = model()
        with LiveMemory(fake) as memory:
            fake(torch.zeros(100, 64)).sum().backward()
    assert sum(memory.peak().values()) == pytest.approx(grown, rel=0.01)
    halved = memory.peak({"gradients": 0.5})
    assert sum(halved.values()) < grown


CONFIG = tiny_config()
SETUP = Setup(rows=1, length=32, packed=True, checkpointing=False, bf16=False)
TABLES = 4 * sum(CONFIG.subtable_sizes) * CONFIG.subtable_width


def test_parts_are_those_of_arithmetic():
    alone = plan_memory(CONFIG, SETUP)
    trunk = alone.parts["weights"]
    assert alone.parts["tables"] == TABLES and alone.parts["communication"] == 0
    assert alone.parts["optimizer"] == 2 * (trunk + TABLES) == 8 * alone.trained
    split = plan_memory(CONFIG, replace(SETUP, gpus=4, shard="fsdp2", tables="sharded"))
    for part in ("weights", "tables", "optimizer"):
        assert split.parts[part] == alone.parts[part] / 4
    assert split.parts["communication"] > 0
    copies = plan_memory(CONFIG, replace(SETUP, gpus=4))
    assert copies.parts["communication"] == trunk + TABLES
    frozen = plan_memory(CONFIG, replace(SETUP, tables="disk", train_tables="none"))
    assert frozen.parts["tables"] == frozen.host == 0 and frozen.parts["optimizer"] == 2 * trunk
    by_rows = plan_memory(CONFIG, replace(SETUP, train_tables="rowwise"))
    assert by_rows.parts["optimizer"] == 2 * trunk + 8 * sum(CONFIG.subtable_sizes)
    assert plan_memory(CONFIG, replace(SETUP, tables="host", train_tables="none")).host == TABLES


def test_mixed_precision_adapters_and_packed_weights_are_counted():
    full = plan_memory(CONFIG, SETUP)
    half = plan_memory(CONFIG, replace(SETUP, dtype="bfloat16", bf16=True))
    assert half.parts["weights"] == full.parts["weights"] / 2
    # FSDP2 in mixed precision keeps float32 of what is trained.
    split = replace(SETUP, dtype="bfloat16", bf16=True, gpus=2, shard="fsdp2", tables="disk", train_tables="none")
    assert plan_memory(CONFIG, split).parts["weights"] == full.parts["weights"] / 2
    adapter = Adapter(r=4, target_modules=("q_b_proj", "o_proj"))
    lora = plan_memory(CONFIG, replace(SETUP, adapter=adapter, train_tables="none"))
    config = CONFIG
    heads, hidden = config.num_attention_heads, config.hidden_size
    q_b, o = config.q_lora_rank + heads * config.qk_head_dim, heads * config.v_head_dim + hidden
    assert lora.trained == 4 * config.num_hidden_layers * (q_b + o)
    assert lora.parts["optimizer"] == 8 * lora.trained
    packed = plan_memory(CONFIG, replace(SETUP, adapter=adapter, train_tables="none", bits=4))
    assert packed.parts["weights"] < lora.parts["weights"]
    reference = plan_memory(CONFIG, replace(SETUP, trainer="dpo", rows=2, has_reference=True))
    assert reference.parts["weights"] == 2 * full.parts["weights"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_planned(recipe):
    given = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    setup = read_setup(recipe)
    assert setup.rows % given["per_device_train_batch_size"] == 0
    assert plan_memory(CONFIG, replace(setup, length=32)).total > 0


def test_rows_of_a_context_extension_are_those_of_its_longest_stage():
    lengths = {name: read_setup(Path(f"training/recipes/{name}.yaml")).length for name in ("yarn_demo", "yarn_256k")}
    assert lengths == {"yarn_demo": 2048, "yarn_256k": 262144}


def run(*options: str) -> bool:
    return plan.main(plan.make_parser().parse_args(options)) == 0


def test_context_parallelism_leaves_a_gpu_its_part_of_a_row():
    path = Path("training/recipes/yarn_256k.yaml")
    whole, part = (read_setup(path, gpus=64, shard="fsdp2", context_parallel=count) for count in (None, 8))
    assert (whole.length, part.length) == (262144, 32768)
    with pytest.raises(ValueError, match="`context_parallel` is 6: it must divide the 64 GPUs"):
        read_setup(path, gpus=64, shard="fsdp2", context_parallel=6)
    config = tiny_config(vocab_size=256)
    short = [replace(setup, length=setup.length // 128) for setup in (whole, part)]
    in_whole, in_part = (plan_memory(config, setup).parts["activations"] for setup in short)
    assert in_part < in_whole / 6


def test_the_command_prints_parts_and_what_would_fit_and_writes_files(tmp_path, capsys):
    CONFIG.save_pretrained(tmp_path / "model")
    common = ("--recipe", "demo", "--model", str(tmp_path / "model"))
    assert run(*common, "--gpu-memory", "80GB")
    printed = capsys.readouterr().out
    for part in ("weights", "gradients", "optimizer", "activations", "tables", "It fits"):
        assert part in printed
    assert not run(*common, "--gpu-memory", "1GB", "--output", str(tmp_path / "out"))
    assert "does not fit" in capsys.readouterr().out
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".json", ".md", ".png"]
    written = json.loads((tmp_path / "out" / "memory_plan.json").read_text())
    assert not written["fits"] and written["total"] == pytest.approx(sum(written["parts"].values()))


def test_what_would_fit_is_told(tmp_path, capsys):
    recipe = tmp_path / "large.yaml"
    recipe.write_text("max_length: 64\nper_device_train_batch_size: 64\nbf16: false\ngradient_checkpointing: false\n")
    CONFIG.save_pretrained(tmp_path / "model")
    options = ("--recipe", str(recipe), "--model", str(tmp_path / "model"), "--gpu-memory", "1.2GB")
    assert not run(*options)
    assert "per_device_train_batch_size: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--recipe", "demo", "--gpu-memory", "80"), "--gpu-memory"),
        (("--recipe", "demo", "--gpu-memory", "0GB"), "--gpu-memory"),
        (("--recipe", "nothing", "--gpu-memory", "80GB"), "nor one of .*demo"),
        (("--recipe", "sft_tables.longcat", "--gpu-memory", "80GB"), "nor one of .*sft_tables"),
        (("--recipe", "demo", "--gpu-memory", "80GB", "--gpus", "0"), "gpus"),
        (("--recipe", "demo", "--gpu-memory", "80GB", "--ngram-tables", "sharded"), "fsdp2"),
        (("--recipe", "demo", "--gpu-memory", "80GB", "--model", "nowhere"), "--model"),
    ],
)
def test_mistakes_are_named(options, problem):
    with pytest.raises(ValueError, match=problem):
        run(*options)


def test_mistakes_in_a_recipe_are_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    for text, problem in (
        ("- a\n", "mapping"),
        ("max_length: null\n", "max_length"),
        ("per_device_train_batch_size: 0\n", "per_device_train_batch_size"),
        ("use_peft: true\n", "lora_target_modules"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=problem):
            read_setup(path)
    path.write_text("optim: lomo\n")
    with pytest.raises(ValueError, match="lomo"):
        plan_memory(CONFIG, read_setup(path))
