# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a saved folder loads without trust in its code, and without this package.

transformers reads the config first, as a config of no known class. The same is tested in the environments of mlx-lm
(`tests/checkpoints/test_mlx.py`) and vLLM (`tests/checkpoints/test_vllm.py`), which have other versions of
transformers.
"""

import sys
from pathlib import Path

import pytest
import transformers
from conftest import PLAIN_ROPE, YARN_ROPE
from other_readers import assert_tokenizer_loads_untrusted, write_package


@pytest.mark.parametrize("rope", [YARN_ROPE, PLAIN_ROPE], ids=["yarn", "plain"])
def test_a_package_is_read_by_auto_tokenizer(rope, tmp_path):
    package = write_package(tmp_path, rope_parameters=rope)
    assert assert_tokenizer_loads_untrusted(package, Path(sys.executable)) == transformers.__version__
