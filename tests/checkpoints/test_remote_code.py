# SPDX-License-Identifier: Apache-2.0
"""A saved folder runs as remote code in a process that cannot import the package."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from without_the_package import run_without_the_package

from modeling_longcat_lite import LongCatLiteForCausalLM

CONFORMANCE = Path(__file__).parents[1] / "conformance"
PACKAGE = Path(__file__).parents[2] / "modeling_longcat_lite"

USE_IT = """
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
assert "transformers_modules" in type(config).__module__
for _ in range(2):  # the code is executed again by a second load
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
assert "transformers_modules" in type(model).__module__
with torch.no_grad():
    error = (model(golden["input_ids"]).logits - golden["logits"]).abs().max()
assert error < 2e-4, error
tokens = model.generate(golden["prompts"], max_new_tokens=24, do_sample=False, eos_token_id=None)
assert torch.equal(tokens, golden["greedy"])
trunk = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(trunk).__name__ == "LongCatLiteModel"
model.save_pretrained(folder + "-again")
"""


@pytest.mark.slow  # a process of its own
@pytest.mark.parametrize("case", ["base", "released"])
def test_a_saved_folder_runs_without_the_package(case, tmp_path):
    folder = tmp_path / "model"
    LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / case).save_pretrained(folder)
    assert {path.name for path in folder.glob("*.py")} == {path.name for path in PACKAGE.glob("*.py")} - {
        "__init__.py"
    }
    assert json.loads((folder / "config.json").read_text())["auto_map"].keys() == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
    }
    run_without_the_package(USE_IT, folder, CONFORMANCE / case / "golden.safetensors", cache=tmp_path)

    # What remote code saves is again the released layout with its code, and loads with the package too.
    again = tmp_path / "model-again"
    assert {path.name for path in again.glob("*.py")} == {path.name for path in folder.glob("*.py")}
    golden = load_file(CONFORMANCE / case / "golden.safetensors")
    model = LongCatLiteForCausalLM.from_pretrained(again, dtype=torch.float32)
    with torch.no_grad():
        assert (model(golden["input_ids"]).logits - golden["logits"]).abs().max() < 2e-4
    shutil.rmtree(again)


LOAD_EACH_NAME = """
from pathlib import Path
for path in sorted(Path(folder).iterdir()):
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype=torch.float32)
    assert type(model).__module__.startswith("transformers_modules"), path
    with torch.no_grad():
        assert (model(golden["input_ids"]).logits - golden["logits"]).abs().max() < 2e-4, path
        # Tables on disk are read by an operation whose name is made from the folder's.
        on_disk = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, ngram_tables="disk")
        torch.compiler.reset()
        compiled = torch.compile(on_disk.float(), fullgraph=True, backend="eager")
        assert (compiled(golden["input_ids"]).logits - golden["logits"]).abs().max() < 2e-4, path
"""
# Two that differ in a letter only, what a shell, a URL or a format string would take apart, and a long one. Braces are
# missing: torch's own compiler takes them for a format.
NAMES = ("model é", "model è", "модель", "100% %s", 'it\'s "quoted"', "$x; y", "#1?q=1&r", "-v1.0", "2026.1", "a\\1")


@pytest.mark.slow  # a process of its own
def test_a_folder_may_have_any_name(tmp_path):
    saved = LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "base")
    for name in (*NAMES, "x" * 200):
        saved.save_pretrained(tmp_path / "names" / name)
    golden = CONFORMANCE / "base" / "golden.safetensors"
    run_without_the_package(LOAD_EACH_NAME, tmp_path / "names", golden, cache=tmp_path)
