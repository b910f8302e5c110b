# SPDX-License-Identifier: Apache-2.0
"""Files around the code that state facts of it: they agree with the config, the project file and the Makefile."""

import re
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml

from modeling_longcat_lite import LongCatLiteConfig

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
PICTURE = Path(".github/data_flow.svg")
FORMS = sorted(path for path in Path(".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


def read_yaml(path: str | Path) -> Any:
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def test_the_picture_shows_the_figures_of_the_released_config():
    texts = [node.text for node in ElementTree.parse(PICTURE).iter("{http://www.w3.org/2000/svg}text")]
    c = LongCatLiteConfig()
    tables = sum(c.subtable_sizes) * c.subtable_width
    experts = c.num_layers * c.n_routed_experts * 3 * c.hidden_size * c.expert_ffn_hidden_size
    rows = {round(size / 1e6, 1) for size in c.subtable_sizes}
    assert rows == {10.2} and c.max_ngram_order == 4  # the picture gives one figure for all tables, and orders 2 to 4
    for text in (
        f"orders 2, 3 and 4, hashed {c.num_subtables_per_order} ways each: {c.num_subtables} row ids",
        f"{c.num_subtables} sub-tables: {tables / 1e9:.1f}B parameters",
        f"{max(rows)}M rows of {c.subtable_width} numbers each, only looked up:",
        f"{c.num_subtables} projections, {c.subtable_width} → {c.hidden_size:,}",
        f"{c.vocab_size:,} rows of",
        f"{c.hidden_size:,} numbers",
        f"mean of the word row and {c.num_subtables} projected rows",
        f"{c.num_layers} × shortcut-connected layer",
        f"mixture of experts, {c.moe_topk} per token",
        f"{c.n_routed_experts} routed: {experts / 1e9:.1f}B parameters in {c.num_layers} layers",
        f"{c.zero_expert_num} zero-computation: return their input",
        f"{c.num_attention_heads} heads",
        f"{c.ffn_hidden_size:,} wide",
        f"{c.num_hidden_layers} attentions, each",
        f"{c.kv_lora_rank} + {c.qk_rope_head_dim} per token",
        f"norm, lm_head: {c.hidden_size:,} → {c.vocab_size:,}",
    ):
        assert text in texts, text
    assert c.zero_expert_type == "identity" and c.embedding_amplification == "none" and c.scale_word_embedding
    assert PICTURE.stat().st_size < 12_000


def test_the_citation_is_of_this_version_and_licence():
    citation = read_yaml("CITATION.cff")
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert [reference["url"] for reference in citation["references"]] == [PROJECT["urls"]["Paper"]]


def test_the_workflow_tests_every_python_that_the_project_names():
    job = read_yaml(".github/workflows/ci.yml")["jobs"]["tests"]
    versions = job["strategy"]["matrix"]["python-version"]
    named = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", name) for name in PROJECT["classifiers"]]
    assert versions == [match[1] for match in named if match]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    default = re.search(r"^TORCH \?= (.*)$", Path("Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert default and default[1] in job["env"]["TORCH"]


def test_commits_are_checked_as_make_lint_checks_them():
    makefile = Path("Makefile").read_text(encoding="utf-8")
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    for hook in repository["hooks"]:
        command = hook["entry"].removesuffix(" --force-exclude")
        assert command.replace(".venv/bin", "\t$(BIN)", 1) in makefile, hook["id"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_ask_for_versions_and_config(path):
    fields = [field for field in read_yaml(path)["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids) and {"versions", "config"} <= set(ids)
    assert all(field["attributes"]["label"] for field in fields)
