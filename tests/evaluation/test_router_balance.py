# SPDX-License-Identifier: Apache-2.0
"""The figures of router control: the command writes them, and verdicts follow from what was logged."""

import json

import pytest

from eval.studies import router_balance
from training.data.token_rows import TextSettings


def entries(means: list[float], spread: float, share: float | None = None) -> list[dict[str, float]]:
    shared = {"loss": 2.0, "experts/load_spread": spread}
    if share is not None:
        shared |= {"balance_loss": 1.0, "balance_gradient_share": share}
    return [{"step": step, "experts/mean": mean, **shared} for step, mean in enumerate(means)]


@pytest.mark.parametrize(("late", "spread", "share"), [(2.05, 0.2, 0.05), (2.2, 0.2, 0.05), (2.05, 0.5, 0.2)])
def test_verdicts_follow_from_the_log(late, spread, share):
    logged = {
        "watched": entries([2.6] * 4, 0.4),
        "selection bias": entries([2.6, 2.3, 2.0, late], 0.4),
        "balance loss": entries([2.6] * 4, spread, share),
        "both": entries([2.0] * 4, spread, share),
    }
    assert list(router_balance.summarize(logged, 2.0)["verdicts"].values()) == [late < 2.1, spread < 0.4, share < 0.1]


def test_the_command_writes_its_report(tmp_path, monkeypatch):
    files = [tmp_path / f"document{number}.txt" for number in range(12)]
    for number, file in enumerate(files):
        file.write_text(" ".join(f"word{(number * 7 + place * place) % 23}" for place in range(400)))
    text = TextSettings(300, 128, held_out_percent=20, files=list(map(str, files)), standard_library=False)
    monkeypatch.setattr(router_balance, "TEXT", text)
    options = ["--begin", "2", "--steps", "4", "--every", "2", "--text", str(tmp_path / "text")]
    options += ["--output", str(tmp_path)]
    router_balance.main(router_balance.make_parser().parse_args(options))
    results = json.loads((tmp_path / "router_balance.json").read_text())
    assert {name: len(entries) for name, entries in results["logged"].items()} == dict.fromkeys(
        router_balance.CONTROLS, 2
    )
    assert "| selection bias |" in (tmp_path / "router_balance.md").read_text()
    assert (tmp_path / "router_balance.png").read_bytes().startswith(b"\x89PNG")
