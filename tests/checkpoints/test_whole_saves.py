# SPDX-License-Identifier: Apache-2.0
"""Saving over a folder that holds a model: what loads afterwards is the old model or the new one, bit for bit.

A child process saves and is killed, after a random time or right before one of its file operations. A folder may then
refuse to load, if it names the save that was not finished and the command that completes it.
"""

import itertools
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import randomize, tiny_config
from transformers import AutoModelForCausalLM

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.ngram_row_files import write_row_delta
from modeling_longcat_lite.whole_files import JOURNAL, finish

FORMS = {"one file": "5GB", "shards": "60KB", "more shards": "20KB"}
DIRECTIONS = list(itertools.product(FORMS, ["one file", "shards"], ["to a head", "from a head"]))
UNFINISHED = re.compile(r"^(.+): a save to this folder was not finished.*`(python .*)` completes it", re.DOTALL)
# Events of Python's audit hooks, raised right before the operation.
NAMES_CHANGE = {"os.link", "os.remove", "os.rename"}
FILE_OPERATIONS = {*NAMES_CHANGE, "open", "os.mkdir", "os.rmdir"}


class Case:
    """A model in a folder, with changed rows or a draft head, and another to be saved over it."""

    def __init__(self, folder: Path, old_form: str, new_form: str, head: str):
        self.folder, self.new_form, source = folder / "model", new_form, folder / "source"
        plain = randomize(LongCatLiteForCausalLM(tiny_config()), seed=1)
        with_head = LongCatLiteForCausalLM(tiny_config(num_nextn_predict_layers=1))
        old, new = (plain, randomize(with_head, seed=2))[:: 1 if head == "to a head" else -1]
        old.save_pretrained(source, max_shard_size=FORMS[old_form])
        if old is plain:  # saved with rows that are not those of its tables
            rows = [(torch.tensor([0, 2]), torch.full((2, 4), 3.0)) for _ in old.config.subtable_sizes]
            write_row_delta(source / "rows.safetensors", old.config, rows, "base")
            old = LongCatLiteForCausalLM.from_pretrained(source, ngram_tables="disk")
            old.load_ngram_rows(source / "rows.safetensors")
        (source / "rows.safetensors").unlink(missing_ok=True)
        old.save_pretrained(source, max_shard_size=FORMS[old_form])
        (source / "notes.txt").write_text("mine")
        self.source, self.new = source, new
        self.before = loaded(source)
        self.renew()
        self.save()
        self.after = loaded(self.folder)
        assert not same(self.before, self.after)

    def renew(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.source, self.folder)

    def save(self):
        self.new.save_pretrained(self.folder, max_shard_size=FORMS[self.new_form])

    def check(self) -> str:
        """What the folder holds now: "old", "new" or "unfinished", of which both ends are reached."""
        assert (self.folder / "notes.txt").read_text() == "mine"
        try:
            found = loaded(self.folder)
        except ValueError as error:
            assert UNFINISHED.search(str(error)), error
        else:
            is_old = same(found, self.before)
            assert is_old or same(found, self.after)
            return "old" if is_old else "new"
        for undo, expected in ((True, self.before), (False, self.after)):
            copy = Path(shutil.copytree(self.folder, self.folder.with_name("copy"), symlinks=True))
            assert finish(copy, undo=undo)
            assert same(loaded(copy), expected)
            shutil.rmtree(copy)
        return "unfinished"


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def killed(
    action: Callable[[], object],
    after: float = float("inf"),
    at_operation: int | None = None,
    operations: set[str] = FILE_OPERATIONS,
) -> bool:
    """Runs an action in a child process; whether it was killed, `after` seconds or at one of its file operations."""
    if not (child := os.fork()):
        try:
            if at_operation is not None:
                countdown = itertools.count(at_operation, -1)
                sys.addaudithook(
                    lambda event, arguments: (
                        os.kill(os.getpid(), signal.SIGKILL) if event in operations and next(countdown) == 0 else None
                    )
                )
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    deadline, begin = after if after < 60 else 60, time.perf_counter()
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.perf_counter() - begin > deadline:
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.0005)
    assert ended[1] in (0, signal.SIGKILL), "the save failed"
    return bool(ended[1])


def seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    assert not killed(action)
    return time.perf_counter() - begin


def kill_at_random(case: Case, count: int, seed: int):
    """Kills a save `count` times; every other time, the folder is the one that the last kill left."""
    draw, found = random.Random(seed), "new"
    longest = 1.1 * min(seconds(case.save) for _ in range(3))
    for moment in range(count):
        if moment % 2 == 0 or found == "new":
            case.renew()
        killed(case.save, after=draw.uniform(0, longest))
        found = case.check()


@pytest.mark.parametrize("old_form, new_form, head", [DIRECTIONS[0], DIRECTIONS[3], DIRECTIONS[5]])
def test_a_save_that_is_killed_at_random(tmp_path, old_form, new_form, head):
    kill_at_random(Case(tmp_path, old_form, new_form, head), 7, seed=0)


@pytest.mark.kills
@pytest.mark.parametrize("old_form, new_form, head", DIRECTIONS)
def test_200_saves_that_are_killed_at_random(tmp_path, old_form, new_form, head):
    kill_at_random(Case(tmp_path, old_form, new_form, head), -(-200 // len(DIRECTIONS)), seed=1)


def kill_at_operations(case: Case, step: int, operations: set[str]) -> set[str]:
    found, was_killed, operation = set(), True, 0
    while was_killed:
        case.renew()
        was_killed = killed(case.save, at_operation=operation, operations=operations)
        found.add(case.check())
        operation += step
    assert case.check() == "new"
    return found


@pytest.mark.parametrize("old_form, new_form, head", [DIRECTIONS[1], DIRECTIONS[6]])
def test_a_save_that_is_killed_at_a_file_operation(tmp_path, old_form, new_form, head):
    found = kill_at_operations(Case(tmp_path, old_form, new_form, head), 5, NAMES_CHANGE)
    assert found == {"old", "unfinished", "new"}


@pytest.mark.kills
@pytest.mark.parametrize("old_form, new_form, head", DIRECTIONS)
def test_a_save_that_is_killed_at_each_file_operation(tmp_path, old_form, new_form, head):
    found = kill_at_operations(Case(tmp_path, old_form, new_form, head), 1, NAMES_CHANGE)
    assert found == {"old", "unfinished", "new"}


@pytest.mark.kills
def test_a_save_that_is_killed_at_each_file_operation_of_any_kind(tmp_path):
    found = kill_at_operations(Case(tmp_path, *DIRECTIONS[5]), 1, FILE_OPERATIONS)
    assert found == {"old", "unfinished", "new"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("old_form, new_form, head", [DIRECTIONS[0], DIRECTIONS[3], DIRECTIONS[5], DIRECTIONS[6]])
def test_a_full_disk_leaves_the_old_model(tmp_path, old_form, new_form, head):
    case = Case(tmp_path, old_form, new_form, head)
    sizes = sorted({len(content) for content in contents(case.folder).values()})
    case.renew()
    before, limits = contents(case.folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (100, sizes[len(sizes) // 2], sizes[-1] // 2, sizes[-1] - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # every write beyond fails, as on a full disk
        try:
            with pytest.raises(OSError):
                case.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert contents(case.folder) == before
    assert case.check() == "old"
    case.save()
    assert case.check() == "new"


@pytest.mark.slow  # two processes of their own
def test_the_command_that_the_error_names(tmp_path):
    case = Case(tmp_path / "a name with spaces", "shards", "one file", "to a head")
    operation, state = 0, "old"
    while state != "unfinished":
        case.renew()
        assert killed(case.save, at_operation=operation, operations=NAMES_CHANGE)
        state, operation = case.check(), operation + 1
    with pytest.raises(ValueError) as refused:
        loaded(case.folder)
    command = UNFINISHED.search(str(refused.value))
    words = shlex.split(command[2])
    assert Path(command[1]).samefile(case.folder)
    aside = shutil.copytree(case.folder, tmp_path / "aside", symlinks=True)
    subprocess.run([sys.executable, *words[1:]], check=True, cwd=Path(__file__).parents[2])
    assert case.check() == "new"
    shutil.rmtree(case.folder)
    shutil.move(aside, case.folder)
    subprocess.run([sys.executable, *words[1:], "--undo"], check=True, cwd=Path(__file__).parents[2])
    assert case.check() == "old" and contents(case.folder) == contents(case.source)
    # A save goes on where the last one stopped; what killed processes left is gone.
    killed(case.save, at_operation=operation - 1, operations=NAMES_CHANGE)
    assert case.check() == "unfinished"
    case.save()
    assert case.check() == "new"
    assert not [name for name in contents(case.folder) if name.endswith(".partial") or name == JOURNAL or "/" in name]


def test_threads_that_save_one_model_at_the_same_time(tmp_path):
    models = [randomize(LongCatLiteForCausalLM(tiny_config()), seed=seed) for seed in (1, 2)]
    with ThreadPoolExecutor(4) as threads:
        saves = [threads.submit(model.save_pretrained, tmp_path / "model") for model in models * 2]
    assert [save.result() for save in saves] == [None] * 4
    for seed, model in enumerate(models):
        model.save_pretrained(tmp_path / str(seed))
    assert any(same(loaded(tmp_path / "model"), loaded(tmp_path / str(seed))) for seed in (0, 1))
