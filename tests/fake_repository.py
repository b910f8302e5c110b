# SPDX-License-Identifier: Apache-2.0
"""A repository of the Hub in memory: branches with commits, each the complete state of the files."""

import hashlib
from dataclasses import dataclass, field


@dataclass
class File:
    """Content of a file; `lfs` if it is stored by its sha256 and not in git."""

    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Commit:
    """A state of a repository, with message and changed files."""

    branch: str
    message: str
    files: dict[str, File]
    changed: list[str]

    @property
    def sha(self) -> str:
        listing = [self.branch, self.message, *(f"{name} {file.oid}" for name, file in sorted(self.files.items()))]
        return hashlib.sha1("\n".join(listing).encode()).hexdigest()


@dataclass
class Repository:
    """Branches by name, and all commits in order; a new one has a first commit, as on the Hub."""

    private: bool
    branches: dict[str, Commit] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)

    def add(self, commit: Commit) -> None:
        self.branches[commit.branch] = commit
        self.commits.append(commit)

    def at(self, revision: str) -> Commit | None:
        by_sha = {commit.sha: commit for commit in self.commits}
        return self.branches.get(revision) or by_sha.get(revision)
