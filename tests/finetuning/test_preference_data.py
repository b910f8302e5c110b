# SPDX-License-Identifier: Apache-2.0
"""Rows for DPO and GRPO from conversations, the reward that judges answers, and the scripts that read them."""

import json

import pytest
import torch
from tiny_chat import chat_rows, write_rows, write_tiny_chat

from modeling_longcat_lite import LongCatLiteForCausalLM
from training import dpo, grpo
from training.data.answer_reward import answer_reward
from training.data.preferences import main, make_parser, write_preferences


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_prefer_the_answer_to_the_question(tmp_path):
    chats = chat_rows(6)
    write_rows(tmp_path / "train.jsonl", [*chats, *chat_rows(8), *chats])  # the last two of eight once only
    write_rows(tmp_path / "test.jsonl", chats[:2])
    options = ["--conversations", str(tmp_path), "--output", str(tmp_path / "out"), "--rows", "5"]
    main(make_parser().parse_args(options))
    answers = {chat["messages"][0]["content"]: chat["messages"][1]["content"] for chat in chats}
    pairs, prompts = (rows_of(tmp_path / "out" / kind / "train.jsonl") for kind in ("pairs", "prompts"))
    assert len(prompts) == 5 and 0 < len(pairs) <= 5
    for pair in pairs:
        assert pair["chosen"][0]["content"] == answers[pair["prompt"][0]["content"]]
        assert pair["rejected"][0]["content"] != pair["chosen"][0]["content"]
    assert len({prompt["prompt"][0]["content"] for prompt in prompts}) == 5
    write_preferences(tmp_path, tmp_path / "again", rows=5, seed=0)
    assert rows_of(tmp_path / "again" / "pairs" / "train.jsonl") == pairs


def test_a_folder_without_conversations_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no train\.jsonl"):
        write_preferences(tmp_path, tmp_path / "out", rows=5, seed=0)


def test_the_reward_grows_with_the_answer():
    answer = "Return the number of items in a container, and then some more of it."
    texts = ["", "Reduce", answer[:20], answer[:40], answer + " More.", answer]
    rewards = answer_reward([*texts, [{"role": "assistant", "content": answer}]], answer=[answer] * 7)
    assert rewards == [0.0, 0.5 * 2 / 40, 0.25, 0.5, 0.5, 1.0, 1.0]


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = write_tiny_chat(tmp_path_factory.mktemp("chat"))
    write_preferences(folder / "data", folder, rows=8, seed=0)
    return folder


def characters_reward(completions, **kwargs):
    """Of an untrained model's answers no two are alike, and none is right."""
    return [sum(map(ord, completion[0]["content"])) % 7 / 7 for completion in completions]


def run(script, chat, output, *options):
    data = "prompts" if script is grpo else "pairs"
    arguments = ["--model_name_or_path", str(chat / "model"), "--dataset_name", str(chat / data)]
    arguments += ["--output_dir", str(output), "--use_cpu", "--bf16", "false", "--report_to", "none"]
    arguments += ["--disable_tqdm", "true", "--logging_steps", "1", "--learning_rate", "1e-3", "--max_steps", "4"]
    if script is grpo:
        arguments += ["--num_generations", "2", "--max_completion_length", "6", "--per_device_train_batch_size", "4"]
        arguments += ["--reward_funcs", f"{__name__}.characters_reward", "--steps_per_generation", "1"]
    return script.main(*script.make_parser().parse_args_and_config([*arguments, *options]))


@pytest.mark.parametrize("script", [dpo, grpo], ids=["dpo", "grpo"])
def test_resuming_repeats_the_uninterrupted_run_bit_for_bit(script, chat, tmp_path):
    save = ("--save_strategy", "steps", "--save_steps", "2")
    whole = run(script, chat, tmp_path, *save)
    (tmp_path / "checkpoint-4").rename(tmp_path / "moved-away")
    resumed = run(script, chat, tmp_path, "--resume_from_checkpoint", "last", "--save_strategy", "no")
    expected = whole.model.state_dict()
    for name, weights in resumed.model.state_dict().items():
        assert torch.equal(weights, expected[name]), name
    before = LongCatLiteForCausalLM.from_pretrained(chat / "model").state_dict()
    experts = "model.layers.0.mlp.experts.down_proj"
    assert not torch.equal(expected[experts], before[experts])


def test_preferred_answers_become_likelier(chat, tmp_path):
    trainer = run(dpo, chat, tmp_path, "--save_strategy", "no", "--max_steps", "12")
    margins = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert margins[0] == pytest.approx(0, abs=1e-6) and margins[-1] > 0.01


@pytest.mark.parametrize("name", ["training.data.answer_reward.no_such", "no_such_package.reward", "no_such"])
def test_unknown_rewards_are_named(name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        grpo.reward_function(name)


def test_a_reward_of_trl_goes_by_its_name():
    assert grpo.reward_function("think_format_reward").__name__ == "think_format_reward"


def test_rows_without_preferences_are_named(chat, tmp_path):
    with pytest.raises(
        ValueError, match=r"`train` has the columns messages; training\.dpo reads `prompt` and `chosen`"
    ):
        run(dpo, chat, tmp_path, "--dataset_name", str(chat / "data"))
