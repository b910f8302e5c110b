# SPDX-License-Identifier: Apache-2.0
"""LongCat-Flash-Lite-Sparse and LongCat-2.0: their fields and tensor names are read, what they add is refused by name.

The configs have the fields of the published ones, at small sizes.
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from oe_checkpoints import LONGCAT_2, SPARSE, TOKENS, TOPK, WEIGHTS, logits, write
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from eval.checkpoints.merge_rows import merge
from eval.checkpoints.quantize import convert
from eval.reports.results import config_hash
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.ngram_quantization import quantize_rows
from modeling_longcat_lite.ngram_row_files import sample_base, write_row_delta

KINDS = pytest.mark.parametrize("fields", [SPARSE, LONGCAT_2], ids=["sparse", "2.0"])


@pytest.fixture(scope="module", params=[SPARSE, LONGCAT_2], ids=["sparse", "2.0"])
def published(request, tmp_path_factory) -> tuple[LongCatLiteForCausalLM, Path]:
    return write(tmp_path_factory.mktemp("oe"), request.param)


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What transformers' loggers say."""
    lines: list[str] = []
    for name in ("transformers.modeling_utils", "modeling_longcat_lite.sparse_attention"):
        monkeypatch.setattr(logging.get_logger(name), "warning", lambda line, *_, **__: lines.append(line))
    return lines


def test_fields_are_read_under_both_names(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LONGCAT_2))
    config = LongCatLiteConfig.from_pretrained(tmp_path)
    assert (config.max_ngram_order, config.num_subtables_per_order, config.num_subtables) == (5, 4, 16)
    assert config.subtable_sizes == [int(10.567 * 64 + 2 * i + 1) for i in range(16)]
    assert (config.oe_neighbor_num, config.oe_vocab_size_ratio) == (5, 10.567)
    assert config.rope_parameters["rope_type"] == "yarn"
    assert config.rope_parameters["factor"] == 120
    assert config.mtp_use_ngram_embedding is False
    assert config.model_type == "longcat_flash_ngram"
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert not any(name.startswith("oe_") for name in saved)
    assert (saved["emb_neighbor_num"], saved["ngram_vocab_size_ratio"]) == (5, 10.567)
    assert (saved["attention_method"], saved["index_topk"]) == ("LSA", TOPK)
    assert saved["rope_scaling"]["type"] == "deepseek_yarn"
    assert LongCatLiteConfig.from_pretrained(tmp_path).to_dict() == LongCatLiteConfig(**saved).to_dict()


def test_sizes_of_longcat_2():
    """The published sizes: tables of 16.5 million rows, 135 billion parameters of them."""
    config = LongCatLiteConfig(
        vocab_size=163840, hidden_size=8192, oe_vocab_size_ratio=100.567, oe_neighbor_num=5, oe_split_num=4
    )
    assert config.subtable_width == 512
    assert config.subtable_sizes[0] == 16476898
    assert round(sum(config.subtable_sizes) * 512 / 1e9) == 135


def test_the_same_logits_in_every_placement(published):
    model, folder = published
    expected = logits(model)
    for placement in ("resident", "host", "disk"):
        loaded = LongCatLiteForCausalLM.from_pretrained(folder, ngram_tables=placement)
        assert torch.equal(logits(loaded), expected), placement
        assert loaded.model.mtp is not None
    drafted = loaded.generate(TOKENS[:, :8], max_new_tokens=8, use_mtp=True, do_sample=False, eos_token_id=None)
    plain = model.generate(TOKENS[:, :8], max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(drafted, plain)


@pytest.mark.parametrize("placement", ["resident", "disk"])
def test_saving_writes_the_released_names_and_says_what_is_lost(published, placement, tmp_path, said):
    _, folder = published
    loaded = LongCatLiteForCausalLM.from_pretrained(folder, ngram_tables=placement)
    assert len([line for line in said if "12 tensors of the checkpoint's indexer" in line]) == 1
    assert not any("oe_embed" in line or "not used" in line for line in said)
    loaded.save_pretrained(tmp_path)
    assert any("12 indexer tensors" in line and str(tmp_path) in line for line in said)
    ours = load_file(folder.parent / "ours" / WEIGHTS)
    saved = load_file(tmp_path / WEIGHTS)
    assert saved.keys() == ours.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in ours.items())

    said.clear()
    again = LongCatLiteForCausalLM.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")
    assert not any("indexer" in line for line in said)
    with pytest.raises(ValueError, match="`index_topk`"):  # as before
        again(torch.zeros(1, TOPK + 1, dtype=torch.long))


def test_tables_of_few_bits(published, tmp_path):
    model, folder = published
    convert(folder, tmp_path / "int8", 8, 2**20)
    stored = load_file(tmp_path / "int8" / WEIGHTS)
    table = model.model.ngram_embeddings.embedders[3].weight.detach()
    assert torch.equal(stored["model.oe_embed_tokens3.packed"], quantize_rows(table, 8))
    convert(folder.parent / "ours", tmp_path / "ours", 8, 2**20)
    expected = logits(LongCatLiteForCausalLM.from_pretrained(tmp_path / "ours"))
    for placement in ("resident", "disk"):
        loaded = LongCatLiteForCausalLM.from_pretrained(tmp_path / "int8", ngram_tables=placement)
        assert torch.equal(logits(loaded), expected), placement


def test_changed_rows_are_merged(published, tmp_path):
    """Into the tables under their own names; everything else stays as it is."""
    _, folder = published
    model = LongCatLiteForCausalLM.from_pretrained(folder, ngram_tables="disk")
    width = model.config.subtable_width
    rows = [(torch.tensor([0, i + 1]), torch.full((2, width), i + 0.5)) for i in range(model.config.num_subtables)]
    write_row_delta(tmp_path / "delta.safetensors", model.config, rows, str(folder))
    merge(folder, [tmp_path / "delta.safetensors"], tmp_path / "merged")
    before, merged = load_file(folder / WEIGHTS), load_file(tmp_path / "merged" / WEIGHTS)
    assert merged.keys() == before.keys()
    for i, (ids, values) in enumerate(rows):
        before[f"model.oe_embed_tokens{i}.weight"][ids] = values
    assert all(torch.equal(merged[name], tensor) for name, tensor in before.items())
    model.load_ngram_rows(tmp_path / "delta.safetensors")
    assert torch.equal(logits(LongCatLiteForCausalLM.from_pretrained(tmp_path / "merged")), logits(model))


def test_merging_tells_rows_of_another_model(published, tmp_path, monkeypatch):
    model, folder = published
    warnings: list[str] = []
    monkeypatch.setattr(logging.get_logger("eval.checkpoints.merge_rows"), "warning", warnings.append)
    width = model.config.subtable_width
    rows = [(torch.tensor([1]), torch.zeros(1, width)) for _ in model.config.subtable_sizes]
    sample = sample_base(
        model.config, lambda name, ids: None if name == "words" else torch.full((len(ids), width), 7.0)
    )
    write_row_delta(tmp_path / "delta.safetensors", model.config, rows, "other", sample)
    merge(folder, [tmp_path / "delta.safetensors"], tmp_path / "merged")
    assert len(warnings) == 1 and "other" in warnings[0] and "n-gram tables" in warnings[0]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.oe_embed_tokens3.weight", lambda t, name: t.pop(name)),
        ("model.oe_embed_proj0.weight", lambda t, name: t.update({name: torch.zeros(2, 2)})),
        ("model.mtp.oe_embed_tokens0.weight", lambda t, name: t.update({name: torch.zeros(2, 2)})),
        ("model.oe_embed_tokens12.weight", lambda t, name: t.update({name: torch.zeros(2, 2)})),
    ],
    ids=["missing", "shape", "tables of the head", "too many"],
)
def test_what_does_not_fit_is_named_as_the_file_has_it(name, change, tmp_path):
    _, folder = write(tmp_path, SPARSE)
    weights = load_file(folder / WEIGHTS)
    change(weights, name)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"`{name}`"):
        LongCatLiteForCausalLM.from_pretrained(folder)


def test_a_head_with_tables_of_its_own_is_left_out_on_request(tmp_path):
    model, folder = write(tmp_path, LONGCAT_2)
    weights = load_file(folder / WEIGHTS)
    weights |= {f"model.mtp.oe_embed_{part}0.weight": torch.zeros(2, 2) for part in ("tokens", "proj")}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="num_nextn_predict_layers=0"):
        LongCatLiteForCausalLM.from_pretrained(folder)
    loaded = LongCatLiteForCausalLM.from_pretrained(folder, num_nextn_predict_layers=0)
    assert loaded.model.mtp is None
    assert torch.equal(logits(loaded), logits(model))


def edited(folder: Path, fields: dict) -> Path:
    (folder / "config.json").write_text(json.dumps({key: v for key, v in fields.items() if v != "absent"}))
    return folder


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"emb_neighbor_num": 3}, "`oe_neighbor_num` is 4 but `emb_neighbor_num`"),
        ({"oe_split_num": 5}, "`hidden_size`"),
        ({"index_topk": "absent"}, "`index_topk`"),
        ({"index_topk": 0}, "`index_topk`"),
        ({"attention_method": "DSA"}, "`attention_method`"),
        ({"mtp_replicate_modules": False}, "`mtp_replicate_modules`"),
        ({"mtp_num_layers": "3"}, "`mtp_num_layers` must be an integer, got '3'"),
        ({"index_topk": True}, "`index_topk` must be an integer"),
        ({"rope_scaling": "deepseek_yarn"}, "`rope_scaling` must be an object"),
        ({"mtp_disable_over_tokenizer": 1}, "`mtp_disable_over_tokenizer`"),
        ({"mtp_disable_over_tokenizer": True, "mtp_use_ngram_embedding": True}, "`mtp_disable_over_tokenizer`"),
        ({"ngram_exclude_sp_token": True}, "`ngram_exclude_sp_token`"),
        ({"ngram_fix_normalize_factor": True}, "`ngram_fix_normalize_factor`"),
        ({"scale_word_embedding": None}, "`scale_word_embedding`"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(changes, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        LongCatLiteConfig.from_pretrained(edited(tmp_path, SPARSE | changes))


def test_nulls_say_nothing(tmp_path):
    config = LongCatLiteConfig.from_pretrained(
        edited(tmp_path, SPARSE | {"ngram_vocab_size_ratio": None, "mtp_disable_over_tokenizer": None})
    )
    assert config.ngram_vocab_size_ratio == 7.8
    config = LongCatLiteConfig.from_pretrained(edited(tmp_path, {"oe_neighbor_num": None, "emb_neighbor_num": 3}))
    assert config.emb_neighbor_num == 3


def test_a_head_trained_on_ngrams_drafts_from_them(tmp_path):
    fields = LONGCAT_2 | {"mtp_disable_over_tokenizer": False}
    assert LongCatLiteConfig.from_pretrained(edited(tmp_path, fields)).mtp_use_ngram_embedding is True


def test_an_indexer_without_a_limit_is_refused(published):
    fields = json.loads((published[1] / "config.json").read_text())
    assert fields["attention_method"] == "LSA"
    with pytest.raises(ValueError, match=r"`model\.layers\.0\.self_attn\.0\.indexer\..*`index_topk`"):
        LongCatLiteForCausalLM.from_pretrained(published[1], attention_method="MLA", index_topk=None)


def test_a_hash_made_before_these_fields_stays(tmp_path):
    """Result files carry it: fields at what they were before they existed do not change it."""
    config = tiny_config()
    config.save_pretrained(tmp_path)
    before = config_hash(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    for name in ("attention_method", "scale_word_embedding"):
        del fields[name]
    for older in (fields, {**fields, "index_topk": None}):
        assert config_hash(edited(tmp_path, older)) == before
    assert config_hash(edited(tmp_path, fields | {"scale_word_embedding": False})) != before
