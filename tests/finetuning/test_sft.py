# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning script: it trains, resumes bit-exactly with the experts, saves the code, and names mistakes."""

import json
import resource
import runpy
import sys
from pathlib import Path

import pytest
import torch
from tiny_chat import chat_rows, write_rows, write_tiny_chat
from transformers import TrainerCallback

from modeling_longcat_lite import LongCatLiteForCausalLM
from training import sft


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("chat"))


def arguments(chat: Path, output: Path, *options: str) -> list[str]:
    """A few steps on the tiny model."""
    return [
        *("--model_name_or_path", str(chat / "model"), "--dataset_name", str(chat / "data")),
        *("--chat_template_path", "tokenization/chat_template_training.jinja", "--assistant_only_loss"),
        *("--output_dir", str(output), "--use_cpu", "--bf16", "false", "--report_to", "none"),
        *("--disable_tqdm", "true", "--max_steps", "4", "--per_device_train_batch_size", "1", "--max_length", "64"),
        *("--packing", "--learning_rate", "1e-2", "--logging_steps", "1", "--save_strategy", "no", *options),
    ]


def run(chat: Path, output: Path, *options: str):
    """`python -m training.sft` with a few steps on the tiny model."""
    return sft.main(*sft.make_parser().parse_args_and_config(arguments(chat, output, *options)))


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_draft_head_trains_with_the_trunk(tmp_path):
    chat = write_tiny_chat(tmp_path, num_nextn_predict_layers=1)
    frozen = run(chat, tmp_path / "frozen")
    trained = run(chat, tmp_path / "trained", "--draft_loss_weight", "0.5")
    before = LongCatLiteForCausalLM.from_pretrained(chat / "model").model.mtp.state_dict()
    for name, weights in frozen.model.model.mtp.state_dict().items():
        assert torch.equal(weights, before[name]), name
    for name, weights in trained.model.model.mtp.state_dict().items():
        assert not torch.equal(weights, before[name]), name
    drafts = [entry["draft_loss"] for entry in trained.state.log_history if "draft_loss" in entry]
    assert len(drafts) == 4 and drafts[-1] < drafts[0]
    saved = LongCatLiteForCausalLM.from_pretrained(tmp_path / "trained").model.mtp.state_dict()
    for name, weights in trained.model.model.mtp.state_dict().items():
        assert torch.equal(weights, saved[name]), name


def test_a_model_without_a_draft_head_gets_one(chat, tmp_path):
    trainer = run(chat, tmp_path, "--draft_loss_weight", "0.5")
    saved = LongCatLiteForCausalLM.from_pretrained(tmp_path)
    assert saved.config.num_nextn_predict_layers == 1
    for name, weights in trainer.model.model.mtp.state_dict().items():
        assert torch.equal(weights, saved.model.mtp.state_dict()[name]), name
    prompt = torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert torch.equal(saved.generate(prompt, use_mtp=True, **options), saved.generate(prompt, **options))


@pytest.mark.parametrize("from_ngrams", ["true", "false"])
def test_the_draft_head_alone_follows_a_finished_trunk(chat, tmp_path, from_ngrams):
    drafts = f'{{"mtp_use_ngram_embedding": {from_ngrams}}}'
    trainer = run(chat, tmp_path, "--draft_loss_weight", "0.5", "--draft_head_only", "--model_init_kwargs", drafts)
    before = LongCatLiteForCausalLM.from_pretrained(chat / "model").state_dict()
    after = LongCatLiteForCausalLM.from_pretrained(tmp_path)
    assert after.config.mtp_use_ngram_embedding == (from_ngrams == "true")
    for name, weights in before.items():
        assert torch.equal(after.state_dict()[name], weights), name
    drafted = [entry["draft_loss"] for entry in trainer.state.log_history if "draft_loss" in entry]
    assert drafted[-1] < drafted[0]


def test_the_draft_head_alone_needs_a_weight(chat, tmp_path):
    with pytest.raises(ValueError, match="draft_loss_weight"):
        run(chat, tmp_path, "--draft_head_only")


def test_the_draft_head_alone_leaves_no_rows_to_train(chat, tmp_path):
    with pytest.raises(ValueError, match=r"`draft_head_only`.*`tables: row_sparse`"):
        run(chat, tmp_path, "--draft_loss_weight", "0.5", "--draft_head_only", "--tables", "row_sparse")


def test_a_draft_loss_beside_an_adapter_is_refused(chat, tmp_path):
    with pytest.raises(ValueError, match="PEFT"):
        run(
            chat, tmp_path, "--draft_loss_weight", "0.5", "--use_peft", "--lora_target_modules", "q_a_proj", "q_b_proj"
        )


def test_resuming_repeats_the_uninterrupted_run_bit_for_bit(chat, tmp_path):
    whole = run(chat, tmp_path / "whole")
    # Stops after two steps of a schedule of four.
    save_at_two = ("--save_strategy", "steps", "--save_steps", "2")
    run(chat, tmp_path / "parts", *save_at_two)
    newest = tmp_path / "parts" / "checkpoint-4"
    newest.rename(tmp_path / "moved-away")
    resumed = run(chat, tmp_path / "parts", "--resume_from_checkpoint", "last")
    assert losses(resumed) == losses(whole)
    expected = whole.model.state_dict()
    for name, weights in resumed.model.state_dict().items():
        assert torch.equal(weights, expected[name]), name
    # The checkpoint holds the experts one by one: what plain load_state_dict cannot read.
    stored = json.loads((tmp_path / "parts" / "config.json").read_text())
    assert stored["auto_map"]["AutoModelForCausalLM"] == "modeling_longcat_lite.LongCatLiteForCausalLM"


def test_a_full_disk_leaves_the_last_good_checkpoint(chat, tmp_path):
    whole = run(chat, tmp_path / "whole")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class FullDisk(TrainerCallback):
        """After the first checkpoint, every write beyond some size fails."""

        def on_save(self, args, state, control, **kwargs):
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))

    parts = tmp_path / "parts"
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Exception, match=r"File too large|os error 27"):
            patch.setattr("training.run.curves.TrainingCurves", FullDisk)
            run(chat, parts, "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in parts.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    LongCatLiteForCausalLM.from_pretrained(parts / "checkpoint-2")
    assert losses(run(chat, parts, "--resume_from_checkpoint", "last")) == losses(whole)


def test_a_checkpoint_of_another_config_is_named(chat, tmp_path):
    other = write_tiny_chat(tmp_path / "other", num_layers=1)
    run(other, tmp_path / "out", "--max_steps", "1", "--save_strategy", "steps", "--save_steps", "1")
    with pytest.raises(ValueError, match=r"checkpoint-1 is of another model: its `num_layers` is 1, .* 2"):
        run(chat, tmp_path / "out", "--resume_from_checkpoint", "last")


@pytest.mark.parametrize("placement", ["host", "disk"])
@pytest.mark.parametrize("lora", [(), ("--use_peft", "--lora_target_modules", "q_a_proj", "o_proj")], ids=["", "lora"])
def test_tables_off_the_model_train_as_frozen_ones(chat, tmp_path, placement, lora):
    where = f'{{"ngram_tables": "{placement}"}}'
    trainer = run(chat, tmp_path, "--model_init_kwargs", where, *lora)
    assert losses(trainer)[-1] < losses(trainer)[0]
    if not lora:
        before, after = (LongCatLiteForCausalLM.from_pretrained(p).state_dict() for p in (chat / "model", tmp_path))
        for name in (name for name in before if ".embedders." in name):
            assert torch.equal(after[name], before[name]), name


def test_resuming_with_tables_on_disk_repeats_the_uninterrupted_run(chat, tmp_path):
    on_disk = ("--model_init_kwargs", '{"ngram_tables": "disk"}')
    whole = run(chat, tmp_path / "whole", *on_disk)
    run(chat, tmp_path / "parts", *on_disk, "--save_strategy", "steps", "--save_steps", "2")
    (tmp_path / "parts" / "checkpoint-4").rename(tmp_path / "moved-away")
    assert losses(run(chat, tmp_path / "parts", *on_disk, "--resume_from_checkpoint", "last")) == losses(whole)


def test_training_changes_experts_tables_and_loss(chat, tmp_path):
    trainer = run(chat, tmp_path / "out", "--max_steps", "20")
    assert losses(trainer)[-1] < losses(trainer)[0]
    before = LongCatLiteForCausalLM.from_pretrained(chat / "model").state_dict()
    after = LongCatLiteForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name in ("model.layers.0.mlp.experts.gate_up_proj", "model.ngram_embeddings.embedders.0.weight"):
        assert not torch.equal(before[name], after[name]), name


def test_saved_folder_carries_the_code_and_the_trainer_log(chat, tmp_path):
    run(chat, tmp_path / "out", "--max_steps", "1", "--eval_on_start", "--eval_strategy", "epoch")
    assert {"modeling_longcat_lite.py", "configuration_longcat_lite.py", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert sum("eval_loss" in entry for entry in history) == 2


def test_best_model_is_loaded_with_its_experts(chat, tmp_path):
    # The learning rate makes things worse, so the best model is that of the first evaluation.
    every_step = ("--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1")
    trainer = run(chat, tmp_path / "out", *every_step, "--load_best_model_at_end", "true", "--learning_rate", "10")
    assert not trainer.state.best_model_checkpoint.endswith("checkpoint-4")  # the model as it stood in the end
    best = LongCatLiteForCausalLM.from_pretrained(trainer.state.best_model_checkpoint).state_dict()
    for name, weights in trainer.model.state_dict().items():
        assert torch.equal(weights, best[name]), name


def test_lora_trains_and_saves_an_adapter(chat, tmp_path):
    targets = ("--use_peft", "--lora_target_modules", "q_a_proj", "q_b_proj", "o_proj")
    run(chat, tmp_path / "out", "--max_steps", "1", *targets)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "at least one message"),
        ([{"role": "user", "content": "Q"}], "no assistant turn"),
        ([{"role": "human", "content": "Q"}, {"role": "assistant", "content": "A"}], "messages\\[0\\].role.*'human'"),
        ([{"role": "user", "content": None}, {"role": "assistant", "content": "A"}], "messages\\[0\\].content"),
    ],
)
def test_bad_rows_are_named(chat, tmp_path, messages, problem):
    write_rows(tmp_path / "data" / "train.jsonl", [*chat_rows(2), {"messages": messages}])
    with pytest.raises(ValueError, match=f"row 2 of `train`.*{problem}"):
        run(chat, tmp_path / "out", "--dataset_name", str(tmp_path / "data"))


@pytest.mark.parametrize("options", [[], ["--packing", "false"]], ids=["packed", "padded"])
def test_a_length_that_cuts_every_answer_off_is_named(chat, tmp_path, options):
    with pytest.raises(ValueError, match=r"no row has a trainable token within `max_length` 8"):
        run(chat, tmp_path / "out", "--max_length", "8", *options)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--packing_strategy", "wrapped"], "packing_strategy"),
        (["--chat_template_path", "no-such.jinja"], "`chat_template_path`.*no-such.jinja"),
        (["--resume_from_checkpoint", "last"], "there is no checkpoint"),
        (["--dataset_train_split", "training"], "no split `training`"),
        (["--dataset_name", ""], "dataset_name"),
    ],
)
def test_mistaken_options_are_named(chat, tmp_path, options, problem):
    with pytest.raises(ValueError, match=problem):
        run(chat, tmp_path / "out", *options)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("training.sft", ["--longcat_config"]),
        ("training.dpo", ["--config", "no-such-recipe.yaml"]),
        ("training.grpo", ["--dataset_name", "rows"]),
        ("training.extend_context", ["--dataset_name", "rows"]),
    ],
)
def test_a_mistake_ends_a_command_with_one_line(module, options, tmp_path, monkeypatch, capsys):
    command = [module, "--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false", *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[-1].startswith("error: ") and not [line for line in printed if "Traceback" in line]
    monkeypatch.setattr(sys, "argv", [*command[:1], "--debug", *command[1:]])
    with pytest.raises((ValueError, OSError)):
        runpy.run_module(module, run_name="__main__")


def test_a_command_that_trained_ends_with_0(chat, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["training.sft", *arguments(chat, tmp_path, "--max_steps", "1")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("training.sft", run_name="__main__")
    assert ended.value.code == 0
