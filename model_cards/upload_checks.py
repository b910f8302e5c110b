# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder go to the Hub: not what training leaves, and none if a file is missing or has a secret.

Nothing here uses the network.
"""

import mmap
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from eval.reports.results import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from model_cards.training_record import read_json
from training.run.hub_pushes import NOT_UPLOADED

HIDDEN_BUT_READ_BY_THE_HUB = (".gitattributes", ".eval_results")
KEY_FILES = ("*.pem", "*.key", "*.p12", "id_rsa*", "id_ed25519*")
SECRET_FILES = (".env", ".env.*", ".netrc", "token", ".git-credentials", "credentials*", "secrets.*", *KEY_FILES)
SECRETS = {
    "a Hugging Face token": rb"\bhf_(?:[a-z]{2,8}_)?[A-Za-z0-9]{30,}",
    # With a digit somewhere: words joined by hyphens are not a key.
    "an API key": rb"\bsk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})",
    "a Google API key": rb"\bAIza[0-9A-Za-z_-]{35}",
    "an AWS key": rb"\bAKIA[0-9A-Z]{16}\b",
    "a private key": rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
}
SHORTEST_TOKEN = 8  # anything shorter occurs in any text by chance
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def files_to_upload(folder: Path) -> tuple[list[str], list[str]]:
    """The files that go to the Hub, and the files and folders that do not, as sorted relative paths.

    Raises:
        `ValueError`: naming the file, when its name is that of a key or of credentials, or it cannot be read.
    """
    chosen, left_out, waiting = [], [], [folder]
    while waiting:
        for path in waiting.pop().iterdir():
            name = path.relative_to(folder).as_posix()
            if path.is_file() and matches(path.name, SECRET_FILES):
                raise ValueError(
                    f"`folder` {folder} contains {name}, which looks like a secret; move it elsewhere first"
                )
            is_hidden = path.name.startswith(".") and path.name not in HIDDEN_BUT_READ_BY_THE_HUB
            if is_hidden or matches(path.name, NOT_UPLOADED):
                left_out.append(name + "/" * path.is_dir())
            elif path.is_dir():
                waiting.append(path)
            elif path.is_file():
                chosen.append(name)
            else:
                raise ValueError(
                    f"`folder` {folder} contains {name}, which is not a file or links to nothing; remove it first"
                )
    return sorted(chosen), sorted(left_out)


def is_adapter(files: Iterable[str]) -> bool:
    """Whether these are the files of an adapter and not of a model."""
    return ADAPTER_CONFIG in files and "config.json" not in files


def check_complete(folder: Path, files: list[str]) -> None:
    """Check that a model has weights, code, tokenizer and card, and an adapter weights and a card.

    Raises:
        `ValueError`: naming what is missing.
    """
    if is_adapter(files):
        needed = [ADAPTER_WEIGHTS, "README.md"]
    else:
        needed = ["config.json", "tokenizer.json", "README.md", *weights_files(folder, files)]
    missing = [name for name in needed if name not in files]
    if not missing and not is_adapter(files):
        missing = missing_code(folder)
    if missing:
        raise ValueError(
            f"`folder` {folder} lacks {', '.join(missing)}; `python -m model_cards.build_hub_repo --model {folder} "
            "--output ...` builds a complete folder"
        )


def weights_files(folder: Path, files: list[str]) -> list[str]:
    """The files with the weights: one, or those that the index names."""
    if WEIGHTS in files or INDEX not in files:
        return [WEIGHTS]
    return sorted(set(read_json(folder / INDEX, "weight_map")["weight_map"].values()))


def missing_code(folder: Path) -> list[str]:
    """Code files that `trust_remote_code` needs and the folder lacks: those of `auto_map`, and what they import."""
    classes = read_json(folder / "config.json").get("auto_map")
    if not classes:
        return ["`auto_map` in config.json"]
    # "user/name--module.Class" is code of another repository.
    waiting = {name.split(".")[0] for name in classes.values() if "--" not in name}
    found, missing = set[str](), []
    while waiting:
        module = waiting.pop()
        found.add(module)
        file = folder / f"{module}.py"
        if file.is_file():
            imported = re.findall(r"^\s*from \.(\w+) import", file.read_text(encoding="utf-8"), re.MULTILINE)
            waiting |= set(imported) - found
        else:
            missing.append(file.name)
    return sorted(missing)


def check_secrets(folder: Path, files: list[str], token: str) -> None:
    """Look for tokens and keys in all files; of safetensors, in the headers.

    Raises:
        `ValueError`: naming file, line and kind of the first one, never the secret itself.
    """
    for name in files:
        path = folder / name
        if not path.stat().st_size:  # cannot be mapped
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            end = len(data)
            if path.suffix == ".safetensors":
                end = min(end, 8 + int.from_bytes(data[:8], "little"))
            check_text(str(path), data, token, end)


def check_text(where: str, text: bytes | mmap.mmap, token: str | None, end: int | None = None) -> None:
    """Look for tokens and keys in a text, up to byte `end`; `token` is the user's own.

    Raises:
        `ValueError`: naming `where`, line and kind of the first one, never the secret itself.
    """
    patterns = dict(SECRETS)
    if token and len(token) >= SHORTEST_TOKEN:
        patterns["your own token"] = re.escape(token.encode())
    # `re.escape` and the patterns have no capturing groups, so the last group's number tells which one matched.
    secret = re.compile(b"|".join(b"(%s)" % pattern for pattern in patterns.values()))
    found = secret.search(text, 0, len(text) if end is None else end)
    if found is not None:
        line = 1 + text[: found.start()].count(b"\n")
        kind = list(patterns)[(found.lastindex or 1) - 1]
        raise ValueError(f"{where}, line {line}: contains {kind}; remove it, and revoke it if it was shared")


__all__ = ["check_complete", "check_secrets", "check_text", "files_to_upload", "is_adapter"]
