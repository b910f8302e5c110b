# SPDX-License-Identifier: Apache-2.0
"""Tables of 8 and 4 bits: each row within half a step of what it was, and the same in every placement."""

import copy
import json
import shutil

import pytest
import torch
from conftest import CONFORMANCE, tiny_config
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.ngram_quantization import dequantize_rows, quantize_rows, row_format
from modeling_longcat_lite.ngram_tables import PLACEMENTS

bits_of_rows = pytest.mark.parametrize("bits", [8, 4])
placement = pytest.mark.parametrize("placement", PLACEMENTS)
LARGEST = {8: 127, 4: 7}


@pytest.mark.parametrize(("bits", "stored"), [(8, [76, 129, 32, 0]), (4, [0x1C, 0x8A])], ids=["8 bits", "4 bits"])
def test_the_example_of_the_docstring(bits, stored):
    packed = quantize_rows(torch.tensor([[0.6, -1.0, 0.25, 0.0]]), bits)
    assert packed[0, 4:].tolist() == stored
    assert packed[0, :4].view(torch.float32).item() == torch.tensor(1 / LARGEST[bits]).item()


@given(
    st.integers(1, 6),
    st.integers(1, 8),
    st.sampled_from([8, 4]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.floats(-6, 3),
    st.integers(0, 1000),
)
def test_every_value_comes_back_within_half_a_step(rows, pairs, bits, dtype, magnitude, seed):
    torch.manual_seed(seed)
    values = (torch.randn(rows, 2 * pairs) * 10**magnitude).to(dtype)
    packed = quantize_rows(values, bits)
    assert packed.shape == (rows, row_format(bits).columns(2 * pairs))
    steps = values.float().abs().amax(1, keepdim=True) / LARGEST[bits]
    error = (dequantize_rows(packed, bits, torch.float32) - values.float()).abs()
    assert (error <= steps * 0.5001).all()
    # What has been rounded once stays as it is.
    again = quantize_rows(dequantize_rows(packed, bits, torch.float32), bits)
    torch.testing.assert_close(
        dequantize_rows(again, bits, torch.float32), dequantize_rows(packed, bits, torch.float32), rtol=1e-6, atol=0
    )


@bits_of_rows
def test_zeros_stay_zeros(bits):
    assert dequantize_rows(quantize_rows(torch.zeros(2, 8), bits), bits, torch.float32).eq(0).all()


@bits_of_rows
def test_a_row_that_is_not_finite_is_named(bits):
    rows = torch.zeros(4, 8)
    rows[2, 3] = torch.nan
    with pytest.raises(ValueError, match="Row 2 holds a value that is not finite"):
        quantize_rows(rows, bits)


def test_other_bits_are_refused():
    with pytest.raises(ValueError, match="`bits` must be 8 or 4, got 2"):
        quantize_rows(torch.zeros(1, 8), 2)
    with pytest.raises(ValueError, match="`ngram_table_bits`"):
        tiny_config(ngram_table_bits=3)


def few_bit_checkpoint(case: str, bits: int, folder) -> dict[str, torch.Tensor]:
    """The case with packed tables in `folder`; returns the tables as they come back, under released names."""
    shutil.copytree(CONFORMANCE / case, folder, dirs_exist_ok=True)
    tables = {}
    for path in folder.glob("model*.safetensors"):
        tensors = load_file(path)
        for name in [name for name in tensors if ".embedders." in name]:
            table = tensors.pop(name)
            packed = quantize_rows(table, bits)
            tensors[name.replace(".weight", ".packed")] = packed
            tables[name] = dequantize_rows(packed, bits, torch.float32)
        save_file(tensors, path, metadata={"format": "pt"})
    for path in folder.glob("*.index.json"):
        index = json.loads(path.read_text())
        places = index["weight_map"].items()
        index["weight_map"] = {n.replace(".weight", ".packed") if n in tables else n: file for n, file in places}
        path.write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"ngram_table_bits": bits}))
    return tables


def reference(case: str, tables: dict[str, torch.Tensor]) -> LongCatLiteForCausalLM:
    """A model in full precision whose tables hold the values that few bits can hold."""
    model = LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / case, dtype=torch.float32)
    with torch.no_grad():
        for name, table in tables.items():
            model.get_parameter(name).copy_(table)
    return model


@bits_of_rows
@placement
@pytest.mark.parametrize("case", ["base", "released", "fractional"])
@torch.no_grad()
def test_logits_are_those_of_the_rounded_tables(bits, placement, case, tmp_path):
    tables = few_bit_checkpoint(case, bits, tmp_path)
    ids = load_file(CONFORMANCE / case / "golden.safetensors")["input_ids"]
    model = LongCatLiteForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, ngram_tables=placement)
    expected = reference(case, tables)
    torch.testing.assert_close(model(ids).logits, expected(ids).logits, atol=1e-5, rtol=0)
    generated = model.generate(ids[:, :8], attention_mask=None, max_new_tokens=6, do_sample=False)
    assert torch.equal(generated, expected.generate(ids[:, :8], max_new_tokens=6, do_sample=False))


@bits_of_rows
@placement
@torch.no_grad()
def test_saving_copying_and_casting(bits, placement, tmp_path):
    few_bit_checkpoint("base", bits, tmp_path / "few")
    ids = load_file(CONFORMANCE / "base" / "golden.safetensors")["input_ids"]
    model = LongCatLiteForCausalLM.from_pretrained(tmp_path / "few", dtype=torch.float32, ngram_tables=placement)
    expected = model(ids).logits
    assert torch.equal(copy.deepcopy(model)(ids).logits, expected)
    model.save_pretrained(tmp_path / "saved")
    again = LongCatLiteForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32, ngram_tables=placement)
    assert again.config.ngram_table_bits == bits
    assert torch.equal(again(ids).logits, expected)
    # Few bits cannot be cast: a model in bfloat16 reads them rounded once.
    model.to(torch.bfloat16)
    assert model(ids).logits.dtype == torch.bfloat16
    packed = [value for name, value in model.state_dict().items() if name.endswith(".packed")]
    assert len(packed) == 12 and all(value.dtype == torch.uint8 for value in packed)


@bits_of_rows
@placement
def test_packed_tables_are_frozen_and_the_rest_trains(bits, placement, tmp_path):
    tables = few_bit_checkpoint("base", bits, tmp_path)
    ids = load_file(CONFORMANCE / "base" / "golden.safetensors")["input_ids"]
    gradients = []
    for model in (
        LongCatLiteForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, ngram_tables=placement),
        reference("base", tables),
    ):
        model.train()(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if "embedders" not in name})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)


def test_packed_tables_are_named_where_the_config_knows_none(tmp_path):
    few_bit_checkpoint("base", 8, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["ngram_table_bits"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for placement in PLACEMENTS:
        with pytest.raises(ValueError, match=r"embedders\.0\.(weight|packed)"):
            LongCatLiteForCausalLM.from_pretrained(tmp_path, ngram_tables=placement)


@placement
def test_a_config_of_other_bits_is_named(placement, tmp_path):
    few_bit_checkpoint("base", 8, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"ngram_table_bits": 4}))
    with pytest.raises(
        ValueError, match=r"embedders\.0\.packed` in .* shape \[1793, 12\], .* must have shape \[1793, 8\]"
    ):
        LongCatLiteForCausalLM.from_pretrained(tmp_path, ngram_tables=placement)
