# SPDX-License-Identifier: Apache-2.0
"""Data flows one way, and the package can be copied flat to the Hub: what each file may import."""

import ast
import importlib
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "modeling_longcat_lite"

# File: the files of the package that it may import. `modeling_longcat_lite` imports all of them.
MAY_IMPORT = {
    "configuration_validation": set(),
    "configuration_longcat_lite": {"configuration_validation"},
    "transformers_versions": set(),
    "visible_tokens": set(),
    "plain_weights": set(),
    "ngram_hashing": {"visible_tokens"},
    "ngram_kernels": set(),
    "ngram_quantization": set(),
    "ngram_row_cache": set(),
    "safetensors_header": set(),
    "weight_files": {"safetensors_header"},
    "fp8_blocks": {"safetensors_header", "weight_files"},
    "ngram_row_overlay": set(),
    "ngram_tables": {"ngram_quantization", "ngram_row_cache", "ngram_row_overlay", "safetensors_header"},
    "ngram_cache": {"transformers_versions"},
    "document_mask": {"transformers_versions", "visible_tokens"},
    "sparse_attention": {"visible_tokens"},
    "rms_norm": set(),
    "rotary_embedding": set(),
    "whole_files": set(),
    "checkpoint_layout": {"fp8_blocks", "safetensors_header", "weight_files"},
    "ngram_embedding": {
        "configuration_longcat_lite",
        "ngram_hashing",
        "ngram_kernels",
        "ngram_quantization",
        "ngram_tables",
        "plain_weights",
    },
    "ngram_hot_rows": {"configuration_longcat_lite", "ngram_embedding"},
    "ngram_row_delta": {"configuration_longcat_lite", "ngram_hot_rows", "safetensors_header", "whole_files"},
    "adapter_rows": {"checkpoint_layout", "ngram_row_delta"},
    "checkpoint_saving": {
        "checkpoint_layout",
        "checkpoint_loading",
        "ngram_row_delta",
        "safetensors_header",
        "sparse_attention",
        "weight_files",
        "whole_files",
    },
    "checkpoint_loading": {
        "adapter_rows",
        "checkpoint_layout",
        "configuration_longcat_lite",
        "fp8_blocks",
        "mtp",
        "ngram_hot_rows",
        "ngram_quantization",
        "ngram_row_cache",
        "ngram_row_delta",
        "ngram_tables",
        "safetensors_header",
        "sparse_attention",
        "whole_files",
        "weight_files",
    },
    "mla": {"configuration_longcat_lite", "plain_weights", "rms_norm", "rotary_embedding"},
    "moe": {"configuration_longcat_lite"},
    "decoder_layer": {"configuration_longcat_lite", "rms_norm", "mla", "moe"},
    "mtp": {"configuration_longcat_lite", "rms_norm", "rotary_embedding", "decoder_layer", "document_mask", "mla"},
    "draft_candidates": {"mtp", "transformers_versions"},
    "model_inputs": {"configuration_longcat_lite", "ngram_cache", "ngram_hashing", "visible_tokens"},
    "generation_longcat_lite": {
        "draft_candidates",
        "model_inputs",
        "ngram_cache",
        "sparse_attention",
        "transformers_versions",
    },
}
MAY_IMPORT["modeling_longcat_lite"] = set(MAY_IMPORT)
FOLDERS_MAY_IMPORT = {
    "tokenization": {"tokenization"},
    "training": {"training", "tokenization", "modeling_longcat_lite"},
    "eval": {"eval", "training", "tokenization", "modeling_longcat_lite"},  # it measures training too
    "model_cards": {"model_cards", "eval", "training", "tokenization", "modeling_longcat_lite"},  # made of results
}
INSTALLED_WITH_THE_PACKAGE = {"torch", "transformers", "safetensors", "huggingface_hub"}
OPTIONAL = {"triton"}  # imported at the top of a file, in a `try` that an ImportError leaves

package_file = pytest.mark.parametrize("file", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
folder_file = pytest.mark.parametrize(
    "file",
    [path for folder in FOLDERS_MAY_IMPORT for path in sorted((ROOT / folder).rglob("*.py"))],
    ids=lambda path: "/".join(path.relative_to(ROOT).parts),
)


def imports(file: Path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


def optional_imports(file: Path) -> list[ast.Import | ast.ImportFrom]:
    """Those in a top-level `try` with `except ImportError`, which transformers does not ask for either."""
    return [
        node
        for block in ast.parse(file.read_text()).body
        if isinstance(block, ast.Try) and [ast.unparse(handler.type) for handler in block.handlers] == ["ImportError"]
        for node in block.body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def roots(nodes: list[ast.Import | ast.ImportFrom]) -> list[str]:
    return [name.split(".")[0] for name in absolute_names(nodes)]


def absolute_names(nodes: list[ast.Import | ast.ImportFrom]) -> list[str]:
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif node.level == 0:
            names.append(node.module)
    return names


@package_file
def test_siblings_follow_the_table(file):
    siblings = {node.module for node in imports(file) if isinstance(node, ast.ImportFrom) and node.level}
    allowed = set(MAY_IMPORT) if file.stem == "__init__" else MAY_IMPORT[file.stem]
    assert siblings <= allowed


def test_the_modelling_file_imports_every_sibling():
    # transformers copies what it finds from here; a file that nothing imports would be missing on the Hub.
    reached, waiting = set(), ["modeling_longcat_lite"]
    while waiting:
        stem = waiting.pop()
        reached.add(stem)
        nodes = imports(PACKAGE / f"{stem}.py")
        siblings = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level}
        waiting += siblings - reached
    assert reached == {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(MAY_IMPORT)


@package_file
def test_remote_code_rules(file):
    for node in imports(file):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module, ast.unparse(node)
            assert "*" not in {alias.name for alias in node.names}, ast.unparse(node)
    required = Counter(roots(imports(file)))
    required.subtract(name for name in roots(optional_imports(file)) if name in OPTIONAL)
    assert set(+required) <= INSTALLED_WITH_THE_PACKAGE | set(sys.stdlib_module_names)
    text = file.read_text()
    assert "os.environ" not in text and "getenv" not in text
    assert "hasattr(" not in text


@folder_file
def test_folders_follow_the_table(file):
    folder = file.relative_to(ROOT).parts[0]
    names = absolute_names(imports(file))
    ours = {name.split(".")[0] for name in names} & ({*FOLDERS_MAY_IMPORT} | {"modeling_longcat_lite", "tests"})
    assert ours <= FOLDERS_MAY_IMPORT[folder]
    assert not any(name.startswith("modeling_longcat_lite.") for name in names), "use the package's public names"


@folder_file
def test_no_file_hides_a_library(file):
    assert file.stem == "__init__" or importlib.util.find_spec(file.stem) is None


def test_the_top_level_is_the_agreed_one():
    allowed = {"pyproject.toml", "README.md", "Makefile", "constraints.txt", "CONTRIBUTING.md", "CHANGELOG.md"}
    allowed |= {
        "LICENSE",
        "NOTICE",
        "AGENTS.md",
        "CITATION.cff",
        *FOLDERS_MAY_IMPORT,
        "modeling_longcat_lite",
        "tests",
    }
    written = {"outputs", "build", "dist"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert {name for name in found if not name.endswith(".egg-info")} <= allowed | written
