# SPDX-License-Identifier: Apache-2.0
"""The wheel holds the package and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow  # builds in an environment of its own
def test_the_wheel_holds_the_package_alone(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    code = {name for name in names if ".dist-info/" not in name}
    package = ROOT / "modeling_longcat_lite"
    assert code == {f"{package.name}/{path.name}" for path in (*package.glob("*.py"), package / "py.typed")}
    assert any(name.endswith("licenses/LICENSE") for name in names)
