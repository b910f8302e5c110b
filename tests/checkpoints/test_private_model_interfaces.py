# SPDX-License-Identifier: Apache-2.0
"""Private names of transformers, PEFT and torch that the package uses: an upgrade that changes one fails here by name.

CONTRIBUTING.md says what each is for. A private name that the package uses and the lists below lack fails too.
"""

import ast
import inspect
from pathlib import Path

import pytest
import torch
import transformers
from conftest import randomize, tiny_config
from peft import LoraConfig, PeftModel, get_peft_model
from peft import auto as peft_auto
from peft import peft_model as peft_models
from safetensors import safe_open
from torch import nn
from torch.nn.modules import module as torch_modules
from transformers import GenerationMixin, PreTrainedModel, modeling_utils
from transformers.core_model_loading import WeightConverter
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.adapter_rows import AdapterRowsMixin, adapter_that_peft_loads
from modeling_longcat_lite.checkpoint_files import SAVE_ID

PACKAGE = Path(__file__).parents[2] / "modeling_longcat_lite"

# Methods that are overridden or called: the parameters that the package relies on, in order.
METHODS = {
    (PreTrainedModel, "_load_pretrained_model"): ["model", "state_dict", "checkpoint_files", "load_config"],
    (PreTrainedModel, "_upload_modified_files"): ["self", "working_dir", "repo_id", "files_timestamps"],
    (PreTrainedModel, "_init_weights"): ["self", "module"],
    (PreTrainedModel, "_resize_token_embeddings"): ["self", "new_num_tokens", "pad_to_multiple_of", "mean_resizing"],
    (PreTrainedModel, "_get_resized_embeddings"): ["self", "old_embeddings", "new_num_tokens"],
    (PreTrainedModel, "_can_set_experts_implementation"): [],
    (GenerationMixin, "_prepare_model_inputs"): ["self", "inputs", "bos_token_id", "model_kwargs"],
    (GenerationMixin, "_validate_generation_mode"): ["self", "generation_mode", "generation_config"],
    (GenerationMixin, "_prepare_cache_for_generation"): ["self", "generation_config", "model_kwargs"],
    (GenerationMixin, "_update_model_kwargs_for_generation"): ["self", "outputs", "model_kwargs"],
    (GenerationMixin, "_get_candidate_generator"): ["self", "generation_config"],
    (Fp8Dequantize, "_dequantize_one"): ["self", "quantized", "scales", "output_dtype"],
    (nn.Module, "_save_to_state_dict"): ["self", "destination", "prefix", "keep_vars"],
    (nn.Module, "_load_from_state_dict"): ["self", "state_dict", "prefix"],
    (torch._dynamo, "mark_static_address"): ["t"],
    (torch.utils._pytree, "register_pytree_node"): ["cls", "flatten_fn", "unflatten_fn"],
    (torch.utils._python_dispatch, "is_traceable_wrapper_subclass"): ["t"],
}
# What transformers reads from a model's class.
CLASS_ATTRIBUTES = (
    "_can_compile_fullgraph",
    "_can_record_outputs",
    "_fsdp_plan",
    "_keep_in_fp32_modules",
    "_keep_in_fp32_modules_strict",
    "_keys_to_ignore_on_load_missing",
    "_keys_to_ignore_on_load_unexpected",
    "_no_split_modules",
    "_skip_keys_device_placement",
    "_supports_attention_backend",
    "_supports_flash_attn",
    "_supports_flex_attn",
    "_supports_sdpa",
    "_tied_weights_keys",
    "_tp_plan",
)
# Attributes of objects; each has a test of its own below.
ATTRIBUTES = {
    "_attn_implementation",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_experts_implementation",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_getframe",
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_is_expert_parallel",
    "_modules",
    "_weight_conversions",
}
# Of the standard library, where the underscore is part of a public name.
PUBLIC = {"_asdict", "_fields", "_replace"}
MODULES = {"_dynamo", "_pytree", "_python_dispatch"}


@pytest.mark.parametrize(("owner", "name"), METHODS, ids=lambda value: getattr(value, "__name__", value))
def test_a_method_has_the_parameters_that_are_relied_on(owner, name):
    found = list(inspect.signature(getattr(owner, name)).parameters)
    assert [parameter for parameter in METHODS[owner, name] if parameter not in found] == []


@pytest.mark.parametrize("name", CLASS_ATTRIBUTES)
def test_transformers_reads_the_attribute_of_a_model_class(name):
    folder = Path(transformers.__file__).parent
    files = ["modeling_utils.py", *(str(path.relative_to(folder)) for path in folder.glob("utils/*.py"))]
    files += ["generation/utils.py", "integrations/accelerate.py", "distributed/fsdp.py"]
    texts = [(folder / file).read_text(encoding="utf-8") for file in files if (folder / file).exists()]
    assert any(name in text for text in texts)


def used_names() -> dict[str, str]:
    """Private names that the package reads, sets or overrides and does not define itself, with a file."""
    used, defined = {}, set()
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                used[node.attr] = path.name
                if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
                    defined.add(node.attr)
            elif isinstance(node, ast.FunctionDef):
                defined.add(node.name)
            elif isinstance(node, ast.ClassDef):
                targets = [target for item in node.body if isinstance(item, ast.Assign) for target in item.targets]
                used |= {name.id: path.name for name in targets if isinstance(name, ast.Name)}
                names = [t for item in node.body if isinstance(item, ast.AnnAssign) for t in [item.target]]
                defined |= {name.id for name in names if isinstance(name, ast.Name)}
            elif isinstance(node, ast.keyword) and node.arg:
                used[node.arg] = path.name
    theirs = {name for _, name in METHODS}
    is_private = lambda name: name.startswith("_") and not name.startswith("__")  # noqa: E731
    return {name: file for name, file in used.items() if is_private(name) and name not in defined - theirs}


def test_every_private_name_is_listed():
    listed = {name for _, name in METHODS} | {*CLASS_ATTRIBUTES} | ATTRIBUTES | PUBLIC | MODULES
    assert {name: file for name, file in used_names().items() if name not in listed} == {}


def test_a_listed_name_is_still_used():
    texts = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py"))
    assert [
        name for name in (*(name for _, name in METHODS), *CLASS_ATTRIBUTES, *ATTRIBUTES) if name not in texts
    ] == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    randomize(LongCatLiteForCausalLM(tiny_config())).save_pretrained(folder, max_shard_size="100KB")
    return folder


def test_weight_conversions(saved, tmp_path):
    """`model._weight_conversions`: set by loading, read by saving; without it, saving takes the registered ones."""

    def names(folder: Path, conversions: list | None) -> set[str]:
        model = LongCatLiteForCausalLM.from_pretrained(saved)
        assert any(isinstance(one, WeightConverter) for one in model._weight_conversions)
        del model._weight_conversions
        if conversions is not None:
            model._weight_conversions = conversions
        model.save_pretrained(folder)
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            return set(file.keys())

    released = {name for shard in saved.glob("*.safetensors") for name in safe_open(shard, framework="pt").keys()}  # noqa: SIM118
    assert names(tmp_path / "registered", None) == released
    assert "model.layers.0.mlp.experts.gate_up_proj" in names(tmp_path / "none", [])


def test_fp8_dequantize():
    """`Fp8Dequantize` in `WeightConverter.operations`, a list that is changed in place; it keeps `hf_quantizer`."""
    operation = Fp8Dequantize("quantizer")
    assert operation.hf_quantizer == "quantizer"
    converter = WeightConverter(["a.*.weight"], "a", operations=[operation])
    assert isinstance(converter.operations, list) and converter.operations[0] is operation


def test_safe_save_file(saved):
    """`modeling_utils.safe_save_file`: what every shard is written with, so that it gets the id of its save."""
    assert "safe_save_file" in vars(modeling_utils)
    shards = sorted(saved.glob("*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            assert file.metadata()[SAVE_ID]


def test_load_pretrained_model(saved, monkeypatch):
    """`_load_pretrained_model`: called once, with the files, before a weight is read."""
    calls = []
    original = PreTrainedModel._load_pretrained_model

    def spy(model, state_dict, checkpoint_files, load_config, expected_keys=None):
        calls.append((checkpoint_files, load_config.weight_mapping, load_config.sharded_metadata))
        assert load_config.hf_quantizer is None and load_config.ignore_mismatched_sizes is False
        return original(model, state_dict, checkpoint_files, load_config, expected_keys)

    monkeypatch.setattr(PreTrainedModel, "_load_pretrained_model", staticmethod(spy))
    LongCatLiteForCausalLM.from_pretrained(saved)
    ((files, conversions, metadata),) = calls
    assert sorted(map(Path, files)) == sorted(saved.glob("*.safetensors"))
    assert any(isinstance(one, WeightConverter) for one in conversions) and metadata["weight_map"]


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
@torch.no_grad()
def test_is_expert_parallel(implementation):
    """`_is_expert_parallel`: makes these implementations leave out the id above the last expert."""
    assert implementation in ALL_EXPERTS_FUNCTIONS
    model = randomize(LongCatLiteForCausalLM(tiny_config(expert_ffn_hidden_size=16)))
    experts = model.model.layers[0].mlp.experts
    states, ids = torch.randn(5, 48), torch.tensor([[0, 6, 6], [6, 6, 6], [1, 2, 6], [3, 4, 5], [6, 0, 6]])
    weights = torch.rand(5, 3).masked_fill(ids == experts.num_experts, 0.0)
    found = []
    for name in ("eager", implementation):
        model.set_experts_implementation(name)
        assert model.config._experts_implementation == name
        found.append(experts(states, ids, weights))
    assert found[1].isfinite().all()
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


def test_attn_implementation():
    """`config._attn_implementation` follows `set_attn_implementation`."""
    model = LongCatLiteForCausalLM(tiny_config())
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert model.config._attn_implementation == name


@pytest.mark.parametrize(
    ("register", "attribute"),
    [
        ("register_forward_hook", "_forward_hooks"),
        ("register_forward_pre_hook", "_forward_pre_hooks"),
        ("register_full_backward_hook", "_backward_hooks"),
        ("register_full_backward_pre_hook", "_backward_pre_hooks"),
    ],
)
def test_hooks_of_a_module(register, attribute):
    layer = nn.Linear(2, 2)
    assert not getattr(layer, attribute)
    getattr(layer, register)(lambda *_: None)
    assert getattr(layer, attribute)
    assert list(nn.Sequential(layer)._modules.values()) == [layer]


@pytest.mark.parametrize(
    ("register", "attribute"),
    [
        ("register_module_forward_hook", "_global_forward_hooks"),
        ("register_module_forward_pre_hook", "_global_forward_pre_hooks"),
    ],
)
def test_hooks_of_all_modules(register, attribute):
    handle = getattr(torch_modules, register)(lambda *_: None)
    try:
        assert getattr(torch_modules, attribute)
    finally:
        handle.remove()
    assert not getattr(torch_modules, attribute)


def test_the_frame_of_peft(tmp_path, monkeypatch):
    """`peft.peft_model.PeftModel.from_pretrained(model, model_id)`, its local names, and `peft_config` being set."""
    assert PeftModel.from_pretrained.__module__ == peft_models.__name__ == "peft.peft_model"
    assert peft_auto._BaseAutoPeftModel.from_pretrained.__module__ == "peft.auto"
    config = LoraConfig(r=2, target_modules=["o_proj"], task_type="CAUSAL_LM")
    get_peft_model(LongCatLiteForCausalLM(tiny_config()), config).save_pretrained(tmp_path / "adapter")
    seen = []
    monkeypatch.setattr(AdapterRowsMixin, "_rows_for_peft", lambda self: seen.append(adapter_that_peft_loads()))
    PeftModel.from_pretrained(LongCatLiteForCausalLM(tiny_config()), tmp_path / "adapter", subfolder="")
    ((folder, arguments, is_whole),) = seen
    assert (folder, arguments["subfolder"], is_whole) == (tmp_path / "adapter", "", False)
