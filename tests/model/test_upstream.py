# SPDX-License-Identifier: Apache-2.0
"""The tests that transformers has for its own models pass on ours, with a few exceptions, each with its reason.

`make test-upstream` only: it fetches the tests of the installed version (`upstream/carried_tests.py`). The source
distribution lacks the tests of generation and export, and what those of pipelines and of FSDP need: these do not run.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
import transformers
from upstream.carried_tests import unpack_carried_tests

pytestmark = pytest.mark.upstream

TESTS = Path(__file__).parents[1]
FEWEST_PASSED = 125  # of 5.23 and of later versions: so that an empty run is not a success


class ByDesign(NamedTuple):
    """Why a test fails by design, and what its error has to say, so that it fails for no other reason."""

    reason: str
    error: str


WORDS_ALONE = ByDesign("n-grams are made of tokens, which `inputs_embeds` do not tell", "pass its tokens too")
WHOLE_CHECKPOINTS = "a checkpoint must have every tensor of the model: a fresh one would answer noise"
EXPECTED = {
    "test_inputs_embeds": WORDS_ALONE,
    "test_inputs_embeds_matches_input_ids": WORDS_ALONE,
    "test_correct_missing_keys": ByDesign(WHOLE_CHECKPOINTS, "The checkpoint has no tensor `lm_head.weight`"),
    "test_model_weights_reload_no_missing_tied_weights": ByDesign(
        WHOLE_CHECKPOINTS, "The checkpoint has no tensor `model.embed_tokens.weight`"
    ),
    "test_num_layers_is_small": ByDesign("two layers have four attentions, which it counts", "assert 4 <= 2"),
    "test_reverse_loading_mapping": ByDesign(
        "names of another release are read and never written, so that nothing saved has them", "ReadRenaming"
    ),
    "test_generation_tester_mixin_inheritance": ByDesign(
        "the source distribution lacks `GenerationTesterMixin`", "the tester must inherit from `GenerationTesterMixin`"
    ),
}


class Results(NamedTuple):
    passed: set[str]
    skipped: set[str]
    errors: dict[str, list[str]]  # of tests that failed, also in a part only


def results_of(report: Path) -> Results:
    """What a report in JUnit's form says of every test; one that fails in a part of it appears several times."""
    names, skipped, errors = set(), set(), {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.attrib["name"].split()[0]
        names.add(name)
        for outcome in case:
            if outcome.tag == "skipped":
                skipped.add(name)
            elif outcome.tag in ("failure", "error"):
                errors.setdefault(name, []).append(f"{outcome.attrib.get('message')}\n{outcome.text}")
    return Results(names - skipped - errors.keys(), skipped - errors.keys(), errors)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    carried = unpack_carried_tests(TESTS.parent)
    report = tmp_path_factory.mktemp("upstream") / "report.xml"
    # Their markers are not ours, hence no `--strict-markers`.
    options = ["-o", "addopts=", "-p", "no:cacheprovider", "-W", "ignore", "--tb=short", f"--junitxml={report}"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, TESTS / "upstream" / "model_tests.py"],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": str(carried)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode in (0, 1), f"{run.stdout}\n{run.stderr}"  # all passed, or some failed
    found = results_of(report)
    counts = f"{len(found.passed)} passed, {len(found.errors)} failed, {len(found.skipped)} skipped"
    print(f"\ntransformers {transformers.__version__}, its own tests on our classes: {counts}")
    return found


def test_enough_tests_pass(results):
    assert len(results.passed) >= FEWEST_PASSED


def test_nothing_else_fails(results):
    others = {name: errors for name, errors in results.errors.items() if name not in EXPECTED}
    assert not others, "\n\n".join(f"{name}\n{error}" for name, errors in others.items() for error in errors)


@pytest.mark.parametrize("name", EXPECTED)
def test_exceptions_fail_as_expected(name, results):
    """One that passes, is skipped or is gone has to be struck off the list."""
    assert name in results.errors, f"{name} does not fail any longer, although {EXPECTED[name].reason}"
    for error in results.errors[name]:
        assert EXPECTED[name].error in error
