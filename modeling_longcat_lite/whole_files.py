# SPDX-License-Identifier: Apache-2.0
"""Files that are whole at any moment: they are written under another name and renamed.

    with whole_file(path) as beside:            one file: `path` is always the old file or the new one
        write(beside)
    with replaced_folder(path) as new:          a folder, in the same way
        write(new / "a")
    with staged_files(folder) as staged:        several files that belong together, such as those of a model
        write(staged.new / "a"); write(staged.new / "b")
        staged.swap(stale=["c"])                `folder` now has new a and b, and no c

A folder with several files cannot change in one step. `swap` keeps a journal in it, from before the first rename until
after the last, and moves old files aside instead of deleting them: every file of both states exists until the journal
is removed. Readers call `check_finished`, which refuses a folder with a journal and names the command that completes
the swap; the next `staged_files` on the folder completes it too. Files are moved with hard links and renames within
the folder, so no bytes are copied, and a file that is replaced never disappears in between.

    folder/unfinished_save.json                 the journal: {"staged": NAME, "new": [...], "old": [...]}
    folder/.save-XXXXXXXX.partial/new, /old     new files before, and old files after, their rename

Nothing is flushed to the drive: this protects from killed processes and full disks, not from power cuts.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two processes must not save to one folder at the same time
    fcntl = None  # type: ignore[assignment]

JOURNAL = "unfinished_save.json"
COMPARED_BYTES = 2**20
STAGED_PREFIX, STAGED_SUFFIX = ".save-", ".partial"
# Run as a file, without its package: remote code has none, and importing it would take seconds.
COMMAND = f"python {shlex.quote(__file__)}"


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a path to write to. It is renamed to `path` when the block ends, and removed when the block fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}{STAGED_SUFFIX}")
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_whole(path: str | os.PathLike, content: bytes | str):
    """Writes a file that never exists in part; text as UTF-8."""
    with whole_file(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replaced_folder(output: Path) -> Iterator[Path]:
    """Gives a new folder to fill, which becomes `output` when the block ends without an error.

    An older `output` is renamed before the new one takes its name, and comes back if that fails. A process that is
    killed between the two leaves it as `.NAME.old`; the next call restores it.

    Args:
        output (`Path`): Folder to write; its parents are created.
    """
    output = output.absolute()
    new, old = (output.with_name(f".{output.name}.{state}") for state in ("partial", "old"))
    output.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() and not output.exists():
        old.rename(output)
    for left_by_a_killed_process in (new, old):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        if output.exists():
            output.rename(old)
        new.rename(output)
    except BaseException:
        if old.exists() and not output.exists():
            old.rename(output)
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


class StagedFiles:
    """New files for a folder, in `new` until `swap` puts them in place.

    Args:
        folder (`Path`): The folder, which exists.
        place (`Path`): A temporary sub-folder of it.
    """

    def __init__(self, folder: Path, place: Path):
        self.folder, self.place = folder, place
        self.new, self.old = place / "new", place / "old"
        self.new.mkdir()
        self.old.mkdir()

    def swap(self, stale: Iterable[str] = ()):
        """Puts the new files in place and removes `stale` ones. If that fails, the folder is as it was.

        Args:
            stale (`Iterable[str]`): Names of files in the folder that do not belong to the new ones.
        """
        with locked(self.folder):
            finish(self.folder)  # another process may have left a swap meanwhile
            staged = {path.name for path in self.new.iterdir()}
            names = sorted(name for name in staged if not _is_unchanged(self.new / name, self.folder / name))
            replaced = {*names, *(set(stale) - staged)}
            old = sorted(name for name in replaced if os.path.lexists(self.folder / name))
            record = {"staged": self.place.name, "new": names, "old": old}
            try:
                write_whole(self.folder / JOURNAL, json.dumps(record, indent=2).encode())
                _go_on(self.folder, record)
            except BaseException as error:
                try:
                    _go_back(self.folder, record)
                except OSError:
                    error.add_note(unfinished(self.folder))
                    raise error from None
                (self.folder / JOURNAL).unlink(missing_ok=True)
                raise
            (self.folder / JOURNAL).unlink()


@contextmanager
def staged_files(folder: str | os.PathLike) -> Iterator[StagedFiles]:
    """Gives a place for new files of `folder`, which is created if necessary; files that were not swapped are removed.

    Completes a swap that another process left unfinished, and removes the files of killed processes.
    """
    folder = Path(folder).absolute()
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        finish(folder)
        _remove_leftovers(folder)
        place = Path(tempfile.mkdtemp(STAGED_SUFFIX, STAGED_PREFIX, folder))
        place.chmod(folder.stat().st_mode & 0o777)
        owner = _lock(place)  # other processes leave it alone as long as this one lives
    try:
        yield StagedFiles(folder, place)
    finally:
        record = read_journal(folder)
        if record is None or record["staged"] != place.name:
            shutil.rmtree(place, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # it has files in it
                folder.rmdir()
        _unlock(owner)


def check_finished(folder: str | os.PathLike):
    """Raises a `ValueError` that names the command to run, if a save to `folder` was not finished."""
    if (Path(folder) / JOURNAL).is_file():
        raise ValueError(unfinished(folder))


def unfinished(folder: str | os.PathLike) -> str:
    """The error for a folder with a journal."""
    command = f"{COMMAND} {shlex.quote(str(folder))}"
    return (
        f"{folder}: a save to this folder was not finished, so that it holds files of two models ({JOURNAL} lists "
        f"them). `{command}` completes it; with `--undo` it restores the files from before the save."
    )


def finish(folder: str | os.PathLike, undo: bool = False) -> bool:
    """Completes a swap that was not finished, or undoes it; returns whether there was one."""
    folder = Path(folder)
    record = read_journal(folder)
    if record is None:
        return False
    if not (folder / record["staged"]).is_dir():
        raise ValueError(
            f"{folder}: a save to this folder was not finished, and {record['staged']} with its files is gone. "
            f"Restore it, or remove {JOURNAL} and save the model again."
        )
    (_go_back if undo else _go_on)(folder, record)
    (folder / JOURNAL).unlink()
    shutil.rmtree(folder / record["staged"], ignore_errors=True)
    return True


def read_journal(folder: Path) -> dict | None:
    """The record of an unfinished swap.

    Raises:
        `ValueError`: if the file is something else, or names a file outside the folder.
    """
    try:
        record = json.loads((folder / JOURNAL).read_text(encoding="utf-8"))
        names = [record["staged"], *record["new"], *record["old"]]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / JOURNAL} is not the record of a save: {error!r}. Remove it.") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{folder / JOURNAL} names {name!r}, which is not a file in its folder. Remove it.")
    return record


def _go_on(folder: Path, record: dict):
    """Every step can be repeated, so it does not matter how far an earlier run got."""
    new, old = (folder / record["staged"] / state for state in ("new", "old"))
    for name in record["old"]:
        if os.path.lexists(old / name) or not os.path.lexists(folder / name):
            continue
        if name in record["new"]:
            _keep(folder / name, old / name)
        else:
            os.rename(folder / name, old / name)  # noqa: PTH104 (one function for both renames)
    for name in record["new"]:
        if os.path.lexists(new / name):
            os.replace(new / name, folder / name)  # noqa: PTH105


def _go_back(folder: Path, record: dict):
    new, old = (folder / record["staged"] / state for state in ("new", "old"))
    for name in record["new"]:
        if not os.path.lexists(new / name) and os.path.lexists(folder / name):
            os.rename(folder / name, new / name)  # noqa: PTH104
    for name in record["old"]:
        if os.path.lexists(old / name):
            os.replace(old / name, folder / name)  # noqa: PTH105


def _is_unchanged(new: Path, old: Path) -> bool:
    """Whether a small file did not change, as is common for code and configs; the swap leaves it out."""
    if not old.is_file() or old.is_symlink() or not new.is_file() or new.stat().st_size > COMPARED_BYTES:
        return False
    return old.stat().st_size == new.stat().st_size and old.read_bytes() == new.read_bytes()


def _keep(path: Path, aside: Path):
    """Gives a file a second name, so that the first one can be replaced at once; renames it where links fail."""
    try:
        os.link(path, aside, follow_symlinks=False)
    except (OSError, NotImplementedError):  # a folder, or a file system without hard links
        os.rename(path, aside)  # noqa: PTH104


def _remove_leftovers(folder: Path):
    """Removes files of processes that were killed before or after their swap. The folder is locked."""
    for place in folder.glob(f"{STAGED_PREFIX}*{STAGED_SUFFIX}"):
        if (lock := _lock(place, wait=False)) is not None:
            shutil.rmtree(place, ignore_errors=True)
            _unlock(lock)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Admits one process at a time, on file systems that have locks."""
    lock = _lock(folder)
    try:
        yield
    finally:
        _unlock(lock)


def _lock(folder: Path, wait: bool = True) -> int | None:
    """Locks a folder; `None` if another process holds the lock and this one does not wait, -1 without locks."""
    if fcntl is None:
        return -1
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a network drive without locks
        os.close(descriptor)
        return -1
    return descriptor


def _unlock(lock: int | None):
    if lock is not None and lock != -1:
        os.close(lock)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description="Completes a save to a model's folder that was not finished.")
    parser.add_argument("folder", type=Path, help="folder of the model")
    parser.add_argument("--undo", action="store_true", help="restore the files from before the save")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder")
    with locked(options.folder):
        found = finish(options.folder, options.undo)
    print(
        f"{options.folder}: " + ("nothing to do" if not found else "as before the save" if options.undo else "whole")
    )


__all__ = [
    "StagedFiles",
    "check_finished",
    "finish",
    "main",
    "read_journal",
    "replaced_folder",
    "staged_files",
    "whole_file",
    "write_whole",
]

if __name__ == "__main__":
    main()
