# SPDX-License-Identifier: Apache-2.0
"""Options of the random generation cases, for `python -m pytest -p tests.model.random_options`.

Not in conftest.py, whose bytes are the text that small models are trained on.
"""

import pytest


def pytest_addoption(parser: pytest.Parser):
    group = parser.getgroup("random generation cases")
    group.addoption("--random-cases", type=int, default=1000, help="how many, with `-m random`")
    group.addoption("--random-seed", type=int, default=0, help="from which they are drawn")
    group.addoption("--random-case", help="the line of one case, to run it alone with `-k alone`")
