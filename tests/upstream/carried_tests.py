# SPDX-License-Identifier: Apache-2.0
"""Unpacks the test classes of the installed transformers from its source distribution: `transformers_tests`.

The distribution carries the files that lie directly in its `tests`. What these import from folders that it leaves out
is stood in for here by as little as lets them be imported: the mixins are empty, so none of their tests run. Only
tests of several processes get what they need, `processes.py`.
"""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import transformers

FOLDER = Path("build/upstream", transformers.__version__)
PACKAGE = "transformers_tests"
LEFT_OUT = {
    "distributed_testing_utils.py": "from processes import run_distributed\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    # Fields that every configuration has, at other values than the defaults.
    "utils/test_configuration_utils.py": "config_common_kwargs = dict(\n"
    "    return_dict=False, output_hidden_states=True, output_attentions=True, dtype='float16',\n"
    "    chunk_size_feed_forward=5, architectures=['LongcatFlashNgramForCausalLM'],\n"
    "    id2label={0: 'label'}, label2id={'label': 0}, problem_type='regression',\n"
    ")\n",
}
ONE_IN_TESTS = re.compile(r"[^/]+/tests/([^/]+\.py)")


def unpack_carried_tests(checkout: Path) -> Path:
    """The folder of the package and of what it needs to be imported. It is made once."""
    folder = checkout / FOLDER
    done = folder / "done"
    if done.exists() and done.stat().st_mtime > Path(__file__).stat().st_mtime:
        return folder
    pip = [sys.executable, "-m", "pip"]
    wanted = f"transformers=={transformers.__version__}"
    # pip asks a source distribution for its metadata; the build backend of this environment can answer.
    options = ["--quiet", "--no-deps", "--no-binary", "transformers", "--no-build-isolation", "--dest", folder]
    subprocess.run([*pip, "download", *options, wanted], check=True)
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--upgrade", "--target", folder, "parameterized"], check=True
    )

    with tarfile.open(folder / f"transformers-{transformers.__version__}.tar.gz") as archive:
        for member in archive:
            if match := ONE_IN_TESTS.fullmatch(member.name):
                content = archive.extractfile(member)
                assert content is not None, f"{member.name} is not a file"
                write(folder / PACKAGE / match[1], content.read().decode())
    for name, text in LEFT_OUT.items():
        if not (folder / PACKAGE / name).exists():
            write(folder / PACKAGE / name, text)
    for package in {(folder / PACKAGE / name).parent for name in ("x", *LEFT_OUT)}:
        (package / "__init__.py").touch()
    done.touch()
    return folder


def write(path: Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
