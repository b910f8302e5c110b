# SPDX-License-Identifier: Apache-2.0
"""Dtypes, indexes and shards that contradict themselves: refused by name, by every command alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CONFORMANCE, PLAIN_ROPE, randomize, tiny_config
from mutated_checkpoints import DELTA, INDEX, SMALL, WEIGHTS, join, shards, split, write_checkpoints
from safetensors.torch import load_file, save_file

from eval.checkpoints import merge_rows as merge_row_deltas
from eval.checkpoints.files import CheckpointFiles
from eval.checkpoints.merge_rows import merge
from eval.checkpoints.problems import read_headers
from eval.checkpoints.quantize import convert
from eval.checkpoints.verify import verify
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM, LongCatLiteModel
from modeling_longcat_lite.checkpoint_files import folder_weights
from modeling_longcat_lite.checkpoint_header import read_safetensors_header
from modeling_longcat_lite.ngram_row_files import write_row_delta

BINARY, BINARY_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TABLE = "model.ngram_embeddings.embedders.0.weight"


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_checkpoints(folder)
    return folder


@pytest.fixture
def single(sources, tmp_path) -> Path:
    return Path(shutil.copytree(sources / "single", tmp_path / "single"))


@pytest.fixture
def sharded(sources, tmp_path) -> Path:
    return Path(shutil.copytree(sources / "sharded", tmp_path / "sharded"))


def refused_by_all(folder: Path, *named: str):
    """Loading from host, disk or as parameters, quantizing, merging and verifying name the same things."""
    beside, delta = folder.parent / "written", folder.parent / "delta"
    if not delta.exists():
        model = LongCatLiteForCausalLM(tiny_config(**SMALL))
        tables = [(torch.tensor([1 + i]), torch.zeros(1, 8)) for i in range(2)]
        write_row_delta(delta / DELTA, model.config, tables, "base")
    beside.mkdir(exist_ok=True)
    commands: list[Callable[[], object]] = [
        *(lambda where=where: LongCatLiteForCausalLM.from_pretrained(folder, ngram_tables=where) for where in PLACES),
        lambda: LongCatLiteModel.from_pretrained(folder),
        lambda: convert(folder, beside / "quantized", 8, 2**20),
        lambda: merge(folder, [delta], beside / "merged"),
    ]
    for command in commands:
        with pytest.raises(ValueError) as raised:
            command()
        for part in named:
            assert part in str(raised.value)
    assert not list(beside.iterdir())
    try:
        text = str(verify(CheckpointFiles(str(folder)), 4)["problems"])
    except ValueError as error:
        text = str(error)
    for part in named:
        assert part in text


PLACES = ["resident", "host", "disk"]


@pytest.mark.parametrize("placement", PLACES)
@pytest.mark.parametrize("name", [f"{TABLE}.more", TABLE.replace("0", "2"), TABLE.replace("weight", "packed")])
def test_a_table_too_many_is_named_wherever_tables_lie(placement, name, single):
    save_file({**load_file(single / WEIGHTS), name: torch.zeros(3)}, single / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"`{name}`"):
        LongCatLiteForCausalLM.from_pretrained(single, ngram_tables=placement)


def edit_header(path: Path, change: Callable[[dict], object]):
    header, data = split(path)
    change(header)
    join(path, header, data)


def test_overlapping_tensors_are_refused_by_all(single):
    header, _ = split(single / WEIGHTS)
    names = sorted((name for name in header if "self_attn.0.q" in name), key=lambda n: header[n]["data_offsets"])
    shift = header[names[0]]["data_offsets"][0] + 4
    size = header[names[1]]["data_offsets"][1] - header[names[1]]["data_offsets"][0]
    edit_header(single / WEIGHTS, lambda h: h[names[1]].update(data_offsets=[shift, shift + size]))
    refused_by_all(single, WEIGHTS, "`data_offsets`")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.embed_tokens.weight", torch.int32),
        ("model.norm.weight", torch.int64),
        (TABLE, torch.int32),
        ("model.layers.0.mlp.router.e_score_correction_bias", torch.int32),
        ("model.layers.0.mlp.experts.1.up_proj.weight", torch.float8_e4m3fn),
        ("model.layers.0.self_attn.1.o_proj.weight", torch.float8_e5m2),
        ("model.layers.0.mlps.0.up_proj.weight", torch.bool),
        (TABLE, torch.uint8),
    ],
    ids=str,
)
def test_other_numbers_are_no_weights(name, dtype, single):
    weights = load_file(single / WEIGHTS)
    same_size = weights[name].view(dtype) if dtype == torch.int32 else weights[name].to(dtype)
    save_file({**weights, name: same_size}, single / WEIGHTS, metadata={"format": "pt"})
    stored = read_safetensors_header(single / WEIGHTS)[0][name].dtype
    refused_by_all(single, WEIGHTS, f"`{name}`", stored)


def test_packed_tables_are_bytes(sources, tmp_path):
    folder = Path(shutil.copytree(sources / "packed", tmp_path / "packed"))
    name = TABLE.replace("weight", "packed")
    edit_header(folder / WEIGHTS, lambda header: header[name].update(dtype="I8"))
    for placement in PLACES:
        with pytest.raises(ValueError, match=rf"`{name}`.*I8.*U8"):
            LongCatLiteForCausalLM.from_pretrained(folder, ngram_tables=placement)
    (problem,) = verify(CheckpointFiles(str(folder)), 4)["problems"]
    assert (problem["where"], problem["expected"], problem["found"]) == (f"`{name}`", "dtype U8", "dtype I8")


def test_two_16_bit_formats_are_a_damaged_header(sharded):
    name = "model.layers.0.self_attn.0.o_proj.weight"
    path = next(path for path in shards(sharded) if name in split(path)[0])
    edit_header(path, lambda header: header[name].update(dtype="F16"))
    refused_by_all(sharded, path.name, f"`{name}`", "F16", "BF16")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_float_is_a_weight_and_tables_have_their_own(dtype, single):
    weights = load_file(single / WEIGHTS)
    stored = {n: w if ".router." in n or "embedders" in n else w.to(dtype) for n, w in weights.items()}
    save_file(stored, single / WEIGHTS, metadata={"format": "pt"})
    model = LongCatLiteForCausalLM.from_pretrained(single, dtype=torch.float32)
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"].to(dtype).float())


def edit_index(folder: Path, change: Callable[[dict], object]):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def other_shard(folder: Path, name: str) -> str:
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    return next(file for file in sorted(set(weight_map.values())) if file != weight_map[name])


INDEXES = {
    "elsewhere": (lambda i, f: i["weight_map"].update({TABLE: other_shard(f, TABLE)}), [f"`{TABLE}`"]),
    "no entry": (lambda i, f: i["weight_map"].pop(TABLE), [f"`{TABLE}`", "index"]),
    "unknown tensor": (lambda i, f: i["weight_map"].update(more=other_shard(f, TABLE)), ["`more`", "in no file"]),
    "missing file": (lambda i, f: i["weight_map"].update({TABLE: "x.safetensors"}), ["x.safetensors is missing"]),
    "a path": (lambda i, f: i["weight_map"].update({TABLE: f"../sharded/{other_shard(f, TABLE)}"}), [f"`{TABLE}`"]),
    "a path of Windows": (lambda i, f: i["weight_map"].update({TABLE: "a\\b.safetensors"}), [f"`{TABLE}`"]),
    "a pickle": (lambda i, f: i["weight_map"].update({TABLE: "x.bin"}), [INDEX, f"`{TABLE}`", "'x.bin'"]),
    "a number": (lambda i, f: i["weight_map"].update({TABLE: 3}), [INDEX, f"`{TABLE}`"]),
    "no weight_map": (lambda i, f: i.pop("weight_map"), [INDEX, "`weight_map`"]),
    "weight_map a list": (lambda i, f: i.update(weight_map=[TABLE]), [INDEX, "`weight_map`"]),
    "weight_map empty": (lambda i, f: i.update(weight_map={}), [INDEX, "`weight_map`"]),
    "no metadata": (lambda i, f: i.pop("metadata"), [INDEX, "`metadata`"]),
}


@pytest.mark.parametrize(("change", "named"), INDEXES.values(), ids=INDEXES)
def test_an_index_that_does_not_tell_the_truth_is_refused_by_all(change, named, sharded):
    edit_index(sharded, lambda index: change(index, sharded))
    refused_by_all(sharded, *named)


@pytest.mark.parametrize("text", ["", "[]", "7", "{", '{"weight_map": {"a": "b", "a": "c"}}', "[" * 10**5, b"\xff"])
def test_an_index_that_is_none_is_refused_by_all(text, sharded):
    (sharded / INDEX).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused_by_all(sharded, INDEX)


def test_a_missing_shard_is_refused_by_all(sharded):
    path = shards(sharded)[1]
    path.unlink()
    refused_by_all(sharded, f"{path.name} is missing")


@pytest.mark.parametrize("in_index", [False, True])
def test_a_tensor_in_two_shards_is_refused_by_all(in_index, sharded):
    path = sharded / other_shard(sharded, TABLE)
    first = json.loads((sharded / INDEX).read_text())["weight_map"][TABLE]
    save_file({**load_file(path), TABLE: load_file(sharded / first)[TABLE] + 1}, path, metadata={"format": "pt"})
    if in_index:
        edit_index(sharded, lambda index: index["weight_map"].update({TABLE: path.name}))
    refused_by_all(sharded, f"`{TABLE}`", path.name)


def test_two_sets_of_weights_are_refused_by_all(sharded, sources):
    shutil.copy(sources / "single" / WEIGHTS, sharded)
    refused_by_all(sharded, WEIGHTS, INDEX, "two sets of weights")


def test_an_index_that_was_left_behind_is_not_asked(single, sharded, tmp_path):
    expected = LongCatLiteForCausalLM.from_pretrained(single).state_dict()
    shutil.copy(sharded / INDEX, single)
    for name, tensor in LongCatLiteForCausalLM.from_pretrained(single).state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert verify(CheckpointFiles(str(single)), 4)["problems"] == []
    convert(single, tmp_path / "few", 8, 2**20)
    assert not (tmp_path / "few" / INDEX).exists()
    LongCatLiteForCausalLM.from_pretrained(tmp_path / "few")


def test_a_file_without_tensors_is_no_model(single):
    join(single / WEIGHTS, "{}", b"")
    refused_by_all(single, "no")


def test_files_that_no_index_names_are_copied_and_not_read(sharded, tmp_path):
    """Golden outputs and changed rows lie beside weights; what is damaged is not passed on."""
    save_file({TABLE: torch.ones(3)}, sharded / "golden.safetensors")
    convert(sharded, tmp_path / "few", 8, 2**20)
    assert (tmp_path / "few" / "golden.safetensors").read_bytes() == (sharded / "golden.safetensors").read_bytes()
    with (sharded / "golden.safetensors").open("ab") as file:
        file.write(bytes(4))
    with pytest.raises(ValueError, match=r"golden\.safetensors has 4 bytes after"):
        convert(sharded, tmp_path / "again", 8, 2**20)


def write_binary(folder: Path, weights: dict) -> Path:
    """The checkpoint as one of older torch files, in one shard or two."""
    for path in [*shards(folder), folder / INDEX]:
        path.unlink(missing_ok=True)
    torch.save(weights, folder / BINARY)
    return folder


def test_old_checkpoints_load_as_they_are_or_not_at_all(single):
    weights = load_file(single / WEIGHTS)
    expected = LongCatLiteForCausalLM.from_pretrained(single).state_dict()
    write_binary(single, weights)
    for name, tensor in LongCatLiteForCausalLM.from_pretrained(single).state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    for name in (TABLE, "lm_head.weight", "model.layers.0.mlp.experts.1.down_proj.weight"):
        for changed in (
            {key: value for key, value in weights.items() if key != name},
            {**weights, name: weights[name][:-1]},
            {**weights, name: weights[name].int()},
            {**weights, f"{name}.more": torch.zeros(2)},
            {**weights, name: 3.0},
        ):
            write_binary(single, changed)
            with pytest.raises(ValueError, match=name):
                LongCatLiteForCausalLM.from_pretrained(single)
    (single / BINARY).write_bytes((single / BINARY).read_bytes()[:-200])
    with pytest.raises(ValueError, match=BINARY):
        LongCatLiteForCausalLM.from_pretrained(single, dtype=torch.float32)


def test_old_checkpoints_in_shards_follow_their_index(single):
    weights = load_file(single / WEIGHTS)
    write_binary(single, weights)
    (single / BINARY).unlink()
    names = sorted(weights)
    files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    halves = {files[0]: names[::2], files[1]: names[1::2]}
    weight_map = {name: file for file, held in halves.items() for name in held}
    for file, held in halves.items():
        torch.save({name: weights[name] for name in held}, single / file)
    (single / BINARY_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    LongCatLiteForCausalLM.from_pretrained(single)
    first, second = names[0], names[1]
    torch.save({n: weights[n] for n in halves[files[1]]} | {first: weights[first] + 1}, single / files[1])
    with pytest.raises(ValueError, match=rf"`{first}`.*one file"):
        LongCatLiteForCausalLM.from_pretrained(single)
    torch.save({n: weights[n] for n in halves[files[1]] if n != second}, single / files[1])
    with pytest.raises(ValueError, match=rf"`{second}`.*in no file"):
        LongCatLiteForCausalLM.from_pretrained(single)
    (single / files[1]).unlink()
    with pytest.raises(ValueError, match=rf"{files[1]} is missing"):
        LongCatLiteForCausalLM.from_pretrained(single)
    (single / BINARY_INDEX).write_text("{}")
    with pytest.raises(ValueError, match="`weight_map`"):
        LongCatLiteForCausalLM.from_pretrained(single)


def test_a_state_dict_is_checked_too(single):
    weights = load_file(single / WEIGHTS)
    config = LongCatLiteConfig.from_pretrained(single)
    model = LongCatLiteForCausalLM.from_pretrained(None, config=config, state_dict=dict(weights))
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])
    for changed in ({}, {"lm_head.weight": weights["lm_head.weight"].int()}):
        state = {**weights, **changed}
        state.pop("" if changed else "lm_head.weight", None)
        with pytest.raises(ValueError, match=r"`lm_head\.weight`"):
            LongCatLiteForCausalLM.from_pretrained(None, config=config, state_dict=state)


def test_merging_leaves_nothing_when_it_fails(single, tmp_path, monkeypatch):
    """A disk that fills up while rows are written: the model is as it was, and no copy stays."""
    rows = [(torch.tensor([1 + i]), torch.ones(1, 8)) for i in range(2)]
    write_row_delta(tmp_path / "delta" / DELTA, LongCatLiteConfig.from_pretrained(single), rows, "base")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merge_row_deltas, "overwrite", full)
    with pytest.raises(OSError, match="No space"):
        merge(single, [tmp_path / "delta"], tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta", "single"]


def test_trunks_are_quantized_and_merged_too(tmp_path):
    trunk = randomize(LongCatLiteModel(tiny_config(**SMALL, rope_parameters=dict(PLAIN_ROPE))))
    trunk.save_pretrained(tmp_path / "trunk")
    convert(tmp_path / "trunk", tmp_path / "few", 8, 2**20)
    assert LongCatLiteModel.from_pretrained(tmp_path / "few").config.ngram_table_bits == 8


def test_shards_of_two_saves_are_refused_by_every_command(tmp_path):
    model = LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "bigram")
    model.save_pretrained(tmp_path / "old", max_shard_size="100KB")
    with torch.no_grad():
        model.lm_head.weight.add_(0.1)
        model.model.embed_tokens.weight.add_(0.1)
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    shard = sorted((tmp_path / "model").glob("*.safetensors"))[0].name
    (tmp_path / "model" / shard).write_bytes((tmp_path / "old" / shard).read_bytes())
    for read in (LongCatLiteForCausalLM.from_pretrained, folder_weights):
        with pytest.raises(ValueError, match="not of the same save"):
            read(tmp_path / "model")
    with pytest.raises(ValueError, match="not of the same save"):
        convert(tmp_path / "model", tmp_path / "packed", bits=8, memory=10**9)
    problems = read_headers(CheckpointFiles(str(tmp_path / "model"))).problems
    assert any("not of the same save" in problem.found for problem in problems)
