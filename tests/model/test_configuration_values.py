# SPDX-License-Identifier: Apache-2.0
"""Numbers of a config that would make NaN, divide by zero or hang are refused by name; no torch is needed to tell."""

import math
import shutil
import subprocess
import sys

import pytest
from config_files import PUBLISHED, RELEASED_YARN, write_and_load
from conftest import CONFORMANCE, PLAIN_ROPE, YARN_ROPE, tiny_config

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM

NOT_FINITE = [math.nan, math.inf, -math.inf]
NO_NUMBERS = [True, "1", [1], {}]
FIELDS = {
    "rms_norm_eps": [*NOT_FINITE, *NO_NUMBERS, -1e-5, 0, 1e-50, None],
    "latent_norm_eps": [*NOT_FINITE, *NO_NUMBERS, -1e-6, 0.0, None],
    "routed_scaling_factor": [*NOT_FINITE, *NO_NUMBERS, -6.0, 0, 1e300],
    "initializer_range": [*NOT_FINITE, *NO_NUMBERS, -0.02],
    "attention_dropout": [*NOT_FINITE, *NO_NUMBERS, -0.1, 1, 1.5],
    "ngram_vocab_size_ratio": [*NOT_FINITE, *NO_NUMBERS, 1e300],
    "num_layers": [True, 2**31, 2**63, 2**20],
    "n_routed_experts": [True, 2**31, 2**62],
    "vocab_size": [True, 2**31, 10**400],
    "num_key_value_heads": [True, "32"],
    "head_dim": [True, 64.0],
    "zero_expert_num": [True, False],
    "num_nextn_predict_layers": [True, False, 1.0],
    "ngram_table_bits": [8.0, True],
    "mtp_num_layers": [True, 1.0],
    "index_topk": [True, 0, math.nan],
    "pad_token_id": [True, 1.5, "3", [3]],
    "bos_token_id": [True, "1"],
    "eos_token_id": [True, [2, True], "2"],
    "ngram_eos_token_id": [True, [False], 2.0],
    "hidden_act": [None, 3, [], "swish2"],
}
ROPE = {
    "rope_theta": [*NOT_FINITE, *NO_NUMBERS, 0, -1e4, 1, 0.5, None],
    "factor": [*NOT_FINITE, *NO_NUMBERS, 0, -8.0, 0.5, 1e-300, None],
    "original_max_position_embeddings": [*NOT_FINITE, *NO_NUMBERS, 0, -32, None],
    "attention_factor": [*NOT_FINITE, *NO_NUMBERS, 0, -1.0, 1e300],
    "beta_fast": [*NOT_FINITE, *NO_NUMBERS, 0, -32, 0.5],
    "beta_slow": [*NOT_FINITE, *NO_NUMBERS, 0, -1, 32, 64],
    "mscale": [*NOT_FINITE, *NO_NUMBERS, -1, 1e300],
    "mscale_all_dim": [*NOT_FINITE, *NO_NUMBERS, -1],
    "partial_rotary_factor": [math.nan, 0, 0.5, 2, True],
}


def cases(fields: dict[str, list]) -> list:
    return [pytest.param(name, value, id=f"{name}={value!r:.20}") for name in fields for value in fields[name]]


@pytest.mark.parametrize(("field", "value"), cases(FIELDS))
def test_a_value_out_of_range_is_named(field, value, tmp_path):
    with pytest.raises(ValueError, match=rf"`{field}`"):
        LongCatLiteConfig(**{field: value})
    with pytest.raises(ValueError, match=rf"`{field}`"):
        write_and_load({**PUBLISHED, field: value}, tmp_path)
    shutil.copy(CONFORMANCE / "base" / "model.safetensors", tmp_path)
    if field in vars(LongCatLiteConfig()):
        with pytest.raises(ValueError, match=rf"`{field}`"):
            LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "base", **{field: value})
        config = LongCatLiteConfig.from_pretrained(CONFORMANCE / "base")
        setattr(config, field, value)
        with pytest.raises(ValueError, match=rf"`{field}`"):
            LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "base", config=config)


@pytest.mark.parametrize(("field", "value"), cases(ROPE))
def test_a_rope_value_out_of_range_is_named(field, value, tmp_path):
    rope = {"beta_fast": 32.0, "beta_slow": 1.0, **YARN_ROPE, field: value}
    with pytest.raises(ValueError, match=rf"`{field}`"):
        tiny_config(rope_parameters=rope)
    scaling = {key: v for key, v in rope.items() if key not in ("rope_type", "rope_theta")} | {"type": "yarn"}
    if (field, value) != ("rope_theta", None):  # null says nothing in the older field
        theta = rope["rope_theta"]
        with pytest.raises(ValueError, match=rf"`{field}`"):
            write_and_load({**PUBLISHED, "rope_theta": theta, "rope_scaling": scaling}, tmp_path)
    with pytest.raises(ValueError, match=rf"`{field}`"):
        LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "yarn", rope_parameters=rope)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3"])
@pytest.mark.parametrize("value", [0, math.nan, -2.0, None])
def test_every_rope_type_wants_a_factor_in_range(kind, value):
    more = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    rope = {**PLAIN_ROPE, "rope_type": kind, "factor": value, **(more if kind == "llama3" else {})}
    with pytest.raises(ValueError, match="`factor`"):
        tiny_config(rope_parameters=rope)


def test_frequencies_of_llama3_and_longrope_are_in_range():
    llama3 = {**PLAIN_ROPE, "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32}
    with pytest.raises(ValueError, match=r"`low_freq_factor`.*`high_freq_factor`"):
        tiny_config(rope_parameters={**llama3, "low_freq_factor": 4.0, "high_freq_factor": 4.0})
    longrope = {**PLAIN_ROPE, "rope_type": "longrope", "original_max_position_embeddings": 32, "factor": 8.0}
    for factors in ([1.0, math.nan], [1.0, 0], "12", [True, 1.0]):
        with pytest.raises(ValueError, match="`short_factor`"):
            tiny_config(rope_parameters={**longrope, "long_factor": [1.0, 1.0], "short_factor": factors})
    tiny_config(rope_parameters={**longrope, "long_factor": [1.0, 2.0], "short_factor": [1.0, 1.0]})


@pytest.mark.parametrize("field", ["factor", "original_max_position_embeddings", "beta_fast", "low_freq_factor"])
def test_null_says_nothing_where_a_field_is_not_read(field):
    config = tiny_config(rope_parameters={**PLAIN_ROPE, field: None})
    assert config.rope_parameters["rope_type"] == "default"
    with pytest.raises(ValueError, match="`factor` in `rope_parameters` must be a number"):
        tiny_config(rope_parameters={**PLAIN_ROPE, "rope_type": "linear", "factor": None})


def test_settings_of_a_kind_of_layer_are_not_ignored():
    with pytest.raises(ValueError, match="`full_attention` in `rope_parameters` is an object"):
        tiny_config(rope_parameters={"full_attention": dict(PLAIN_ROPE)})


def test_values_in_use_are_in_range():
    LongCatLiteConfig(rms_norm_eps=1e-6, attention_dropout=0.1, initializer_range=0, routed_scaling_factor=1)
    LongCatLiteConfig(rope_parameters={**RELEASED_YARN, "factor": 120, "attention_factor": None, "mscale": 0.707})
    tiny_config(num_attention_heads=1, num_key_value_heads=1, pad_token_id=None, eos_token_id=[2, 5])


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as where it is not installed
from package.configuration_longcat_lite import LongCatLiteConfig
config = LongCatLiteConfig.from_pretrained(sys.argv[1])
assert config.subtable_sizes and config.hidden_act == "silu"
LongCatLiteConfig(hidden_act="gelu")  # known or not, nobody can tell
try:
    LongCatLiteConfig(hidden_act=3)
except ValueError as error:
    assert "`hidden_act`" in str(error)
    print("refused")
"""


def test_a_config_needs_no_torch(tmp_path):
    (tmp_path / "package").mkdir()
    for name in ("configuration_longcat_lite.py", "configuration_rope.py", "configuration_validation.py"):
        shutil.copy(CONFORMANCE.parents[1] / "modeling_longcat_lite" / name, tmp_path / "package")
    command = [sys.executable, "-c", WITHOUT_TORCH, CONFORMANCE / "yarn"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == "refused\n", result.stderr
