# SPDX-License-Identifier: Apache-2.0
"""Random generation cases give every row what it gets alone: a sample here, a thousand in `make test-random`.

python -m pytest -m random tests/model/test_random_generation.py --random-cases 1000 --random-seed 0
python -m pytest tests/model/test_random_generation.py -k alone --random-case "kind=turns draw=1234 model=bigrams ..."
"""

import time
from collections import Counter
from dataclasses import replace

import pytest
import random_bench
from random_generation import CACHES, CACHES_OF, KINDS, MASKS, MASKS_OF, MODES, Case, draw_case
from random_models import MODELS
from random_scenarios import check
from rows_alone import TooClose

SAMPLE_SEED, SAMPLE = 104, 60  # all kinds and modes, and one case that is compiled, which takes seconds
DRAWS = 40


def check_without_ties(case: Case):
    """Checks a case, drawn anew where rounding decides; a failure carries the line that runs it alone."""
    for attempt in range(DRAWS):
        drawn = replace(case, draw=case.draw + attempt)
        try:
            return check(drawn)
        except TooClose:
            continue
        except BaseException as error:
            error.add_note(f'Run it alone: -p tests.model.random_options -k alone --random-case "{drawn}"')
            raise
    raise AssertionError(f'Rounding decides all {DRAWS} draws of "{case}".')


@pytest.mark.parametrize("index", range(SAMPLE))
def test_a_random_case(index):
    check_without_ties(draw_case(SAMPLE_SEED, index))


def test_a_case_alone(request):
    line = request.config.getoption("random_case", default=None)
    check_without_ties(Case.parse(line) if line else draw_case(SAMPLE_SEED, SAMPLE))


@pytest.mark.random
def test_many_random_cases(request, capsys):
    options = request.config
    count, seed = options.getoption("random_cases", default=1000), options.getoption("random_seed", default=0)
    began, failures = time.monotonic(), []
    for index in range(count):
        case = draw_case(seed, index)
        try:
            check_without_ties(case)
        except (Exception, pytest.fail.Exception) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            failures.append("\n".join([*error.__notes__, f"    {type(error).__name__}: {reason}"]))
        if (index + 1) % 25 == 0 or index + 1 == count:
            with capsys.disabled():
                seconds = time.monotonic() - began
                print(f"\r{index + 1} of {count} cases, {len(failures)} failed, {seconds:.0f} s", end="", flush=True)
    assert not failures, f"{len(failures)} of {count} cases:\n" + "\n".join(failures)


def test_cases_print_as_lines_that_repeat_them():
    for index in range(200):
        case = draw_case(0, index)
        assert Case.parse(str(case)) == case == draw_case(0, index)


def test_cases_reach_every_choice():
    cases = [draw_case(0, index) for index in range(1000)]
    assert set(Counter(case.kind for case in cases)) == set(KINDS)
    assert {case.model for case in cases} == set(MODELS)
    of_generate = [case for case in cases if case.kind == "generate"]
    assert {case.mode for case in of_generate} == set(MODES)
    assert {case.cache for case in of_generate} == set(CACHES)
    for kind in KINDS:
        of_kind = [case for case in cases if case.kind == kind]
        assert {case.cache for case in of_kind} == set(CACHES_OF.get(kind, CACHES))
        assert {case.mask for case in of_kind} == set(MASKS_OF.get(kind, MASKS))
    for kind in ("generate", "turns", "prefix", "forward", "hidden"):
        forms = {(case.bits, case.placement, case.hooks) for case in cases if case.kind == kind}
        assert len(forms) > 20  # of 27
    assert {case.compiled for case in cases if case.kind in ("generate", "packed")} == {0, 1}
    assert any(case.delta and case.hot for case in cases)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "failure"])
def test_a_model_with_other_rows_is_noticed(kind, monkeypatch):
    cases = (draw_case(2, index) for index in range(1000))
    case = next(case for case in cases if case.kind == kind and case.placement == "disk" and not case.compiled)
    right = random_bench.loaded

    def with_other_rows(name, bits, placement, has_delta, is_hot):
        return right(name, bits, placement, not has_delta, is_hot)

    monkeypatch.setattr(random_bench, "loaded", with_other_rows)
    with pytest.raises(AssertionError):
        check_without_ties(case)
