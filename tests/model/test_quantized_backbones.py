# SPDX-License-Identifier: Apache-2.0
"""Backbones of few bits: FP8 as released is read exactly; no quantizer touches router, tables or `lm_head`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import bitsandbytes
import pytest
import torch
from conftest import CONFORMANCE, tiny_config
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.ngram_tables import PLACEMENTS

BLOCK = 16
IDS = torch.tensor([[5, 6, 7, 8, 9, 2, 11, 12]])
LEFT_ALONE = ("embed", "lm_head", "classifier", "post_proj")


def fp8_blocks(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 values and a scale for each block of 16 x 16, those at the edges cut short."""
    rows, columns = weight.shape
    values = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-rows // BLOCK), -(-columns // BLOCK))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            place = slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK)
            scales[i, j] = weight[place].float().abs().max().clamp_min(1e-12) / 448
            values[place] = (weight[place].float() / scales[i, j]).to(torch.float8_e4m3fn)
    return values, scales


def fp8_value(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    rows, columns = values.shape
    each = [[scales[i // BLOCK, j // BLOCK].item() for j in range(columns)] for i in range(rows)]
    return values.float() * torch.tensor(each)


@pytest.fixture(scope="module")
def fp8(tmp_path_factory) -> tuple[Path, LongCatLiteForCausalLM]:
    """A checkpoint in the released FP8 layout, and a bfloat16 model of the values in it."""
    folder = tmp_path_factory.mktemp("fp8")
    LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "released").save_pretrained(folder / "fp8")
    LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "released").save_pretrained(folder / "plain")
    stored, plain = {}, {}
    for name, tensor in load_file(folder / "plain" / "model.safetensors").items():
        if tensor.dim() == 2 and not any(part in name for part in LEFT_ALONE):
            stored[name], stored[f"{name}_scale_inv"] = fp8_blocks(tensor)
            plain[name] = fp8_value(stored[name], stored[f"{name}_scale_inv"]).to(torch.bfloat16)
        else:
            stored[name] = plain[name] = tensor
    assert any(tensor.shape[1] % BLOCK for name, tensor in stored.items() if f"{name}_scale_inv" in stored)
    save_file(stored, folder / "fp8" / "model.safetensors", metadata={"format": "pt"})
    save_file(plain, folder / "plain" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "fp8" / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "ignored_layers": ["lm_head", "model.embed_tokens", "model.layers.0.mlp.router.classifier"],
    }
    (folder / "fp8" / "config.json").write_text(json.dumps(config))
    return folder / "fp8", LongCatLiteForCausalLM.from_pretrained(folder / "plain", dtype=torch.bfloat16)


@pytest.mark.parametrize("placement", PLACEMENTS)
@torch.no_grad()
def test_fp8_as_released_is_dequantized_exactly(fp8, placement):
    folder, plain = fp8
    model = LongCatLiteForCausalLM.from_pretrained(folder, ngram_tables=placement)
    state = plain.state_dict()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, state[name]), name
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    drafted = model.generate(IDS, max_new_tokens=5, do_sample=False, use_mtp=True)
    assert torch.equal(drafted, plain.generate(IDS, max_new_tokens=5, do_sample=False))


@torch.no_grad()
def test_a_model_read_from_fp8_is_saved_as_any_other(fp8, tmp_path):
    folder, plain = fp8
    LongCatLiteForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    written, expected = (load_file(path / "model.safetensors") for path in (tmp_path, folder.parent / "plain"))
    assert written.keys() == expected.keys()
    assert torch.equal(LongCatLiteForCausalLM.from_pretrained(tmp_path)(IDS).logits, plain(IDS).logits)


def test_scales_of_other_blocks_are_refused(fp8, tmp_path):
    folder, _ = fp8
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [8, 8]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"_scale_inv` in .* has shape .* in blocks of \[8, 8\]"):
        LongCatLiteForCausalLM.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def blocks_of_64(tmp_path_factory) -> Path:
    """A checkpoint all of whose widths are multiples of 64, as 4-bit kernels want them."""
    folder = tmp_path_factory.mktemp("blocks_of_64")
    torch.manual_seed(0)
    config = tiny_config(
        hidden_size=192,
        ffn_hidden_size=128,
        expert_ffn_hidden_size=64,
        q_lora_rank=64,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=32,
        num_nextn_predict_layers=1,
    )
    LongCatLiteForCausalLM(config).save_pretrained(folder)
    return folder


def load_4bit(folder: Path, skipped: list[str] | None = None, **options) -> LongCatLiteForCausalLM:
    few_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=skipped
    )
    return LongCatLiteForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=few_bits, **options)


@pytest.mark.parametrize("placement", PLACEMENTS)
@torch.no_grad()
def test_bitsandbytes_in_4_bits(blocks_of_64, placement):
    plain = LongCatLiteForCausalLM.from_pretrained(blocks_of_64, dtype=torch.float32)
    model = load_4bit(blocks_of_64, ngram_tables=placement)
    packed = {name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    assert {name.split(".")[-1] for name in packed} >= {"q_b_proj", "kv_b_proj", "o_proj", "up_proj", "post_proj"}
    state = plain.state_dict()
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        if module in packed:
            values = bitsandbytes.functional.dequantize_4bit(parameter.data, parameter.quant_state)
            state[name].copy_(values)
        else:  # router, tables, lm_head, experts among them
            assert torch.equal(parameter, state[name]), name
    # The kernels of a CPU compute in bfloat16.
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, atol=0.03, rtol=0)
    options = {"max_new_tokens": 6, "do_sample": False}
    tokens = model.generate(IDS, **options)
    assert torch.equal(tokens, model.generate(IDS, use_cache=False, **options))
    assert torch.equal(tokens, model.generate(IDS, use_mtp=True, **options))


def test_modules_to_not_convert_are_not_converted(blocks_of_64):
    model = load_4bit(blocks_of_64, skipped=["lm_head", "kv_b_proj", "model.ngram_embeddings"])
    for name, module in model.named_modules():
        if name.endswith(("lm_head", "kv_b_proj", "post_proj", "classifier")):
            assert not isinstance(module, bitsandbytes.nn.Linear4bit), name


TORCHAO = Path(sys.prefix) / "torchao"  # where `make install` puts it: every process that can import it is slower
WITH_TORCHAO = """
import sys
import torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import TorchAoConfig
from modeling_longcat_lite import LongCatLiteForCausalLM

ids = torch.tensor([[5, 6, 7, 8, 9, 2, 11, 12]])
for skipped in (None, ["lm_head", "kv_b_proj.weight"]):
    plain = LongCatLiteForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    state = plain.state_dict()
    few_bits = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped)
    model = LongCatLiteForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, quantization_config=few_bits)
    packed = {name for name, value in model.named_parameters() if type(value.data) is not torch.Tensor}
    assert any("q_b_proj" in name for name in packed)
    assert any("kv_b_proj" in name for name in packed) == (skipped is None)
    for name, value in model.named_parameters():
        kept = any(part in name for part in ("classifier", "embedders", "lm_head", "experts"))
        assert not (kept and name in packed), name
        if name in packed:
            state[name].copy_(value.dequantize())
        else:
            assert torch.equal(value, state[name]), name
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-4, rtol=0)
        tokens = model.generate(ids, max_new_tokens=6, do_sample=False)
        assert torch.equal(tokens, model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False))

from torchao.quantization import FqnToConfig
stacked = FqnToConfig({r"re:.*experts.(gate_up_proj|down_proj)": Int8WeightOnlyConfig()})
plain = LongCatLiteForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
few_bits = TorchAoConfig(stacked)
model = LongCatLiteForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, quantization_config=few_bits)
state = plain.state_dict()
packed = [(name, value) for name, value in model.named_parameters() if type(value.data) is not torch.Tensor]
assert len(packed) == 2 * model.config.num_layers, packed
for name, value in packed:
    state[name].copy_(value.dequantize())
for implementation in ("eager", "grouped_mm", "batched_mm"):
    model.set_experts_implementation(implementation)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-4, rtol=0)
print("equal")
"""


@pytest.mark.skipif(not TORCHAO.exists(), reason="torchao is not where `make install` puts it")
def test_torchao_in_8_bits(blocks_of_64):
    paths = [str(TORCHAO), str(Path(__file__).parents[2])]
    result = subprocess.run(
        [sys.executable, "-c", WITH_TORCHAO, str(blocks_of_64)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and result.stdout.strip().endswith("equal"), result.stderr[-3000:]
