# SPDX-License-Identifier: Apache-2.0
"""Result files: whose numbers they are, and the errors of broken ones."""

import json
import shutil

import pytest
import torch
from conftest import CONFORMANCE, tiny_config

from eval.reports.results import config_hash, model_identity, read_results, result_file, weights_hash
from model_cards.card import CardSources, make_card
from modeling_longcat_lite import LongCatLiteForCausalLM

RESULT = {"task": "gsm8k", "metric": "exact_match", "value": 0.5}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LongCatLiteForCausalLM(tiny_config())


def write(path, **changes):
    path.write_text(json.dumps({"model": {"name": "m"}, "evaluation": "harness", "results": [RESULT]} | changes))
    return path


def test_identity_survives_shards_and_another_folder(model, tmp_path):
    model.save_pretrained(tmp_path / "one")
    model.config.use_cache = False
    model.save_pretrained(tmp_path / "two", max_shard_size="20KB")
    assert len(list((tmp_path / "two").glob("*.safetensors"))) > 1
    one, two = model_identity(tmp_path / "one"), model_identity(tmp_path / "two")
    assert one.pop("name") == "one" and two.pop("name") == "two"
    assert one == two


def test_numbers_of_a_released_config_are_those_of_the_model_saved_again(tmp_path):
    """The kind of RoPE is said with `type` there, and with both keys by what this package writes."""
    LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "yarn").save_pretrained(tmp_path / "saved")
    folders = (tmp_path / "saved", shutil.copytree(CONFORMANCE / "yarn", tmp_path / "released"))
    hashes = [{config_hash(folder), config_hash(folder, respelled=True)} for folder in folders]
    assert config_hash(folders[0]) != config_hash(folders[1]) and hashes[0] == hashes[1]
    for measured, shown in (folders, folders[::-1]):
        file = tmp_path / "results.json"
        file.write_text(json.dumps(result_file(measured, "harness", [RESULT], seed=0)))
        assert "gsm8k" in make_card(shown, CardSources(results=[file], license="mit")).text
        with pytest.raises(ValueError, match="its config_sha256"):
            read_results(file, model_identity(shown))


@pytest.mark.parametrize("changed", ["config_sha256", "weights_sha256"])
def test_numbers_of_another_model_are_refused(model, tmp_path, changed):
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "results.json"
    file.write_text(json.dumps(result_file(tmp_path / "model", "harness", [RESULT], seed=0)))
    assert read_results(file, model_identity(tmp_path / "model"))["results"] == [RESULT]
    if changed == "config_sha256":
        model.config.routed_scaling_factor *= 2
    else:
        model.lm_head.weight.data.mul_(2)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=f"results.json was measured on another model: its {changed}"):
        read_results(file, model_identity(tmp_path / "other"))


def test_a_row_that_changed_is_another_model(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "before")
    model.model.ngram_embeddings.embedders[3].weight.data[-1] += 1
    model.save_pretrained(tmp_path / "after")
    for limit in (2**30, 0):  # whole, and in pieces, which are all of so small a table
        monkeypatch.setattr("eval.reports.results.READ_WHOLE", limit)
        assert weights_hash(tmp_path / "before") != weights_hash(tmp_path / "after")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"results": [RESULT, {"task": "drop", "value": 1.0}]}, r"results\[1\] lacks metric"),
        ({"results": [RESULT | {"value": "high"}]}, r"results\[0\].value is 'high', not a number"),
        ({"results": [RESULT | {"value": True}]}, r"results\[0\].value is True, not a number"),
        ({"results": [RESULT | {"task": 3}]}, r"results\[0\].task is 3, not text"),
        ({"results": ["drop"]}, r"results\[0\] is 'drop', not an object"),
        ({"results": 3}, r"`results` is 3, not a list"),
        ({"model": "mine"}, r"`model` is 'mine', not an object"),
        ({"machine": None}, r"`machine` is None, not an object"),
        ({"evaluation": "../../harness"}, r"`evaluation` is '../../harness', not a name"),
    ],
)
def test_broken_results_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_results(write(tmp_path / "results.json", **changes))


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {}}'])
def test_what_is_no_result_file(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is no result file"):
        read_results(path)


def test_folder_without_weights(tmp_path):
    LongCatLiteForCausalLM(tiny_config()).config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no model"):
        model_identity(tmp_path)
