# SPDX-License-Identifier: Apache-2.0
"""Routers under control while TRL trains: the target is reached and kept, alike on all ranks; mistakes are named."""

import json
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import randomize, tiny_config
from datasets import Dataset
from peft import LoraConfig, PeftModel
from tiny_chat import chat_rows, write_tiny_chat
from transformers import HfArgumentParser, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig

from modeling_longcat_lite import LongCatLiteForCausalLM
from training.routers.arguments import RouterArguments
from training.routers.control import SelectionBiasCallback, bias_steps, with_router_control
from training.routers.counts import ExpertCounts
from training.run.draft_loss import DraftHeadTrainer
from training.run.trainers import ResumableSFTTrainer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("chat"))


def make_trainer(chat: Path, output: Path, router_args: RouterArguments, trainer_class=ResumableSFTTrainer, **options):
    peft_config = options.pop("peft_config", None)
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "max_length": 64, "packing": True, **options}
    args = SFTConfig(
        output_dir=str(output),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        lr_scheduler_type="constant",
        chat_template_path=str(ROOT / "tokenization/chat_template_training.jinja"),
        **{
            "logging_steps": 1,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "activation_checkpointing": False,
            **settings,
        },
    )
    return with_router_control(trainer_class, router_args)(
        model=str(chat / "model"),
        args=args,
        train_dataset=Dataset.from_list(chat_rows(32)),
        peft_config=peft_config,
    )


def train(*args, **options):
    trainer = make_trainer(*args, **options)
    trainer.train(resume_from_checkpoint=options.get("resume_from_checkpoint"))
    return trainer


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def biases(model) -> list[list[float]]:
    return [bias.tolist() for name, bias in model.named_buffers() if name.endswith("e_score_correction_bias")]


def test_bias_steps_equal_a_loop():
    selected, tokens = torch.tensor([[3, 0, 5], [1, 1, 2]]), torch.tensor([8, 4])
    steps = bias_steps(selected, tokens, top_k=2, target_experts=1.5)
    for layer in range(2):
        for expert in range(3):
            wanted = 1.5 / 2 / 3 - int(selected[layer, expert]) / (2 * int(tokens[layer]))
            assert steps[layer, expert].item() == pytest.approx(wanted)


@pytest.mark.parametrize(("schedule", "rates"), [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25])])
def test_the_callback_moves_the_biases_of_routed_experts_alone(schedule, rates):
    torch.manual_seed(0)
    model: LongCatLiteForCausalLM = randomize(LongCatLiteForCausalLM(tiny_config())).train()
    callback = SelectionBiasCallback(model, ExpertCounts(model), 1e-5, 1.2, schedule)
    ids, before = torch.randint(4, 64, (2, 20)), torch.tensor(biases(model)).double()
    logits = model.model(ids, output_router_logits=True).router_logits
    callback.counts.begin_step()
    for step, rate in enumerate(rates):
        model(ids)
        state = TrainerState(global_step=step + 1, max_steps=4)
        callback.on_step_end(TrainingArguments("."), state, TrainerControl())
        after = torch.tensor(biases(model)).double()
        for layer in range(2):
            chosen = (logits[layer].softmax(-1) + before[layer].float()).topk(3).indices.flatten().tolist()
            for expert in range(9):
                delta = 1e-5 * rate * (1.2 / 3 / 6 - chosen.count(expert) / (3 * 40)) if expert < 6 else 0.0
                assert (after - before)[layer, expert].item() == pytest.approx(delta, abs=1e-8)
        before = after


@pytest.mark.parametrize("target", [1.2, pytest.param(2.4, marks=pytest.mark.slow)])
def test_the_target_is_reached_and_kept(chat, tmp_path, target):
    arguments = RouterArguments(router_bias_rate=0.5, target_experts=target)
    trainer = train(chat, tmp_path, arguments, max_steps=120, logging_steps=20)
    means = logged(trainer, "experts/mean")
    print(f"target {target}: {means}, std {logged(trainer, 'experts/std')[-1]:.2f}")
    assert means[-3:] == pytest.approx([target] * 3, rel=0.05)
    for layer in range(2):
        assert logged(trainer, f"experts/layer_{layer}")[-1] == pytest.approx(target, rel=0.05)
    assert all(bias[6:] == [0.0] * 3 for bias in biases(trainer.model))
    free = train(chat, tmp_path, RouterArguments(), max_steps=20, logging_steps=20)
    assert abs(logged(free, "experts/mean")[-1] - target) > 0.1 * target
    assert biases(free.model) == [[0.0] * 9] * 2


def test_accumulation_and_checkpointing_move_the_biases_as_one_batch(chat, tmp_path):
    arguments, options = RouterArguments(router_bias_rate=0.1), {"max_steps": 1, "packing": False}
    whole = train(chat, tmp_path, arguments, **options)
    parts = train(
        chat,
        tmp_path,
        arguments,
        **{**options, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        activation_checkpointing=True,
    )
    assert biases(parts.model) == biases(whole.model) and any(biases(whole.model)[0])


def test_resuming_repeats_the_uninterrupted_run(chat, tmp_path):
    arguments = RouterArguments(router_bias_rate=0.1, router_bias_schedule="linear", balance_loss_weight=1e-3)
    whole = train(chat, tmp_path, arguments, save_strategy="steps", save_steps=2)
    saved = LongCatLiteForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    assert biases(saved) == biases(whole.model)
    resumed = train(chat, tmp_path, arguments, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weights), name


RANKS = """
import json, sys
from pathlib import Path
from test_router_control import RouterArguments, biases, logged, train
import torch

chat, output = map(Path, sys.argv[1:])
# Without this the buffers of the first rank would be handed to the other.
options = {"ddp_broadcast_buffers": False, "max_steps": 3, "per_device_train_batch_size": 2}
trainer = train(chat, output, RouterArguments(0.1, target_experts=1.2, balance_loss_weight=1e-3), **options)
assert torch.distributed.get_world_size() == 2
weights = [parameter.double().sum().item() for parameter in trainer.model.parameters()]
results = {"biases": biases(trainer.model), "means": logged(trainer, "experts/mean"), "weights": weights}
(output / f"rank-{trainer.accelerator.process_index}.json").write_text(json.dumps(results))
"""


@pytest.mark.slow
def test_two_ranks_keep_the_same_biases(chat, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*command, str(tmp_path / "ranks.py"), str(chat), str(tmp_path)],
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent))),
            "OMP_NUM_THREADS": "1",
        },
    )
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == {**second, "means": first["means"]}
    assert any(first["biases"][0])
    # One process with the same batches counts the same tokens.
    arguments = RouterArguments(0.1, target_experts=1.2, balance_loss_weight=1e-3)
    alone = logged(train(chat, tmp_path, arguments, max_steps=3), "experts/mean")
    assert first["means"][0] == alone[0] and first["means"] == pytest.approx(alone, rel=0.02)


def test_the_balance_loss_evens_the_load_with_a_small_share_of_the_gradient(chat, tmp_path):
    # An untrained model's own loss has hardly a gradient at the routers, so the loss joins a little later.
    options = {"max_steps": 60, "logging_steps": 20}
    train(chat, tmp_path / "begun" / "model", RouterArguments(), **options).save_model()
    free = train(tmp_path / "begun", tmp_path / "free", RouterArguments(), **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*balance_gradient_share")
        even = train(tmp_path / "begun", tmp_path / "even", RouterArguments(balance_loss_weight=2e-3), **options)
    spreads = [logged(trainer, "experts/load_spread")[-1] for trainer in (free, even)]
    shares = logged(even, "balance_gradient_share")
    print(f"load spread {spreads[0]:.3f} without, {spreads[1]:.3f} with the loss; gradient share {shares}")
    assert spreads[1] < 0.9 * spreads[0]
    assert len(shares) == 3 and 0 < min(shares) <= max(shares) < 0.1
    assert not logged(free, "balance_loss") and logged(even, "balance_loss")[-1] < logged(even, "balance_loss")[0]


def test_a_large_weight_is_warned_of(chat, tmp_path):
    with pytest.warns(UserWarning, match="lower `balance_loss_weight`"):
        train(chat, tmp_path, RouterArguments(balance_loss_weight=10.0), max_steps=1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_measuring_the_gradient_share_changes_nothing(chat, tmp_path, checkpointing):
    runs = [
        train(
            chat,
            tmp_path,
            RouterArguments(balance_loss_weight=0.01),
            logging_steps=steps,
            activation_checkpointing=checkpointing,
        )
        for steps in (1, 4)
    ]
    assert [len(logged(run, "balance_gradient_share")) for run in runs] == [4, 1]
    for name, weights in runs[0].model.state_dict().items():
        assert torch.equal(runs[1].model.state_dict()[name], weights), name


def test_selective_checkpointing_trains_alike_without_the_measurement(chat, tmp_path):
    arguments = RouterArguments(router_bias_rate=0.1, balance_loss_weight=0.01)
    plain = train(chat, tmp_path, arguments, max_steps=2)
    options = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"selective": True}}
    selective = train(chat, tmp_path, arguments, max_steps=2, **options)
    assert logged(selective, "experts/mean") == logged(plain, "experts/mean")
    assert logged(selective, "balance_loss") == pytest.approx(logged(plain, "balance_loss"))
    assert not logged(selective, "balance_gradient_share")


def test_it_joins_with_the_draft_head(chat, tmp_path):
    arguments = RouterArguments(router_bias_rate=0.1, balance_loss_weight=0.01)
    trainer = train(chat, tmp_path, arguments, partial(DraftHeadTrainer, draft_loss_weight=0.5), max_steps=1)
    last = trainer.state.log_history[0]
    assert {"draft_loss", "balance_loss", "balance_gradient_share", "experts/mean", "activated_parameters"} <= set(
        last
    )
    with pytest.raises(ValueError, match=r"`router_bias_rate`.*frozen"):
        draft_only = partial(DraftHeadTrainer, draft_loss_weight=0.5, draft_head_only=True)
        make_trainer(chat, tmp_path, arguments, draft_only)


def test_an_adapter_must_carry_the_routers(chat, tmp_path):
    arguments = RouterArguments(router_bias_rate=0.1, balance_loss_weight=0.01)
    with pytest.raises(ValueError, match=r"`router_bias_rate`.*PEFT.*lora_modules_to_save"):
        make_trainer(chat, tmp_path, arguments, peft_config=LoraConfig(target_modules=["o_proj"]))
    carried = LoraConfig(target_modules=["o_proj"], modules_to_save=["router"])
    trainer = train(chat, tmp_path, arguments, peft_config=carried)
    trainer.save_model(str(tmp_path / "adapter"))
    base = LongCatLiteForCausalLM.from_pretrained(chat / "model")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    trained = [layer.mlp.router.e_score_correction_bias for layer in trainer.model.get_base_model().model.layers]
    assert biases(loaded) == [bias.tolist() for bias in trained]
    assert any(biases(loaded)[0])
    only_loss = RouterArguments(balance_loss_weight=0.01)
    trainer = train(chat, tmp_path, only_loss, max_steps=1, peft_config=LoraConfig(target_modules=["o_proj"]))
    assert logged(trainer, "balance_gradient_share")[0] > 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"target_experts": 3.0}, "`target_experts`.*`moe_topk` = 3"),
        ({"target_experts": 0.0}, "`target_experts`"),
        ({"balance_groups": 4}, "`balance_groups` is 4.*`n_routed_experts` = 6"),
        ({"router_bias_rate": -1.0}, "`router_bias_rate`"),
    ],
)
def test_mistaken_arguments_are_named(chat, tmp_path, arguments, problem):
    with pytest.raises(ValueError, match=problem):
        make_trainer(chat, tmp_path, RouterArguments(**arguments))


def test_reentrant_checkpointing_cannot_carry_the_loss(chat, tmp_path):
    options = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match="use_reentrant"):
        train(chat, tmp_path, RouterArguments(balance_loss_weight=0.01), **options)


def test_rounded_biases_are_refused(chat, tmp_path):
    trainer = make_trainer(chat, tmp_path, RouterArguments(router_bias_rate=0.1))
    trainer.model.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"`router_bias_rate`.*float32"):
        trainer.train()


def test_the_arguments_have_a_command_line():
    options = ["--router_bias_rate", "1e-3", "--router_bias_schedule", "linear", "--target_experts", "8"]
    (parsed,) = HfArgumentParser(RouterArguments).parse_args_into_dataclasses([*options, "--balance_groups", "32"])
    assert parsed == RouterArguments(1e-3, "linear", 8.0, 0.0, 32)
    released = RouterArguments().target_for(LongCatLiteForCausalLM.config_class())
    assert released == 8
