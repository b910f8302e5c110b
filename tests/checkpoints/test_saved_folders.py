# SPDX-License-Identifier: Apache-2.0
"""What a save leaves in a folder that held something before, and what loading makes of files of two saves."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CONFORMANCE, randomize, tiny_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.whole_files import main, staged_files, whole_file, write_whole

INDEX = "model.safetensors.index.json"


def tiny(seed: int, **fields) -> LongCatLiteForCausalLM:
    return randomize(LongCatLiteForCausalLM(tiny_config(**fields)), seed)


def load(folder: Path, **options) -> LongCatLiteForCausalLM:
    return LongCatLiteForCausalLM.from_pretrained(folder, **options)


def names(folder: Path) -> set[str]:
    """All files, less the code."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".py"}


def assert_equal_models(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def save_id(path: Path) -> str | None:
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("save_id")


def test_the_released_layout_is_replaced_with_all_its_shards_and_the_files_of_the_user_stay(tmp_path):
    folder = Path(shutil.copytree(CONFORMANCE / "released", tmp_path / "model"))
    (folder / "notes").mkdir()
    (folder / "notes" / "model-00001-of-00002.safetensors").write_bytes(b"mine")
    kept = {"notes/model-00001-of-00002.safetensors", "golden.safetensors"}
    variant = {"model.half.safetensors", "other-00001-of-00002.safetensors", "model-mine.safetensors"}
    for name in variant:
        (folder / name).write_bytes(b"mine")
    model = tiny(0)
    model.save_pretrained(folder)
    assert {name for name in names(folder) if "safetensors" in name} == {"model.safetensors"} | kept | variant
    assert_equal_models(load(folder), model)


def test_a_variant_replaces_itself_alone(tmp_path):
    first, second, third = tiny(0), tiny(1), tiny(2)
    first.save_pretrained(tmp_path, max_shard_size="60KB")
    second.save_pretrained(tmp_path, max_shard_size="60KB", variant="half")
    third.save_pretrained(tmp_path, variant="half")
    assert_equal_models(load(tmp_path), first)
    assert_equal_models(load(tmp_path, variant="half"), third)
    assert not [name for name in names(tmp_path) if name.startswith("model.half-") or name.endswith("half.json")]


@pytest.mark.parametrize("forms", [("60KB", "5GB"), ("5GB", "60KB"), ("60KB", "20KB"), ("20KB", "60KB")])
def test_saving_twice_leaves_what_one_save_leaves(tmp_path, forms):
    for number, form in enumerate(forms):
        tiny(number, num_nextn_predict_layers=number).save_pretrained(tmp_path / "twice", max_shard_size=form)
    tiny(1, num_nextn_predict_layers=1).save_pretrained(tmp_path / "once", max_shard_size=forms[1])
    assert names(tmp_path / "twice") == names(tmp_path / "once")
    for name in names(tmp_path / "once"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "once" / name).read_bytes(), name


def test_links_are_kept_and_nothing_is_written_through_them(tmp_path):
    model, blob = tiny(1), tmp_path / "blob"
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    tiny(0).save_pretrained(tmp_path / "link")
    (tmp_path / "real" / "model.safetensors").rename(blob)  # as in the cache of the Hub
    (tmp_path / "real" / "model.safetensors").symlink_to("../blob")
    before = blob.read_bytes()
    model.save_pretrained(tmp_path / "link")
    assert blob.read_bytes() == before and (tmp_path / "link").is_symlink()
    assert_equal_models(load(tmp_path / "real"), model)


def test_a_folder_that_was_not_there_is_not_left_behind(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", fail)
        with pytest.raises(OSError, match="no space"):
            tiny(0).save_pretrained(tmp_path / "deep" / "model")
    assert not (tmp_path / "deep" / "model").exists()
    tiny(0).save_pretrained(tmp_path / "deep" / "model")
    assert_equal_models(load(tmp_path / "deep" / "model"), tiny(0))


@pytest.mark.parametrize(
    "failing, form", [("link", "5GB"), ("replace", "5GB"), ("rename", "60KB"), ("replace", "60KB")]
)
def test_a_swap_that_fails_is_taken_back(tmp_path, monkeypatch, failing, form):
    tiny(0).save_pretrained(tmp_path, max_shard_size=form)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    real, has_failed = getattr(os, failing), []

    def fails_once(*args, **kwargs):
        if not has_failed:
            has_failed.append(args)
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fails_once)
        with pytest.raises(KeyboardInterrupt):
            tiny(1).save_pretrained(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", fail)
    tiny(0).save_pretrained(tmp_path)
    tiny(1).save_pretrained(tmp_path, max_shard_size="60KB")
    assert_equal_models(load(tmp_path), tiny(1))


def test_other_processes_write_nothing(tmp_path):
    tiny(0).save_pretrained(tmp_path)
    before = names(tmp_path)
    tiny(1).save_pretrained(tmp_path, False)
    tiny(1).save_pretrained(tmp_path, is_main_process=False, max_shard_size="60KB")
    assert names(tmp_path) == before
    assert_equal_models(load(tmp_path), tiny(0))


def test_options_of_transformers_arrive(tmp_path):
    model = tiny(0)
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, True, dict(state), False, "60KB", "half", save_original_format=False)
    weights = [load_file(path) for path in tmp_path.glob("model.half-*-of-*.safetensors")]
    assert len(weights) > 1
    found = {name: tensor for tensors in weights for name, tensor in tensors.items()}
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("placement", ["host", "disk"])
@pytest.mark.parametrize("forms", [("60KB", "5GB"), ("5GB", "5GB"), ("20KB", "60KB")])
def test_a_model_saved_over_its_own_tables_goes_on(tmp_path, placement, forms):
    tiny(0).save_pretrained(tmp_path, max_shard_size=forms[0])
    model = load(tmp_path, ngram_tables=placement).eval()
    embedding = model.model.ngram_embeddings
    tables, rows = embedding.tables, embedding.tables.rows
    with torch.no_grad():
        expected = model(torch.arange(12)[None]).logits
        for _ in range(2):
            model.save_pretrained(tmp_path, max_shard_size=forms[1])
            assert embedding.tables is tables  # compiled graphs and kept rows know it
            assert torch.equal(model(torch.arange(12)[None]).logits, expected)
            assert torch.equal(load(tmp_path)(torch.arange(12)[None]).logits, expected)
    if placement == "host":
        assert all(ours is theirs for ours, theirs in zip(tables.rows, rows, strict=True))  # not read again
    again = copy.deepcopy(model)  # opens the files by their new places
    with torch.no_grad():
        assert torch.equal(again(torch.arange(12)[None]).logits, expected)


def test_a_state_dict_without_the_mapped_tables_cannot_take_their_place(tmp_path):
    tiny(0).save_pretrained(tmp_path)
    model = load(tmp_path, ngram_tables="disk")
    state = {name: tensor for name, tensor in model.state_dict().items() if ".embedders." not in name}
    with pytest.raises(ValueError, match=r"no table `model\.ngram_embeddings\.embedders\.0\.weight`"):
        model.save_pretrained(tmp_path, state_dict=state)
    assert_equal_models(load(tmp_path), tiny(0))


def test_every_shard_and_the_index_carry_the_id_of_their_save(tmp_path):
    ids = {}
    for name, seed, form in (("one", 0, "60KB"), ("again", 0, "60KB"), ("file", 0, "5GB"), ("other", 1, "60KB")):
        folder = tmp_path / name
        tiny(seed).save_pretrained(folder, max_shard_size=form)
        found = {save_id(path) for path in folder.glob("*.safetensors")}
        if form == "60KB":
            found.add(json.loads((folder / INDEX).read_text())["metadata"]["save_id"])
        (ids[name],) = found
        assert ids[name]
    assert ids["one"] == ids["again"] == ids["file"] != ids["other"]


@pytest.mark.parametrize("placement", ["resident", "disk"])
@pytest.mark.parametrize("earlier", ["with an id", "of an earlier version"])
def test_shards_of_two_saves_are_refused(tmp_path, placement, earlier):
    for name, seed in (("old", 0), ("new", 1)):
        tiny(seed).save_pretrained(tmp_path / name, max_shard_size="60KB")
    if earlier != "with an id":
        for path in (tmp_path / "old").glob("*.safetensors"):
            save_file(load_file(path), path, metadata={"format": "pt"})
        index = json.loads((tmp_path / "old" / INDEX).read_text())
        del index["metadata"]["save_id"]
        (tmp_path / "old" / INDEX).write_text(json.dumps(index))
        assert_equal_models(load(tmp_path / "old", ngram_tables=placement), tiny(0))
    shards = sorted(path.name for path in (tmp_path / "new").glob("*.safetensors"))
    for count in range(1, len(shards)):
        mixed = Path(shutil.copytree(tmp_path / "old", tmp_path / f"mixed-{count}"))
        for name in shards[:count]:
            shutil.copy(tmp_path / "new" / name, mixed)
        with pytest.raises(ValueError, match=r"model-0000\d-of-0000\d\.safetensors.* not of the same save"):
            load(mixed, ngram_tables=placement)
        shutil.copy(tmp_path / "new" / INDEX, mixed)
        with pytest.raises(ValueError, match="not of the same save"):
            load(mixed, ngram_tables=placement)
        index = json.loads((mixed / INDEX).read_text())
        index["metadata"]["save_id"] = None  # as the error says, for who changes files himself
        (mixed / INDEX).write_text(json.dumps(index))
        load(mixed, ngram_tables=placement)


def test_a_model_saved_next_to_an_adapter_is_told(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logging.get_logger("modeling_longcat_lite.checkpoint_saving"), "warning", said.append)
    tiny(0).save_pretrained(tmp_path)
    assert not said
    (tmp_path / "adapter_config.json").write_text("{}")
    tiny(0).save_pretrained(tmp_path)
    assert len(said) == 1 and "adapter_config.json" in said[0]


def test_a_single_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "folder" / "file"
    write_whole(path, b"first")
    with pytest.raises(RuntimeError), whole_file(path) as beside:
        beside.write_bytes(b"second")
        assert path.read_bytes() == b"first"
        raise RuntimeError
    assert path.read_bytes() == b"first" and names(tmp_path) == {"folder/file"}


def test_two_processes_that_save_at_the_same_time_leave_one_of_their_states(tmp_path):
    with staged_files(tmp_path) as first, staged_files(tmp_path) as second:
        for staged in (first, second):
            for name in ("a", "b"):
                (staged.new / name).write_text(staged.place.name)
        second.swap()
        first.swap(stale=["c"])
    assert {(tmp_path / name).read_text() for name in "ab"} == {first.place.name}
    assert names(tmp_path) == {"a", "b"}


@pytest.mark.parametrize("journal", ["{", '{"staged": "../x", "new": [], "old": []}', "[]", '{"staged": "gone"}'])
def test_a_journal_that_is_none_is_named(tmp_path, journal):
    (tmp_path / "unfinished_save.json").write_text(journal)
    with pytest.raises(ValueError, match=r"unfinished_save\.json"):
        tiny(0).save_pretrained(tmp_path)
    (tmp_path / "unfinished_save.json").write_text('{"staged": ".save-x.partial", "new": [], "old": []}')
    with pytest.raises(ValueError, match=r"\.save-x\.partial with its files is gone"):
        tiny(0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a save to this folder was not finished"):
        load(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "nowhere")])
    assert ended.value.code == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
