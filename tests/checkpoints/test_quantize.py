# SPDX-License-Identifier: Apache-2.0
"""Conversion to few bits: files as large as they should be, within its memory, whole or not at all."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CONFORMANCE, tiny_config
from quantized_tables import convert
from safetensors.torch import load_file, save_file
from tiny_chat import write_tiny_chat

from eval.checkpoints import quantize
from eval.fit import __main__ as fit
from eval.ngrams import quantization as quantization_report
from modeling_longcat_lite import LongCatLiteForCausalLM, ngram_quantization
from modeling_longcat_lite.ngram_quantization import ROW_FORMATS, PackedRows, dequantize_rows, quantize_rows
from modeling_longcat_lite.ngram_tables import PLACEMENTS


def weights(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("memory", ["256MB", "500B"])
def test_tables_are_packed_and_the_rest_is_copied(bits, memory, tmp_path):
    LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "released").save_pretrained(
        tmp_path / "shards", max_shard_size="100KB"
    )
    convert(tmp_path / "shards", tmp_path / "few", "--bits", bits, "--memory", memory)
    before, after = weights(tmp_path / "shards"), weights(tmp_path / "few")
    for name, tensor in before.items():
        if ".embedders." in name:
            assert torch.equal(after.pop(name.replace(".weight", ".packed")), quantize_rows(tensor, bits)), name
        else:
            assert torch.equal(after.pop(name), tensor), name
    assert not after
    assert not list(tmp_path.glob("*.partial"))
    index = json.loads((tmp_path / "few" / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "few" / file)
    model = LongCatLiteForCausalLM.from_pretrained(tmp_path / "few", ngram_tables="disk")
    assert model.config.ngram_table_bits == bits
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3).shape == (1, 6)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_file_shrinks_as_it_should(bits, tmp_path):
    config = tiny_config(hidden_size=768, ngram_vocab_size_ratio=20.4, dtype="bfloat16")
    LongCatLiteForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "large")
    convert(tmp_path / "large", tmp_path / "few", "--bits", bits)
    saved = sum(config.subtable_sizes) * (2 * 64 - (4 + 64 * bits // 8))
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("large", "few")]
    assert abs(sizes[0] - sizes[1] - saved) < 200  # headers


class HalfOffsets(PackedRows):
    """A row as its mean in float32 and each value's offset from it in float16, all as bytes."""

    bits = "half-offsets"

    def columns(self, width: int) -> int:
        return 4 + 2 * width

    def pack(self, rows: torch.Tensor) -> torch.Tensor:
        mean = rows.float().mean(dim=1, keepdim=True)
        return torch.cat([mean.view(torch.uint8), (rows.float() - mean).half().view(torch.uint8)], dim=1)

    def unpack(self, stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        mean, offsets = (part.clone(memory_format=torch.contiguous_format) for part in stored.tensor_split([4], -1))
        return (mean.view(torch.float32) + offsets.view(torch.float16)).to(dtype)


def format_of_the_page() -> PackedRows:
    """The class that `adding_a_row_format.md` writes."""
    page = (Path(quantize.__file__).parent / "adding_a_row_format.md").read_text()
    names = dict(vars(ngram_quantization))
    exec(page.split("```python\n")[1].split("```")[0], names)
    return names["Fp8Rows"]()


@pytest.mark.parametrize("make_format", [HalfOffsets, format_of_the_page], ids=["toy", "page"])
@torch.no_grad()
def test_a_row_format_is_one_class(source, tmp_path, monkeypatch, capsys, make_format):
    toy = make_format()
    monkeypatch.setitem(ROW_FORMATS, toy.bits, toy)
    convert(source, tmp_path / "toy", "--bits", toy.bits)
    original = LongCatLiteForCausalLM.from_pretrained(source, dtype=torch.float32)
    for table in original.model.ngram_embeddings.embedders:
        table.weight.copy_(toy.unpack(toy.pack(table.weight), torch.float32))
    ids = torch.arange(4, 20)[None]
    expected = original(ids).logits
    for placement in PLACEMENTS:
        model = LongCatLiteForCausalLM.from_pretrained(tmp_path / "toy", dtype=torch.float32, ngram_tables=placement)
        assert torch.equal(model(ids).logits, expected), placement
        model.save_pretrained(tmp_path / "saved")
        again = LongCatLiteForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32, ngram_tables="disk")
        assert torch.equal(again(ids).logits, expected), placement
    config = original.config
    size = sum(config.subtable_sizes) * toy.columns(config.subtable_width)
    for folder, options in ((tmp_path / "toy", []), (source, ["--bits", toy.bits])):
        machine = ["--gpus", "0", "--host-memory", "8GB", "--context", "64"]
        command = ["--model", str(folder), *machine, *options, "--output", str(tmp_path / "fit")]
        fit.main(fit.make_parser().parse_args(command))
        results = json.loads((tmp_path / "fit" / "fit.json").read_text())
        assert [results["placements"]["disk"]["disk"]["n-gram tables"]] == [size]
        assert toy.bits in capsys.readouterr().out
        assert any(f"--bits {toy.bits}" in line for line in results["arguments"]) == bool(options)


MEASURED = """
import resource, sys
from eval.checkpoints import quantize as quantize_tables
arguments = quantize_tables.make_parser().parse_args(sys.argv[1:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
quantize_tables.main(arguments)
print("grown", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_within_its_budget(tmp_path):
    shape = {"hidden_size": 64, "emb_neighbor_num": 2, "emb_split_num": 1, "ngram_vocab_size_ratio": 1_499_999 / 64}
    LongCatLiteForCausalLM(tiny_config(**shape), ngram_tables="disk").save_pretrained(tmp_path)  # without its table
    table = torch.randn(1_500_000, 64).to(torch.bfloat16)  # 192 MB
    path = tmp_path / "model.safetensors"
    save_file({**load_file(path), "model.ngram_embeddings.embedders.0.weight": table}, path)
    command = [sys.executable, "-c", MEASURED, "--model", tmp_path, "--output", tmp_path / "few", "--memory", "32MB"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    grown = 1024 * int(output.split("grown")[1])
    assert grown < 32e6 + 16e6, f"{grown / 1e6:.0f} MB"  # the progress bar, code run for the first time
    packed = load_file(tmp_path / "few" / "model.safetensors")["model.ngram_embeddings.embedders.0.packed"]
    error = dequantize_rows(packed, 8, torch.float32) - table.float()
    assert error.square().mean().sqrt() < 0.01


def folder_state(folder) -> dict:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.fixture
def source(tmp_path):
    shutil.copytree(CONFORMANCE / "base", tmp_path / "model", ignore=shutil.ignore_patterns("golden*"))
    return tmp_path / "model"


def test_a_full_disk_leaves_nothing_and_names_the_table(source, tmp_path):
    before = folder_state(source)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_600_000, limits[1]))  # every write beyond fails, as on a full disk
    try:
        with pytest.raises(ValueError, match=r"model\.safetensors: `model\..*` could not be written"):
            convert(source, tmp_path / "few")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert folder_state(source) == before


def test_too_little_space_is_named_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"few takes 0\.\d+ GB, but its disk has 0\.00 GB left"):
        convert(source, tmp_path / "few")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_converted_is_named(source, tmp_path):
    with pytest.raises(ValueError, match="exists already"):
        convert(source, source)
    convert(source, tmp_path / "few")
    with pytest.raises(ValueError, match="its tables have 8 bits; convert the original"):
        convert(tmp_path / "few", tmp_path / "fewer", "--bits", 4)
    with pytest.raises(ValueError, match=r"`--memory` must be at least \d+ bytes"):
        convert(source, tmp_path / "other", "--memory", "10B")
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated inside `model\."):
        convert(source, tmp_path / "other")
    (source / "config.json").write_text(json.dumps({"use_ngram_embedding": False}))
    with pytest.raises(ValueError, match="`use_ngram_embedding` is false"):
        convert(source, tmp_path / "other")


def test_a_value_that_is_not_finite_is_named(source, tmp_path):
    name, path = "model.ngram_embeddings.embedders.5.weight", source / "model.safetensors"
    tensors = load_file(path)
    tensors[name][3, 1] = float("inf")
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"embedders\.5\.weight`, in the \d+ rows from 0: Row 3"):
        convert(source, tmp_path / "few")
    assert not (tmp_path / "few").exists()


def test_the_report(tmp_path):
    chat = write_tiny_chat(tmp_path / "chat")
    folders = []
    for bits in (8, 4):
        folders.append(tmp_path / f"int{bits}")
        convert(chat / "model", folders[-1], "--bits", bits)
    rows = chat / "data" / "train.jsonl"
    options = ["--model", chat / "model", "--converted", *folders, "--trained-rows", rows, "--held-out", rows]
    arguments = quantization_report.make_parser().parse_args([*map(str, options), "--output", str(tmp_path / "out")])
    quantization_report.main(arguments)
    results = json.loads((tmp_path / "out" / "quantized_tables.json").read_text())
    eight, four = results["converted"]
    assert (eight["bits"], four["bits"]) == (8, 4)
    assert list(eight["orders"]) == ["2-grams", "3-grams", "4-grams"]
    for order, error in eight["orders"].items():
        assert 0 < error["relative_error"] < 0.02 < four["orders"][order]["relative_error"] < 0.3
        assert 0 < error["rows"] == four["orders"][order]["rows"]
    assert abs(eight["added_loss"]) < 0.005
    text = (tmp_path / "out" / "quantized_tables.md").read_text()
    assert "8 bits" in text and str(tmp_path) not in text
    assert (tmp_path / "out" / "quantized_tables.png").read_bytes().startswith(b"\x89PNG")
