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
    "checkpoint_header": set(),
    "configuration_rope": set(),
    "ngram_quantization": {"checkpoint_header"},
    "configuration_validation": {"configuration_rope", "ngram_quantization"},
    "configuration_longcat_lite": {"configuration_rope", "configuration_validation"},
    "checkpoint_layout": {"checkpoint_header", "configuration_longcat_lite", "ngram_quantization"},
    "checkpoint_files": {"checkpoint_header", "checkpoint_layout"},
    "whole_files": set(),
    "ngram_row_files": {"checkpoint_header", "configuration_longcat_lite", "whole_files"},
    "adapter_rows": {"checkpoint_files", "ngram_row_files"},
    "transformers_versions": set(),
    "visible_tokens": set(),
    "attention_mask": {"transformers_versions", "visible_tokens"},
    "experts_quantization": {"checkpoint_header"},
    "checkpoint_fp8": {"checkpoint_files", "checkpoint_header", "checkpoint_layout", "experts_quantization"},
    "checkpoint_names": {"checkpoint_layout", "configuration_longcat_lite"},
    "sparse_attention": {"checkpoint_names", "visible_tokens"},
    "checkpoint_checks": {
        "checkpoint_files",
        "checkpoint_fp8",
        "checkpoint_header",
        "checkpoint_layout",
        "checkpoint_names",
        "configuration_longcat_lite",
        "experts_quantization",
        "sparse_attention",
    },
    "plain_weights": set(),
    "rms_norm": set(),
    "rotary_embedding": set(),
    "mla": {"configuration_longcat_lite", "plain_weights", "rms_norm", "rotary_embedding"},
    "moe": {"configuration_longcat_lite"},
    "decoder_layer": {"configuration_longcat_lite", "mla", "moe", "rms_norm"},
    "draft_head": {
        "attention_mask",
        "configuration_longcat_lite",
        "decoder_layer",
        "mla",
        "rms_norm",
        "rotary_embedding",
    },
    "ngram_row_store": set(),
    "ngram_table_files": {"checkpoint_header", "ngram_quantization"},
    "ngram_tables": {"ngram_quantization", "ngram_row_store", "ngram_table_files"},
    "checkpoint_loading": {
        "adapter_rows",
        "checkpoint_checks",
        "checkpoint_files",
        "checkpoint_fp8",
        "checkpoint_names",
        "configuration_longcat_lite",
        "draft_head",
        "experts_quantization",
        "ngram_row_files",
        "ngram_row_store",
        "ngram_table_files",
        "ngram_tables",
        "sparse_attention",
        "whole_files",
    },
    "checkpoint_saving": {
        "checkpoint_files",
        "checkpoint_header",
        "checkpoint_loading",
        "ngram_row_files",
        "sparse_attention",
        "whole_files",
    },
    "draft_generation": {"draft_head", "transformers_versions"},
    "ngram_cache": {"transformers_versions"},
    "ngram_hashing": {"visible_tokens"},
    "model_inputs": {"configuration_longcat_lite", "ngram_cache", "ngram_hashing", "visible_tokens"},
    "generation_longcat_lite": {
        "draft_generation",
        "model_inputs",
        "ngram_cache",
        "sparse_attention",
        "transformers_versions",
    },
    "ngram_kernels": set(),
    "ngram_embedding": {
        "configuration_longcat_lite",
        "ngram_hashing",
        "ngram_kernels",
        "ngram_quantization",
        "ngram_tables",
        "plain_weights",
    },
}
MAY_IMPORT["modeling_longcat_lite"] = set(MAY_IMPORT)
# Room: the rooms that it may import, besides itself, `modeling_longcat_lite` and `tokenization`. A room comes after
# those that it imports, so that there is no circle.
ROOMS_MAY_IMPORT = {
    "tokenization": set(),
    "training/data": set(),
    "training/routers": set(),
    "training/tables": set(),
    "training/run": {"training/data", "training/routers"},
    "training/context": {"training/run"},
    "training": {"training/context", "training/data", "training/routers", "training/run", "training/tables"},
    "training/demo": {"training", "training/data", "training/run"},
    "eval": set(),
    "eval/reports": set(),
    "eval/checkpoints": {"eval/reports"},
    "eval/losses": {"eval/checkpoints", "eval/reports", "training/data"},
    "eval/drafts": {"eval/losses", "eval/reports"},
    "eval/ngrams": {"eval/checkpoints", "eval/losses", "eval/reports", "training/data"},
    "eval/ngrams/ablation": {
        "eval/checkpoints",
        "eval/losses",
        "eval/ngrams",
        "eval/reports",
        "training/data",
    },
    "eval/ngrams/report": {
        "eval/checkpoints",
        "eval/losses",
        "eval/ngrams",
        "eval/reports",
        "training/data",
    },
    "eval/fit": {"eval/checkpoints", "eval/reports"},
    "eval/fit/training": {"eval/fit", "eval/reports", "training/context"},
    "eval/long_context/ruler": set(),
    "eval/long_context": {
        "eval/checkpoints",
        "eval/long_context/ruler",
        "eval/losses",
        "eval/reports",
        "training/data",
    },
    "eval/speed": {"eval/reports", "training/tables"},
    "eval/speed/commits": {"eval/reports"},
    "eval/speed/generation": {"eval/reports", "eval/speed"},
    "eval/speed/placement": {"eval/reports", "eval/speed", "training/data"},
    "eval/studies": {"eval/reports", "training/data", "training/routers"},
    "eval/studies/scaling": {"eval/reports", "eval/studies", "training/data", "training/routers"},
    "eval/studies/tools": {"eval/reports", "training", "training/data", "training/demo"},
    "eval/studies/yarn": {
        "eval/losses",
        "eval/reports",
        "training",
        "training/context",
        "training/data",
        "training/demo",
    },
    "eval/harness": {"eval/checkpoints", "eval/losses", "eval/ngrams", "eval/ngrams/ablation", "eval/reports"},
    "eval/harness/suites": {"eval/checkpoints", "eval/harness", "training/data"},
    "model_cards": {"eval/checkpoints", "eval/reports", "training/run"},
}
# Each file and each folder here is found by its place, so that nothing imports it by name: all are one room.
FOUND_BY_PLACE = "eval/harness/suites"
FOLDERS = ("tokenization", "training", "eval", "model_cards")
MOST_FILES, MOST_SCRIPTS = 15, 12  # of a room, and at the top of training/ and eval/
INSTALLED_WITH_THE_PACKAGE = {"torch", "transformers", "safetensors", "huggingface_hub"}
OPTIONAL = {"triton"}  # imported at the top of a file, in a `try` that an ImportError leaves

package_file = pytest.mark.parametrize("file", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
folder_file = pytest.mark.parametrize(
    "file",
    [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))],
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


def room_of(module: str) -> str:
    """`eval/fit` for `eval.fit.report`, for the room itself and for a name in one of them."""
    path = ROOT.joinpath(*module.split("."))
    while path != ROOT and not (path / "__init__.py").is_file():
        path = path.parent
    return folder_room(path)


def folder_room(folder: Path) -> str:
    room = "/".join(folder.relative_to(ROOT).parts)
    return FOUND_BY_PLACE if room.startswith(f"{FOUND_BY_PLACE}/") else room


@folder_file
def test_rooms_follow_the_table(file):
    room = folder_room(file.parent)
    ours = {*FOLDERS, "modeling_longcat_lite", "tests"}
    names = {name for name in absolute_names(imports(file)) if name.split(".")[0] in ours}
    names |= {
        f"{node.module}.{alias.name}"
        for node in imports(file)
        if isinstance(node, ast.ImportFrom) and node.module in names
        for alias in node.names
    }
    imported = {room_of(name) for name in names - set(FOLDERS)}
    assert imported <= {room, "modeling_longcat_lite", "tokenization"} | ROOMS_MAY_IMPORT[room]


def test_the_tables_have_no_circle():
    for table in (MAY_IMPORT, ROOMS_MAY_IMPORT):
        names = list(table)
        for index, name in enumerate(names):
            assert table[name] - {name} <= set(names[:index]), name


def test_rooms_are_small():
    for room in ROOMS_MAY_IMPORT:
        files = list((ROOT / room).glob("*.py"))
        assert files, room
        assert len(files) <= (MOST_SCRIPTS if room in ("training", "eval") else MOST_FILES), room


@folder_file
def test_no_file_hides_a_library(file):
    spec = None if file.stem in ("__init__", "__main__") else importlib.util.find_spec(file.stem)
    assert spec is None or spec.origin is None, f"`{file.stem}` is also {spec.origin}"  # without an origin: a folder


def test_the_top_level_is_the_agreed_one():
    allowed = {"pyproject.toml", "README.md", "Makefile", "constraints.txt", "CONTRIBUTING.md", "CHANGELOG.md"}
    allowed |= {
        "LICENSE",
        "NOTICE",
        "AGENTS.md",
        "CITATION.cff",
        "SECURITY.md",
        *FOLDERS,
        "modeling_longcat_lite",
        "tests",
    }
    written = {"outputs", "build", "dist"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert {name for name in found if not name.endswith(".egg-info")} <= allowed | written
