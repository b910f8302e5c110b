# SPDX-License-Identifier: Apache-2.0
"""At any moment there is a whole folder, the old one or the new one."""

from pathlib import Path

import pytest

from modeling_longcat_lite.whole_files import replaced_folder


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail():
        raise OSError("no space")

    output = tmp_path / "output"
    for content in ("first", "second"):
        with replaced_folder(output) as folder:
            (folder / content).touch()
            assert output.exists() == (content == "second")
        assert [path.name for path in output.iterdir()] == [content]
    with pytest.raises(RuntimeError), replaced_folder(output) as folder:
        raise RuntimeError
    # The second of two renames fails: the old folder comes back.
    rename = Path.rename
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"), replaced_folder(output) as folder:
        patch.setattr(Path, "rename", lambda path, to: fail() if path == folder else rename(path, to))
    assert [path.name for path in output.iterdir()] == ["second"]
    # A process that is killed there leaves the old folder aside, and the next one finds it.
    output.rename(tmp_path / ".output.old")
    with pytest.raises(RuntimeError), replaced_folder(output) as folder:
        assert (output / "second").exists()
        raise RuntimeError
    assert [path.name for path in output.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
