# SPDX-License-Identifier: Apache-2.0
"""Every accelerate file: its head, its keys, and what accelerate makes of it."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from accelerated_model import launch_environment
from conftest import tiny_config

from modeling_longcat_lite import LongCatLiteForCausalLM

CONFIGS = sorted(Path("training/accelerate_configs").glob("*.yaml"))
every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def test_there_are_configs():
    assert {path.stem for path in CONFIGS} >= {"ddp", "fsdp2", "fsdp2_tables_sharded"}


@every_config
def test_head_says_what_it_needs_how_to_launch_and_how_to_override(path):
    text = path.read_text(encoding="utf-8")
    head = text[: text.index("\n\n")]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "Needs:" in head and "python -m eval.fit.training" in head
    assert f"accelerate launch --config_file training/accelerate_configs/{path.name}" in head
    assert "To override" in head


@every_config
def test_accelerate_reads_it(path):
    # Unknown keys at the top raise.
    config = load_config_from_file(str(path))
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.distributed_type == DistributedType(given["distributed_type"])
    assert config.num_processes == given["num_processes"] > 1
    # Anything else would hold instead of a recipe's `bf16: false`.
    assert config.mixed_precision == "no"
    if path.stem.startswith("fsdp2"):
        environment = launch_environment(path)
        assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["FSDP_VERSION"] == "2"
        for key, value in given["fsdp_config"].items():
            name = {"fsdp_transformer_layer_cls_to_wrap": "fsdp_transformer_cls_to_wrap"}.get(key, key).upper()
            assert environment[name] == (str(value).lower() if isinstance(value, bool) else str(value)), key


@pytest.mark.parametrize("path", [path for path in CONFIGS if "fsdp" in path.stem], ids=lambda path: path.stem)
def test_the_classes_to_wrap_are_those_of_the_model(path):
    model = LongCatLiteForCausalLM(tiny_config())
    found = {type(module).__name__ for module in model.modules()}
    assert set(launch_environment(path)["FSDP_TRANSFORMER_CLS_TO_WRAP"].split(",")) <= found
