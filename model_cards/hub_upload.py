# SPDX-License-Identifier: Apache-2.0
"""Upload a folder to the Hub: everything that can be checked is checked before the first byte is sent.

`HfApi.upload_folder` of huggingface_hub 2 sends the files; it includes what was `upload_large_folder`. With `hf_xet`,
which is installed with it, a large folder arrives in several commits, `MESSAGE`, `MESSAGE (part 2)`, ..., and the
repository is complete only after the last one. Without it (`HF_HUB_DISABLE_XET=1`) there is one commit at the end.
Either way, a second run does not send again what has arrived.

[`UnfinishedPush`] lets a command that builds a folder and uploads it skip the building when it is run again.
"""

import argparse
import glob
import json
import logging
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from model_cards.adapter_folder import checked_base, with_base
from model_cards.upload_checks import check_complete, check_secrets, files_to_upload, is_adapter, matches
from modeling_longcat_lite.whole_files import check_finished, write_whole

# Files of an earlier push that `from_pretrained` would read together with the new weights.
ROW_DELTAS = ("ngram_row_delta.safetensors", "ngram_row_delta.md")
ADAPTER_REMAINS = ("adapter_model.safetensors", *ROW_DELTAS)
MODEL_REMAINS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "adapter_config.json",
    *ADAPTER_REMAINS,
)
# Options that do not change the built folder; `--push` does, since the card names the repository.
UPLOAD_OPTIONS = ("private", "revision", "commit_message", "overwrite", "debug")
logger = logging.getLogger(__name__)


def add_push_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of an upload, which [`push_folder`] takes under the same names."""
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, created if it does not exist; main if left out")
    parser.add_argument("--commit-message", metavar="TEXT", help="first line of the commit")


def check_destination(repo: str, revision: str | None = None) -> str:
    """Check the destination as far as that needs no network; returns the token.

    Raises:
        `ValueError`: no repository or branch can have that name, there is no token, or `HF_HUB_OFFLINE` is set.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"`repo` {repo!r} is not the name of a repository; write it as user/name: {error}") from error
    if revision is not None and constants.REGEX_COMMIT_OID.fullmatch(revision):
        raise ValueError(f"`revision` {revision} is a commit, and commits do not change; name a branch")
    if constants.HF_HUB_OFFLINE:
        raise ValueError("`HF_HUB_OFFLINE` is set, so nothing can be uploaded; unset it")
    token = get_token()
    if not token:
        raise ValueError(
            "there is no token to upload with: create one with write access at "
            "https://huggingface.co/settings/tokens, then run `hf auth login` or set HF_TOKEN"
        )
    return token


def push_folder(
    folder: Path,
    repo: str,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    base_model: str | None = None,
) -> str:
    """Upload a model's or an adapter's folder; returns the address of the commit.

    The (first) commit also removes files of an earlier push that a loader would read with the new weights. The folder
    itself does not change.

    Args:
        folder (`Path`): Complete folder of a model, or of an adapter, with or without `ngram_row_delta.safetensors`.
        repo (`str`): `"user/name"`; created if it does not exist.
        private (`bool`, *optional*, defaults to `False`): Whether to create the repository as a private one.
        revision (`str`, *optional*): Branch, created if it does not exist, or `"refs/pr/N"`; `"main"` by default.
        commit_message (`str`, *optional*): First line of the commit.
        base_model (`str`, *optional*): Name of an adapter's base on the Hub, if the adapter names a local folder.

    Raises:
        `ValueError`: naming what is wrong with the name, the token or the folder; nothing was sent. Also when
            `private` is set and the repository exists and is public.
    """
    token = check_destination(repo, revision)
    if not folder.is_dir():
        raise ValueError(f"`folder` {folder} is not a folder")
    check_finished(folder)
    files, left_out = files_to_upload(folder)
    check_complete(folder, files)
    check_secrets(folder, files, token)
    base = checked_base(folder, files, base_model)
    if left_out:
        logger.warning("not uploaded: %s", ", ".join(left_out))
    api = HfApi()
    if base is not None and not api.repo_exists(base):
        raise ValueError(f"`base_model`: there is no {base} on the Hub that you may read; push it first")
    repo = make_repository(api, repo, private, revision)
    try:
        with with_base(folder, files, base) as prepared:
            return send(api, prepared, files, repo, revision, commit_message)
    except BaseException as error:
        error.add_note(
            f"{folder} has not changed. Run the same command again to go on: files that arrived are not sent again."
        )
        raise


def make_repository(api: HfApi, repo: str, private: bool, revision: str | None) -> str:
    """Create the repository and the branch if they do not exist; returns the repository's full name."""
    # Without `private` the setting of the organization counts.
    repo = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
    if private and not api.model_info(repo).private:  # the Hub ignores the argument if the repository exists
        raise ValueError(f"`private`: {repo} exists and is public; change that in its settings, or use another name")
    if revision not in (None, constants.DEFAULT_REVISION) and not str(revision).startswith("refs/"):
        api.create_branch(repo, branch=str(revision), exist_ok=True)
    return repo


def send(api: HfApi, folder: Path, files: list[str], repo: str, revision: str | None, message: str | None) -> str:
    """Send the files, remove what would be read with them, and check that all arrived."""
    remains = ADAPTER_REMAINS if is_adapter(files) else MODEL_REMAINS
    there = set(api.list_repo_files(repo, revision=revision))
    if is_adapter(files) and "config.json" in there:
        raise ValueError(f"`repo`: {repo} has a whole model, which the adapter would hide; use another name")
    stale = sorted(name for name in there - set(files) if matches(name, remains))
    if stale:
        logger.warning("removing from %s what an earlier push left: %s", repo, ", ".join(stale))
    commit = api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        revision=revision,
        commit_message=message or f"Upload {'adapter' if is_adapter(files) else 'model'}",
        allow_patterns=[glob.escape(name) for name in files],
        delete_patterns=stale or None,
    )
    missing = sorted(set(files) - set(api.list_repo_files(repo, revision=revision)))
    if missing:
        raise ValueError(f"{repo} did not take {', '.join(missing)}; look whether its .gitignore names them")
    return str(commit.commit_url)


class UnfinishedPush:
    """A note of what a folder was built from, kept next to it as `.NAME.push.json` until the folder is uploaded.

    Args:
        arguments (`argparse.Namespace`):
            Of the command that builds the folder. All but `UPLOAD_OPTIONS` count; of the files and folders among
            them, sizes and times count too.
        output (`Path`): The built folder.
    """

    def __init__(self, arguments: argparse.Namespace, output: Path):
        self.output = output
        self.note = output.absolute().with_name(f".{output.name}.push.json")
        options = {name: value for name, value in vars(arguments).items() if name not in UPLOAD_OPTIONS}
        values = [value for values in options.values() for value in (values if isinstance(values, list) else [values])]
        sources = [value for value in values if isinstance(value, Path) and value != output]
        files = [file for source in sources for file in ([source] if source.is_file() else sorted(source.glob("*")))]
        self.built_from = {
            "options": {name: str(value) for name, value in sorted(options.items())},
            "files": {str(file): [(at := file.stat()).st_size, at.st_mtime_ns] for file in files},
        }

    def is_built(self) -> bool:
        """Whether the same command built the folder from the same files and did not finish uploading it."""
        if not (self.note.is_file() and self.output.is_dir()):
            return False
        return bool(json.loads(self.note.read_text(encoding="utf-8")) == self.built_from)

    def push(self, repo: str, private: bool, revision: str | None, commit_message: str | None) -> str:
        """[`push_folder`] of the built folder; the note is there until it succeeds."""
        write_whole(self.note, json.dumps(self.built_from, indent=2) + "\n")
        address = push_folder(self.output, repo, private, revision, commit_message)
        self.note.unlink()
        return address


__all__ = ["UnfinishedPush", "add_push_options", "check_destination", "push_folder"]
