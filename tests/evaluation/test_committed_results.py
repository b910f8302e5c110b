# SPDX-License-Identifier: Apache-2.0
"""eval/results holds what a page of this repository shows, and nothing else."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "eval" / "results"
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def committed(*patterns: str) -> list[Path]:
    """Files under version control: commands write their own into the same folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:  # not a checkout
        return [path for pattern in patterns for path in ROOT.glob(pattern if "/" in pattern else f"**/{pattern}")]
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).exists()]


def linked(page: Path) -> set[Path]:
    """The local files that a page links to or shows."""
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    return {(page.parent / target).resolve() for target in targets if "://" not in target}


PAGES = {page for page in committed("*.md") if RESULTS not in page.parents}
FILES = [path for path in committed("eval/results/*") if path.is_file()]


def test_there_are_pages_and_results():
    assert len(PAGES) >= 4 and len(FILES) >= 30


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_committed_result_is_shown(path):
    shown = set().union(*map(linked, PAGES))
    reports = {page for page in shown if page.parent == RESULTS and page.suffix == ".md"}
    figures = set().union(*map(linked, reports))
    same_name = {report.with_suffix(suffix) for report in reports for suffix in (".json", ".png")}
    assert path.resolve() in shown | figures | same_name, f"no page shows {path.name}: link to it, or remove it"


@pytest.mark.parametrize("report", [path for path in FILES if path.suffix == ".md"], ids=lambda path: path.name)
def test_a_report_has_its_data_and_figures(report):
    missing = [path.name for path in {report.with_suffix(".json"), *linked(report)} if not path.exists()]
    assert not missing, f"{report.name} lacks {missing}"


@pytest.mark.parametrize("report", [path for path in FILES if path.suffix == ".md"], ids=lambda path: path.name)
def test_a_report_does_not_judge(report):
    assert not re.search(r"\b(missed|met|reached|passed|short of the mark)\b", report.read_text(encoding="utf-8"))
