# SPDX-License-Identifier: Apache-2.0
"""Context extension: stages run and leave models of their length, and what cannot be is named before training."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import PLAIN_ROPE
from tiny_chat import write_rows, write_tiny_chat

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from training import extend_context
from training.context.stages import check_original_length, read_stages, stage_config

STAGES = {
    "original_length": 16,
    "short_loss_tolerance": 9.0,
    "stages": [
        {"max_length": 32, "factor": 2, "long_share": 0.5, "steps": 2},
        {"max_length": 64, "factor": 4, "long_share": 0.5, "steps": 2},
    ],
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = write_tiny_chat(tmp_path_factory.mktemp("context"), max_position_embeddings=16)
    texts = ["a short one", "the list in place " * 20, "another short one", "sort the strings " * 30]
    for split in ("train", "test"):
        write_rows(folder / "documents" / f"{split}.jsonl", [{"text": text} for text in texts])
    return folder


def write_stages(path: Path, **changes) -> Path:
    path.write_text(yaml.safe_dump(STAGES | changes), encoding="utf-8")
    return path


def run(tiny: Path, output: Path, stages: Path, *options: str):
    """`python -m training.extend_context` with the tiny model and documents."""
    arguments = [
        *("--model_name_or_path", str(tiny / "model"), "--dataset_name", str(tiny / "documents")),
        *("--stages", str(stages), "--output_dir", str(output), "--use_cpu", "--bf16", "false"),
        *("--report_to", "none", "--disable_tqdm", "true", "--per_device_train_batch_size", "1"),
        *("--per_device_eval_batch_size", "1", "--learning_rate", "1e-2", "--save_strategy", "no"),
        *("--logging_steps", "1", *options),
    ]
    return extend_context.main(*extend_context.make_parser().parse_args_and_config(arguments))


def test_stages_go_on_from_each_other(tiny, tmp_path):
    stages = write_stages(tmp_path / "stages.yaml")
    run(tiny, tmp_path / "out", stages)
    records = json.loads((tmp_path / "out" / "stages.json").read_text())
    assert [record["stage"] for record in records] == ["before", 1, 2]
    assert records[2]["short_loss_ratio"] == records[2]["short_loss"] / records[0]["short_loss"]
    for folder, length in (("stage-1-32", 32), ("stage-2-64", 64)):
        logged = json.loads((tmp_path / "out" / folder / "training_metrics.json").read_text())
        # Of a long block and one of short rows, each of `length` tokens.
        assert logged["num_tokens"] == [[1, length], [2, 2 * length]] and logged["tokens_per_second"]
        assert (tmp_path / "out" / folder / "training_curves.png").is_file()
    for folder, factor in (("stage-1-32", 2.0), ("stage-2-64", 4.0), (".", 4.0)):
        config = LongCatLiteConfig.from_pretrained(tmp_path / "out" / folder)
        rope = config.rope_parameters
        assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("yarn", factor, 16)
        assert rope["mscale"] == rope["mscale_all_dim"] == 1.0
        assert config.max_position_embeddings == 64
    sources = (tiny / "model", tmp_path / "out" / "stage-1-32", tmp_path / "out")
    before, first, last = (LongCatLiteForCausalLM.from_pretrained(source).state_dict() for source in sources)
    for name in ("model.layers.0.mlp.experts.gate_up_proj", "model.ngram_embeddings.embedders.0.weight"):
        assert not torch.equal(before[name], first[name]) and not torch.equal(first[name], last[name]), name


def test_finished_stages_are_not_trained_again(tiny, tmp_path):
    whole = run(tiny, tmp_path / "whole", write_stages(tmp_path / "both.yaml"))
    first_only = write_stages(tmp_path / "first.yaml", stages=STAGES["stages"][:1], max_position_embeddings=64)
    run(tiny, tmp_path / "parts", first_only)
    finished = (tmp_path / "parts" / "stage-1-32" / "model.safetensors").stat().st_mtime_ns
    resumed = run(tiny, tmp_path / "parts", tmp_path / "both.yaml", "--resume_from_checkpoint", "last")
    assert (tmp_path / "parts" / "stage-1-32" / "model.safetensors").stat().st_mtime_ns == finished
    for name, weights in resumed.model.state_dict().items():
        assert torch.equal(weights, whole.model.state_dict()[name]), name


def test_an_interrupted_stage_goes_on_from_its_newest_whole_checkpoint(tiny, tmp_path):
    stages, every_step = write_stages(tmp_path / "stages.yaml"), ("--save_strategy", "steps", "--save_steps", "1")
    whole = run(tiny, tmp_path / "out", stages, *every_step)
    # As it would be after a kill in stage 2, while its second checkpoint was written.
    record = tmp_path / "out" / "stages.json"
    record.write_text(json.dumps(json.loads(record.read_text())[:2]))
    (tmp_path / "out" / "stage-2-64" / "checkpoint-2" / "trainer_state.json").unlink()
    resumed = run(tiny, tmp_path / "out", stages, *every_step, "--resume_from_checkpoint", "last")
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == [1, 2]
    for name, weights in resumed.model.state_dict().items():
        assert torch.equal(weights, whole.model.state_dict()[name]), name


def test_a_short_loss_that_rises_stops_the_run(tiny, tmp_path):
    stages = write_stages(tmp_path / "stages.yaml", short_loss_tolerance=0.0)
    with pytest.raises(RuntimeError, match=r"stage 1: .*`short_loss_tolerance`.*stage-1-32"):
        run(tiny, tmp_path / "out", stages, "--learning_rate", "10")
    assert (tmp_path / "out" / "stage-1-32" / "model.safetensors").is_file()


def test_blocks_hold_as_many_tokens_long_or_short(tiny, tmp_path):
    trainer = run(tiny, tmp_path / "out", write_stages(tmp_path / "stages.yaml"))
    batches = [trainer.data_collator([row]) for row in trainer.train_dataset]
    shapes = sorted(tuple(batch["input_ids"].shape) for batch in batches)
    assert shapes == [(1, 64), (4, 16)]
    for batch in batches:
        assert batch["position_ids"].tolist() == [list(range(batch["input_ids"].shape[1]))] * len(batch["input_ids"])


def stage(**changes) -> list[dict]:
    return [STAGES["stages"][0], STAGES["stages"][1] | changes]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"original_length": None}, "`original_length` must be a number"),
        ({"original_length": 32}, "`original_length` is 32.*`max_position_embeddings` is 16"),
        ({"max_position_embeddings": 48}, r"`stages\[1\].factor` 4 times.*above `max_position_embeddings` 48"),
        ({"stages": stage(factor=0.5)}, r"`stages\[1\].factor` must be at least 1, got 0.5"),
        ({"stages": stage(max_length=80)}, r"`stages\[1\].max_length` 80 is above `factor`"),
        ({"stages": stage(max_length=40)}, r"`stages\[1\].max_length` 40 must be a multiple"),
        ({"stages": stage(long_share=1.5)}, r"`stages\[1\].long_share`"),
        ({"stages": stage(steps=0)}, r"`stages\[1\].steps`"),
        ({"stages": stage(factor="4")}, r"`stages\[1\].factor` must be a number"),
        ({"stages": stage(length=4)}, r"`stages\[1\].length` is unknown"),
        ({"stages": [{"max_length": 32}]}, r"`stages\[0\].factor` is missing"),
        ({"stages": []}, "`stages` must be a list"),
        ({"stages": stage(max_length=1024, factor=64)}, r"`stages\[1\].max_length` is 1024.*the longest has \d+"),
        ({"rope_type": "linear"}, "`rope_type` must be one of yarn, default"),
        ({"beta_slow": 40}, "`beta_slow`"),
        ({"lengths": 3}, "`lengths` is unknown"),
    ],
)
def test_stages_that_cannot_be_are_named(tiny, tmp_path, changes, problem):
    with pytest.raises(ValueError, match=problem):
        run(tiny, tmp_path / "out", write_stages(tmp_path / "stages.yaml", **changes))
    assert not (tmp_path / "out" / "stage-1-32").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--packing",), "`packing`"),
        (("--per_device_train_batch_size", "2"), "`per_device_train_batch_size` must be 1"),
        (("--use_peft",), "`use_peft`"),
        (("--resume_from_checkpoint", "out/checkpoint-3"), "`resume_from_checkpoint`.*`last`"),
        (("--dataset_text_field", "body"), "`train` has neither a column `body`"),
        (("--dataset_test_split", "validation"), "no split `validation`"),
    ],
)
def test_mistaken_options_are_named(tiny, tmp_path, options, problem):
    with pytest.raises(ValueError, match=problem):
        run(tiny, tmp_path / "out", write_stages(tmp_path / "stages.yaml"), *options)


def test_a_checkpoint_says_what_it_was_trained_at():
    check_original_length(LongCatLiteConfig(), 32768)
    with pytest.raises(ValueError, match=r"`rope_parameters\.original_max_position_embeddings` is 32768"):
        check_original_length(LongCatLiteConfig(), 65536)
    with pytest.raises(ValueError, match="`max_position_embeddings` is 8192"):
        check_original_length(LongCatLiteConfig(rope_parameters=PLAIN_ROPE, max_position_embeddings=8192), 32768)


def test_the_recipe_for_256k_ends_in_the_released_configuration():
    stages = read_stages("training/recipes/yarn_256k.stages.yaml")
    released = LongCatLiteConfig()
    theta = released.rope_parameters["rope_theta"]
    plain = LongCatLiteConfig(
        rope_parameters={"rope_type": "default", "rope_theta": theta}, max_position_embeddings=32768
    )
    check_original_length(plain, stages.original_length)
    last = stage_config(plain, stages, stages.stages[-1])
    assert last.rope_parameters == released.rope_parameters
    assert last.max_position_embeddings == released.max_position_embeddings
    assert last.to_dict().keys() == released.to_dict().keys()


def test_parallelism_of_the_recipe_divides_its_rows():
    config = load_config_from_file("training/accelerate_configs/context_parallel.yaml")
    sizes = config.parallelism_config
    cp, dp = sizes["parallelism_config_cp_size"], sizes["parallelism_config_dp_shard_size"]
    assert cp * dp == config.num_processes
    assert read_stages("training/recipes/yarn_256k.stages.yaml").original_length % (2 * cp) == 0
