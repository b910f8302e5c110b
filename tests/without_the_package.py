# SPDX-License-Identifier: Apache-2.0
"""Code run in a process that cannot import the package."""

import os
import subprocess
import sys
from pathlib import Path

FORBID_THE_PACKAGE = """
import sys
sys.modules["modeling_longcat_lite"] = None  # an import of it raises, however it is installed
folder, golden = sys.argv[1:]
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
golden = load_file(golden)
"""


def run_without_the_package(code: str, *arguments, cache: Path):
    environment = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-P", "-c", FORBID_THE_PACKAGE + code, *map(str, arguments)]
    result = subprocess.run(command, cwd=cache, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
