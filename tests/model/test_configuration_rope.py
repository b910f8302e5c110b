# SPDX-License-Identifier: Apache-2.0
"""RoPE in `config.json`: read in every spelling of older and newer readers, refused where two of them disagree."""

import json

import pytest
import torch
from config_files import PUBLISHED, RELEASED_YARN, as_written_before, write_and_load, written
from conftest import PLAIN_ROPE, YARN_ROPE, randomize, tiny_config

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM

SCALING = {key: value for key, value in YARN_ROPE.items() if key not in ("rope_type", "rope_theta")}


@pytest.mark.parametrize(
    ("legacy", "expected"),
    [
        ({"rope_theta": 10000.0, "rope_scaling": {**SCALING, "type": "yarn"}}, YARN_ROPE),
        ({"rope_theta": 10000.0, "rope_scaling": {**SCALING, "rope_type": "yarn"}}, YARN_ROPE),
        ({"rope_theta": 10000.0, "rope_scaling": {**SCALING, "type": "yarn", "rope_type": "yarn"}}, YARN_ROPE),
        ({"rope_scaling": {**SCALING, "type": "yarn"}}, {**YARN_ROPE, "rope_theta": 5_000_000.0}),
        ({"rope_theta": 10000.0, "rope_scaling": None}, PLAIN_ROPE),
        ({"rope_theta": 10000.0}, PLAIN_ROPE),
        ({"rope_scaling": None}, {**PLAIN_ROPE, "rope_theta": 5_000_000.0}),
        ({"rope_parameters": YARN_ROPE}, YARN_ROPE),
        ({"rope_parameters": {**SCALING, "type": "yarn", "rope_theta": 10000.0}}, YARN_ROPE),
        (
            {"rope_parameters": YARN_ROPE, "rope_theta": 10000.0, "rope_scaling": {**SCALING, "type": "yarn"}},
            YARN_ROPE,
        ),
        ({"rope_parameters": PLAIN_ROPE, "rope_theta": 10000.0, "rope_scaling": None}, PLAIN_ROPE),
        ({}, RELEASED_YARN),
    ],
    ids=[
        "type",
        "rope_type",
        "both keys",
        "no theta",
        "null scaling",
        "theta alone",
        "null alone",
        "rope_parameters",
        "rope_parameters with type",
        "old and new",
        "old and new, plain",
        "nothing",
    ],
)
def test_rope_is_read_in_every_spelling(legacy, expected, tmp_path):
    fields = {key: value for key, value in PUBLISHED.items() if not key.startswith("rope_")}
    config = write_and_load({**fields, **legacy}, tmp_path)
    assert {key: value for key, value in config.rope_parameters.items() if key != "type"} == expected
    assert config.rope_parameters["rope_type"] == expected["rope_type"]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ({"rope_theta": 1e6}, "rope_theta"),
        ({"rope_scaling": {**SCALING, "type": "yarn", "factor": 4.0}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 8.0}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "rope_type"),
        ({"rope_scaling": None}, "rope_scaling"),
        ({"rope_scaling": {**SCALING, "type": "yarn", "beta_fast": 16.0}}, "beta_fast"),
    ],
    ids=["theta", "factor", "type", "rope_type", "nulled", "added"],
)
def test_an_edit_of_one_rope_field_alone_is_refused(edit, named, tmp_path):
    fields = as_written_before(written(tiny_config(rope_parameters=YARN_ROPE), tmp_path))
    assert write_and_load(fields, tmp_path).rope_parameters["rope_type"] == "yarn"
    with pytest.raises(ValueError, match=named):
        write_and_load({**fields, **edit}, tmp_path)


def test_yarn_added_to_the_old_field_alone_is_refused(tmp_path):
    fields = as_written_before(written(tiny_config(), tmp_path))
    with pytest.raises(ValueError, match="rope_scaling"):
        write_and_load({**fields, "rope_scaling": {**SCALING, "type": "yarn"}}, tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        *(tiny_config(rope_parameters=rope).to_dict() for rope in (YARN_ROPE, PLAIN_ROPE)),
        PUBLISHED,
        {**PUBLISHED, "rope_scaling": None},
    ],
    ids=["yarn", "plain", "released", "released, plain"],
)
def test_files_of_today_and_of_before_say_the_same(fields, tmp_path):
    config = write_and_load({**fields, "architectures": PUBLISHED["architectures"]}, tmp_path)
    config.rope_parameters.pop("type", None)  # transformers keeps the key of released files beside its own
    today = written(config, tmp_path)
    assert write_and_load(today, tmp_path).to_dict() == config.to_dict()
    assert written(write_and_load(today, tmp_path), tmp_path) == today
    assert write_and_load(as_written_before(today), tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize("rope", [YARN_ROPE, PLAIN_ROPE], ids=["yarn", "plain"])
def test_a_folder_of_before_computes_the_same(rope, tmp_path):
    input_ids = torch.arange(5, 61).view(1, 56)
    model = randomize(LongCatLiteForCausalLM(tiny_config(rope_parameters=rope))).eval()
    model.save_pretrained(tmp_path)
    for rewrite in (dict, as_written_before):
        fields = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(rewrite(fields)))
        with torch.no_grad():
            found = LongCatLiteForCausalLM.from_pretrained(tmp_path)(input_ids).logits
            assert torch.equal(found, model(input_ids).logits)


def test_rope_is_written_once_and_in_the_spelling_of_every_reader(tmp_path):
    for rope, scaling in (
        (YARN_ROPE, {**SCALING, "type": "deepseek_yarn", "rope_type": "deepseek_yarn"}),
        (PLAIN_ROPE, None),
    ):
        fields = written(tiny_config(rope_parameters=rope), tmp_path)
        assert {key: value for key, value in fields.items() if "rope_" in key and key != "qk_rope_head_dim"} == {
            "rope_theta": 10000.0,
            "rope_scaling": scaling,
        }


def test_an_edit_of_the_saved_field_counts(tmp_path):
    fields = written(tiny_config(rope_parameters=YARN_ROPE), tmp_path)
    for edit, changed in (
        ({"rope_theta": 1e6}, {"rope_theta": 1e6}),
        ({"rope_scaling": {**fields["rope_scaling"], "factor": 4.0}}, {"factor": 4.0}),
    ):
        assert write_and_load({**fields, **edit}, tmp_path).rope_parameters == {**YARN_ROPE, **changed}
    assert write_and_load({**fields, "rope_scaling": None}, tmp_path).rope_parameters == PLAIN_ROPE


def test_two_rope_types_in_one_field_are_refused():
    with pytest.raises(ValueError, match="rope_type"):
        LongCatLiteConfig(rope_scaling={**SCALING, "type": "yarn", "rope_type": "linear"})


def test_yarn_without_its_factor_is_refused():
    with pytest.raises(ValueError, match="factor"):
        LongCatLiteConfig(rope_parameters={key: value for key, value in YARN_ROPE.items() if key != "factor"})
