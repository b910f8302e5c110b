# SPDX-License-Identifier: Apache-2.0
"""A note beside a built folder whose upload has not ended: the same command goes on, and does not build it again."""

import argparse
import json
from pathlib import Path

from model_cards.hub_upload import push_folder

OF_THE_UPLOAD = ("private", "revision", "commit_message", "overwrite")  # the card names the repository


class UnfinishedPush:
    """What a folder was built from, beside it as `.NAME.push.json` from its building until it is uploaded.

    Args:
        args (`argparse.Namespace`): What the folder depends on, options of the upload aside; of the files and folders
            that it names, size and time count.
        output (`Path`): The built folder.
    """

    def __init__(self, args: argparse.Namespace, output: Path):
        self.output = output
        self.note = output.absolute().with_name(f".{output.name}.push.json")
        options = {name: value for name, value in vars(args).items() if name not in OF_THE_UPLOAD}
        values = [value for values in options.values() for value in (values if isinstance(values, list) else [values])]
        sources = [value for value in values if isinstance(value, Path) and value != output]
        files = [file for source in sources for file in ([source] if source.is_file() else sorted(source.glob("*")))]
        self.built_from = {
            "options": {name: str(value) for name, value in sorted(options.items())},
            "files": {str(file): [(at := file.stat()).st_size, at.st_mtime_ns] for file in files},
        }

    def is_built(self) -> bool:
        """Whether the folder was built by the same command from the same files, and is to be uploaded still."""
        if not (self.note.is_file() and self.output.is_dir()):
            return False
        return bool(json.loads(self.note.read_text(encoding="utf-8")) == self.built_from)

    def push(self, repo: str, private: bool, revision: str | None, commit_message: str | None) -> str:
        """As [`push_folder`] of the built folder; the note is there until it ends."""
        self.note.write_text(json.dumps(self.built_from, indent=2) + "\n", encoding="utf-8")
        address = push_folder(self.output, repo, private, revision, commit_message)
        self.note.unlink()
        return address


__all__ = ["UnfinishedPush"]
