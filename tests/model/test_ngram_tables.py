# SPDX-License-Identifier: Apache-2.0
"""Tables in host memory or on disk: the rows, logits, tokens, losses and saved files of resident ones."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CONFORMANCE
from generation_cases import CACHES, MODES, run
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompileConfig

from modeling_longcat_lite import LongCatLiteForCausalLM, LongCatLiteModel, ngram_row_ids
from modeling_longcat_lite.model_inputs import token_windows
from modeling_longcat_lite.ngram_table_files import find_tables
from modeling_longcat_lite.ngram_tables import NgramTables

CASES = sorted(path.name for path in CONFORMANCE.iterdir() if path.is_dir())
every_case = pytest.mark.parametrize("case", CASES)
placement = pytest.mark.parametrize("placement", ["host", "disk"])


def load(case: str, placement: str = "resident", **kwargs) -> LongCatLiteForCausalLM:
    kwargs = {"dtype": torch.float32, **kwargs}
    return LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / case, ngram_tables=placement, **kwargs)


def golden(case: str) -> dict[str, torch.Tensor]:
    return load_file(CONFORMANCE / case / "golden.safetensors")


@every_case
@placement
@torch.no_grad()
def test_rows_and_logits_are_those_of_resident_tables(case, placement):
    ids, resident, offloaded = golden(case)["input_ids"], load(case), load(case, placement)
    assert not any("embedders" in name for name, _ in offloaded.named_parameters())
    codes = token_windows(resident.config, ids)
    row_ids = resident.model.ngram_embeddings.ids(codes)
    each = [
        table(of_table) for table, of_table in zip(resident.model.ngram_embeddings.embedders, row_ids, strict=True)
    ]
    rows = offloaded.model.ngram_embeddings.tables.gather(row_ids, ids.device, torch.float32)
    assert torch.equal(rows, torch.cat(each, dim=-1))
    assert rows.data_ptr() % 16 == 0  # whatever the offsets in the file
    assert torch.equal(offloaded(ids).logits, resident(ids).logits)


@placement
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_tokens_of_resident_tables(placement, cache, mode):
    if mode == "prompt_lookup" and cache != "dynamic":
        return
    ids = golden("released")["prompts"]
    ids = ids[:1].repeat(1, 2) if mode == "prompt_lookup" else ids
    expected = run(load("released"), ids, torch.ones_like(ids), **MODES[mode], **CACHES[cache])
    found = run(load("released", placement), ids, torch.ones_like(ids), **MODES[mode], **CACHES[cache])
    assert torch.equal(found, expected)


@placement
@pytest.mark.parametrize("ngram_drafts", [False, True])
def test_drafting(placement, ngram_drafts):
    ids = golden("released")["prompts"][:1]
    model = load("released", placement, mtp_use_ngram_embedding=ngram_drafts)
    assert torch.equal(run(model, ids, torch.ones_like(ids), use_mtp=True), run(load("released"), ids, None))


@pytest.mark.slow
@placement
def test_compiled_decoding_is_one_graph(placement):
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    data, config = golden("base"), CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    config._compile_all_devices = True
    model = load("base", placement)
    for _ in range(2):
        tokens = run(
            model, data["prompts"], None, cache_implementation="static", compile_config=config, max_new_tokens=24
        )
        assert torch.equal(tokens, data["greedy"][:, data["prompts"].shape[1] :])
        assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@placement
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_frozen_resident_tables(placement, checkpointing):
    ids, gradients = golden("base")["input_ids"], []
    for where in ("resident", placement):
        model = load("base", where).train()
        if where == "resident":
            model.model.ngram_embeddings.embedders.requires_grad_(False)
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad} | {"loss": loss})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradient is None and gradients[1][name] is None) or torch.equal(gradient, gradients[1][name]), name


@every_case
@placement
def test_saving_writes_what_was_loaded(case, placement, tmp_path):
    load(case, placement, dtype="auto").save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    written = {}
    for path in (tmp_path / "saved").glob("*.safetensors"):
        written |= load_file(path)
    original = {}
    for path in (CONFORMANCE / case).glob("model*.safetensors"):
        original |= load_file(path)
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(written[name], tensor) and written[name].dtype == tensor.dtype, name


@placement
@torch.no_grad()
def test_saving_into_the_folder_it_was_loaded_from(placement, tmp_path):
    shutil.copytree(CONFORMANCE / "base", tmp_path / "model")
    model = LongCatLiteForCausalLM.from_pretrained(tmp_path / "model", ngram_tables=placement)
    ids = golden("base")["input_ids"]
    expected = model(ids).logits
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(model(ids).logits, expected)
    again = LongCatLiteForCausalLM.from_pretrained(tmp_path / "model", ngram_tables=placement)
    assert torch.equal(again(ids).logits, expected)


@placement
@torch.no_grad()
def test_copies_pickles_and_casts(placement):
    model, ids = load("base", placement), golden("base")["input_ids"]
    expected = model(ids).logits
    assert torch.equal(copy.deepcopy(model)(ids).logits, expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(ids).logits, expected)
    assert torch.equal(model.to(torch.bfloat16)(ids).logits, load("base").to(torch.bfloat16)(ids).logits)


@placement
@torch.no_grad()
def test_the_trunk_alone_and_the_auto_class(placement, tmp_path):
    ids = golden("base")["input_ids"]
    states = load("base").model(ids).last_hidden_state
    assert torch.equal(LongCatLiteModel.from_pretrained(CONFORMANCE / "base", ngram_tables=placement)(ids)[0], states)
    load("base").model.save_pretrained(tmp_path)
    assert torch.equal(LongCatLiteModel.from_pretrained(tmp_path, ngram_tables=placement)(ids)[0], states)
    auto = AutoModelForCausalLM.from_pretrained(CONFORMANCE / "base", ngram_tables=placement)
    assert torch.equal(auto(ids).logits, load("base")(ids).logits)


class RowsOfTokens(torch.utils.data.Dataset):
    """What a data loader's worker may do: look up rows ahead of the model."""

    def __init__(self, tables: NgramTables, row_ids: torch.Tensor):
        self.tables, self.row_ids = tables, row_ids

    def __len__(self):
        return self.row_ids.shape[1]

    def __getitem__(self, index):
        return self.tables.gather(self.row_ids[:, index : index + 1], torch.device("cpu"), torch.float32)[0]


@placement
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_workers(placement, start):
    model, ids = load("base", placement), golden("base")["input_ids"]
    rows, tables = ngram_row_ids(model.config, ids), model.model.ngram_embeddings.tables
    loader = torch.utils.data.DataLoader(
        RowsOfTokens(tables, rows), batch_size=len(ids), num_workers=1, multiprocessing_context=start
    )
    (found,) = list(loader)
    assert torch.equal(found, tables.gather(rows, torch.device("cpu"), torch.float32))


SECOND_PROCESS = """
import sys
from pathlib import Path
from modeling_longcat_lite import LongCatLiteForCausalLM

model = LongCatLiteForCausalLM.from_pretrained(sys.argv[1], ngram_tables="disk")
for rows in model.model.ngram_embeddings.tables.rows:
    rows.sum()  # every page
kilobytes = {}
for line in Path("/proc/self/smaps").read_text().splitlines():
    if "-" in line.split(" ")[0]:
        is_file = line.endswith("model.safetensors")
    elif is_file and line.endswith("kB"):
        name, amount, _ = line.split()
        kilobytes[name] = kilobytes.get(name, 0) + int(amount)
print(kilobytes["Shared_Clean:"] + kilobytes["Shared_Dirty:"], kilobytes["Anonymous:"])
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the kernel does not tell of mapped pages")
def test_two_processes_share_the_pages_of_a_file(tmp_path):
    shutil.copy(CONFORMANCE / "base" / "config.json", tmp_path)
    shutil.copy(CONFORMANCE / "base" / "model.safetensors", tmp_path)
    tables = LongCatLiteForCausalLM.from_pretrained(tmp_path, ngram_tables="disk").model.ngram_embeddings.tables
    for rows in tables.rows:
        rows.sum()
    command = [sys.executable, "-c", SECOND_PROCESS, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    shared, anonymous = (1024 * int(number) for number in result.stdout.split())
    assert shared >= tables.num_bytes
    assert anonymous == 0


@torch.no_grad()
def test_a_device_map_does_not_count_the_tables():
    model, ids = load("base", "disk", device_map={"": "cpu"}), golden("base")["input_ids"]
    assert torch.equal(model(ids).logits, load("base")(ids).logits)
    tables = model.model.ngram_embeddings.tables.num_bytes
    assert load("base").get_memory_footprint() - model.get_memory_footprint() == tables


def test_each_row_is_asked_for_once(tmp_path, monkeypatch):
    model, asked = load("base", "disk"), []
    tables = model.model.ngram_embeddings.tables
    for table in tables.mapped:
        monkeypatch.setattr(table, "ask_for", asked.append)
    ids = torch.tensor([[[5, 7, 5]], [[7, 7, 7]]]).repeat(6, 1, 1)
    tables.gather(ids, torch.device("cpu"), torch.float32)
    assert [rows.tolist() for rows in asked] == [[5, 7], [7]] * 6


@pytest.mark.parametrize("harm", ["truncate", "replace", "delete"])
@torch.no_grad()
def test_a_file_that_changes_is_named(harm, tmp_path):
    shutil.copytree(CONFORMANCE / "base", tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    model = LongCatLiteForCausalLM.from_pretrained(tmp_path / "model", ngram_tables="disk")
    if harm == "truncate":
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
    elif harm == "replace":
        shutil.copy(path, tmp_path / "other")
        (tmp_path / "other").replace(path)
    else:
        path.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors was truncated, replaced or deleted.*embedders\.0"):
        model(torch.tensor([[5, 6, 7]]))


def rewrite_header(path, change):
    """Writes a safetensors file anew with a changed header."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


NAME = "model.ngram_embeddings.embedders.3.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.pop(NAME), "no table `model.ngram_embeddings.embedders.3"),
        (lambda header: header[NAME].update(dtype="I32"), r"embedders\.3\.weight` in .* stored as I32"),
        (lambda header: header[NAME].update(shape=[7, 8]), r"embedders\.3\.weight` in .* has shape \[7, 8\]"),
        (lambda header: header[NAME].update(data_offsets=[0, 10**9]), r"truncated inside `.*embedders\.3"),
    ],
    ids=["missing", "dtype", "shape", "truncated"],
)
def test_what_does_not_fit_is_named(change, message, tmp_path):
    model = load("base").model.ngram_embeddings
    names = [f"model.ngram_embeddings.embedders.{i}.weight" for i in range(len(model.embedders))]
    path = shutil.copy(CONFORMANCE / "base" / "model.safetensors", tmp_path)
    rewrite_header(tmp_path / "model.safetensors", change)
    with pytest.raises(ValueError, match=message):
        NgramTables("disk", find_tables([path], names, model.sizes.tolist(), model.embedders[0].embedding_dim))


def test_an_unknown_placement_is_named():
    with pytest.raises(ValueError, match="resident, host, disk, not 'gpu'"):
        load("base", "gpu")


def test_tables_without_a_checkpoint_are_refused():
    model = LongCatLiteForCausalLM(load("base").config, ngram_tables="disk")
    with pytest.raises(ValueError, match="from_pretrained"):
        model(torch.tensor([[5, 6]]))
