# SPDX-License-Identifier: Apache-2.0
"""Private names of other libraries that training/ uses, one test each: an upgrade that changes one fails by its name.

CONTRIBUTING.md lists them, with the reason for each.
"""

import inspect
import pydoc_data.topics
from concurrent.futures import Future

import pytest
import torch
import transformers
import trl.chat_template_utils
import trl.scripts.grpo
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from test_sft import run
from tiny_chat import write_tiny_chat
from transformers import Trainer
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.transformers import app
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import PushInProgress
from trl import SFTTrainer

from modeling_longcat_lite import LongCatLiteForCausalLM
from training import serve

# Methods of the Trainer that classes of training/ override, and their arguments.
OVERRIDDEN = {
    "_clip_grad_norm": ["model"],
    "_get_grad_norm": ["model", "grad_norm"],
    "_load_best_model": [],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_prepare_context_parallel_inputs": ["model", "inputs"],
    "_push_from_checkpoint": ["checkpoint_folder"],
}


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("chat"))


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_trainer_still_calls_what_is_overridden(name):
    # Of the class that is overridden: TRL's own override would have to be looked at.
    assert list(inspect.signature(vars(Trainer)[name]).parameters)[1:] == OVERRIDDEN[name]
    assert name not in vars(SFTTrainer)
    assert f"self.{name}(" in inspect.getsource(Trainer)


def test_trainer_save_model_internal_call():
    assert list(inspect.signature(Trainer.save_model).parameters)[1:] == ["output_dir", "_internal_call"]
    assert "save_model(output_dir, _internal_call=True)" in inspect.getsource(vars(Trainer)["_save_checkpoint"])
    assert "save_model" not in vars(SFTTrainer)


def test_trainer_push_in_progress():
    assert "self.push_in_progress" in inspect.getsource(Trainer)
    job = Future()
    push = PushInProgress([job])
    assert not push.is_done()
    job.set_result(None)
    push.wait_until_done()
    assert push.is_done()


def test_trainer_state_is_written_last(chat, tmp_path):
    run(chat, tmp_path, "--save_strategy", "steps", "--save_steps", "4")
    checkpoint = tmp_path / f"{PREFIX_CHECKPOINT_DIR}-4"
    times = {path.name: path.stat().st_mtime_ns for path in checkpoint.iterdir()}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt"} <= times.keys()
    assert times[TRAINER_STATE_NAME] == max(times.values())


def test_sft_trainer_total_train_tokens_and_metrics(chat, tmp_path):
    trainer = run(chat, tmp_path)
    assert trainer._total_train_tokens > 0
    source = inspect.getsource(SFTTrainer.compute_loss)
    assert 'self._metrics[mode]["num_tokens"] = [self._total_train_tokens]' in source


def test_trl_grpo_script_arguments():
    assert {"reward_funcs", "reward_model_name_or_path"} <= trl.scripts.grpo.GRPOScriptArguments.__annotations__.keys()


def test_trl_has_generation_markers():
    assert trl.chat_template_utils.has_generation_markers("{% generation %}a{% endgeneration %}")
    assert not trl.chat_template_utils.has_generation_markers("{{ messages }}")


def test_accelerator_state_fsdp_plugin():
    assert "self.fsdp_plugin = " in inspect.getsource(AcceleratorState)
    assert "ignored_modules" in FullyShardedDataParallelPlugin.__dataclass_fields__


def test_optimizer_step_supports_amp_scaling():
    assert '"_step_supports_amp_scaling"' in inspect.getsource(torch.amp.GradScaler.step)
    fused = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], fused=True)
    assert fused._step_supports_amp_scaling is True


def test_tensor_indices_and_values():
    gradient = torch.sparse_coo_tensor([[1, 1]], [[1.0], [2.0]], (3, 1))
    assert gradient._indices().tolist() == [[1, 1]] and gradient._values().tolist() == [[1.0], [2.0]]
    with pytest.raises(RuntimeError, match="uncoalesced"):  # which is why the public ones cannot be used
        gradient.indices()


def test_serve_looks_for_classes_in_transformers(chat, monkeypatch):
    for name in serve.ARCHITECTURES:
        monkeypatch.setattr(transformers, name, None, raising=False)  # taken away again at the end
    serve.add_class()
    model = ModelManager(device="cpu")._load_model(f"{chat / 'model'}@main")
    assert type(model) is LongCatLiteForCausalLM
    assert "serve" in app.commands


def test_pydoc_data_topics():
    assert len(pydoc_data.topics.topics) > 50 and all(
        isinstance(text, str) for text in pydoc_data.topics.topics.values()
    )
