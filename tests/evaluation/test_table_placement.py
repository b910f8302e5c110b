# SPDX-License-Identifier: Apache-2.0
"""The placement benchmark runs from end to end, on checkpoints that load, with verdicts that follow from figures."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from eval.speed.placement import __main__ as table_placement
from eval.speed.placement import large_tables
from eval.speed.placement import run as placement_run
from eval.speed.placement.large_tables import check_space, make_checkpoint, stored_tables, table_bytes, with_tables
from eval.speed.placement.linux import (
    PeakMemory,
    bytes_read,
    cached_share,
    can_evict,
    evict,
    own_mappings,
    random_rows,
    read_in,
    time_bare_reads,
)
from eval.speed.placement.verdicts import judge_all
from modeling_longcat_lite import LongCatLiteForCausalLM, ngram_row_ids

SHAPE = with_tables(table_placement.QUICK_SHAPE, 2 * 10**6)


@pytest.fixture
def drive(tmp_path):
    """A folder whose pages can be evicted: not one of a file system in memory."""
    if not can_evict(tmp_path):
        pytest.skip("temporary files lie in memory here")
    return tmp_path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tables"), SHAPE, seed=0)


def run_here(arguments: list[str]) -> dict:
    """A case without a process of its own, which would import everything anew: a dozen times in a benchmark."""
    return placement_run.measure(placement_run.make_parser().parse_args(arguments))


def parsed(*arguments):
    return table_placement.make_parser().parse_args([*map(str, arguments)])


def test_the_command_writes_consistent_json_markdown_and_a_chart(drive, monkeypatch):
    monkeypatch.setattr(table_placement, "launch", run_here)
    work, output = drive / "work", drive / "results"
    table_placement.main(parsed("--quick", "--gigabytes", 0.02, "--work-dir", work, "--output", output))
    assert not list(work.iterdir())  # 8 GB are not left behind
    written = json.loads((output / "table_placement.json").read_text())
    assert {"date", "torch", "cpu", "cores", "threads"} <= written["machine"].keys()
    assert written["tables"]["number"] == 12 and written["tables"]["bytes"] >= 2 * 10**7
    cases = {(case["placement"], case["state"], case["tables"]): case for case in written["cases"]}
    assert len(cases) == len(table_placement.RUNS) - 1
    for (placement, state, _), case in cases.items():
        assert case["load"]["cached_share"] == (1 if state == "warm" else 0)
        assert ("added_seconds" in case["decode"][0]) == (state != "warm")
        if state == "warm" or placement == "host":
            assert all(run["bytes_read"] == 0 for run in case["decode"])
    # 12 pages a token at the least, each row a page of its own.
    assert all(run["bytes_read"] >= 12 * 2**12 for run in cases["disk", "evicted", "full"]["decode"])
    text, random = (cases["disk", "cold", "full"][kind] for kind in ("text_prefill", "prefill"))
    assert text[0]["distinct_rows"] < random[0]["distinct_rows"] <= random[0]["rows"] == 12 * 128
    assert written["in_turns"]["decode"]["ratios"].keys() == {"disk", "host"}
    report = (output / "table_placement.md").read_text()
    assert written["verdicts"] == judge_all(written) and len(written["verdicts"]) == 9
    assert all(f"{entry['target']} | {entry['figure']}" in report for entry in written["verdicts"])
    assert "A quick run" in report and str(drive) not in report + json.dumps(written)
    assert (output / "table_placement.png").read_bytes().startswith(b"\x89PNG")


def test_a_case_in_a_process_of_its_own(drive):
    folder = make_checkpoint(drive, SHAPE, seed=0)
    run = table_placement.Run("full", ("disk",), "cold")
    case = table_placement.launch(table_placement.run_arguments(run, folder, table_placement.QUICK_PLAN, 0, 1))
    tables = table_bytes(SHAPE)
    assert case["load"]["bytes_read"] >= (folder / "model-backbone.safetensors").stat().st_size // 2
    assert 0 < case["prefill"][0]["bytes_read"] < tables + 2**20
    assert {"anonymous", "file"} == case["memory"].keys()


def test_a_case_that_fails_says_why(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho the table is gone >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(table_placement.sys, "executable", str(program))
    with pytest.raises(RuntimeError, match=r"(?s)placement.run ended with 3.*the table is gone"):
        table_placement.launch([])


@torch.no_grad()
def test_the_checkpoint_loads_and_holds_the_tables_that_bare_reads_read(checkpoint):
    ids = torch.randint(4, SHAPE.vocab_size, (1, 20))
    models = [LongCatLiteForCausalLM.from_pretrained(checkpoint, ngram_tables=p) for p in ("resident", "disk")]
    logits = [model(ids).logits for model in models]
    assert models[0].dtype == torch.bfloat16 and torch.equal(*logits) and logits[0].isfinite().all()
    tables = stored_tables(checkpoint)
    assert [table.rows for table in tables] == models[0].config.subtable_sizes
    assert sum(table.rows * table.row_bytes for table in tables) == table_bytes(SHAPE) >= 2 * 10**6
    table, row = tables[3], int(ngram_row_ids(models[0].config, ids)[3, 0, -1])
    with Path(table.path).open("rb") as file:
        file.seek(table.offset + row * table.row_bytes)
        stored = torch.frombuffer(bytearray(file.read(table.row_bytes)), dtype=torch.bfloat16)
    assert torch.equal(stored, models[0].model.ngram_embeddings.embedders[3].weight[row])
    assert not torch.equal(stored, models[0].model.ngram_embeddings.embedders[3].weight[row - 1])
    with safe_open(table.path, framework="pt") as file:
        assert list(file.keys()) == ["model.ngram_embeddings.embedders.3.weight"]


def test_a_checkpoint_is_made_in_blocks_and_made_once(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(large_tables, "BLOCK", 1000)
    done = []
    folder = make_checkpoint(tmp_path, SHAPE, 0, done.append)
    assert sum(done) == table_bytes(SHAPE) and not list(tmp_path.glob("*.partial"))
    first = [Path(table.path).read_bytes() for table in stored_tables(folder)]
    assert len(set(first)) == 12
    written = (folder / "config.json").stat().st_mtime_ns
    assert make_checkpoint(tmp_path, SHAPE, 0) == folder and (folder / "config.json").stat().st_mtime_ns == written
    assert make_checkpoint(tmp_path, SHAPE, 1) != folder


def test_too_little_space_is_named_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    shape = with_tables(table_placement.QUICK_SHAPE, 3 * 10**9)
    with pytest.raises(ValueError, match=r"need 3\.3 GB.* has 1\.0 GB free: 2\.3 GB are missing"):
        check_space(tmp_path, [shape])
    monkeypatch.setattr(table_placement, "available_memory", lambda: 10**11)
    with pytest.raises(ValueError, match=r"7\.\d GB are missing"):
        table_placement.main(parsed("--gigabytes", 7.2, "--work-dir", tmp_path, "--output", tmp_path / "results"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_file_system_in_memory_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(table_placement, "can_evict", lambda folder: False)
    with pytest.raises(ValueError, match=r"`--work-dir` stay in memory.*tmpfs"):
        table_placement.main(parsed("--quick", "--work-dir", tmp_path, "--output", tmp_path))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_runs_follow_the_memory():
    assert table_placement.choose_runs(8 * 10**9, 20 * 10**9) == (list(table_placement.RUNS), [])
    runs, (reason,) = table_placement.choose_runs(8 * 10**9, 12 * 10**9)
    assert not any("host" in run.placements for run in runs) and "host tables" in reason
    assert runs[-1].placements == ("resident", "disk")
    with pytest.raises(ValueError, match=r"cannot be warm in 9\.0 GB"):
        table_placement.choose_runs(8 * 10**9, 9 * 10**9)


def test_pages_are_evicted_though_this_process_maps_them(drive):
    path = drive / "pages"
    path.write_bytes(np.random.default_rng(0).bytes(3 * 2**20))
    mapped = torch.from_file(str(path), shared=False, size=3 * 2**20, dtype=torch.uint8)
    total = mapped.long().sum()
    assert own_mappings([path]) and cached_share([path]) == 1
    evict([path])
    assert cached_share([path]) == 0
    assert mapped.long().sum() == total  # they come back
    evict([path])
    read = bytes_read()
    read_in([path])
    assert cached_share([path]) == 1 and bytes_read() - read >= 3 * 2**20


def test_bare_reads_are_of_distinct_rows(checkpoint):
    tables = stored_tables(checkpoint)
    rows = random_rows(tables, [5] * 11 + [10**9], np.random.default_rng(0))
    assert [len(np.unique(each)) for each in rows] == [5] * 11 + [tables[11].rows]
    seconds = time_bare_reads(tables, [rows, rows])
    assert len(seconds) == 2 and min(seconds) > 0


def test_peak_memory_sees_what_is_gone_again():
    with PeakMemory() as peak:
        before = dict(peak.bytes)
        held = np.ones(2**24)
        del held
    assert peak.bytes["anonymous"] - before["anonymous"] > 2**26


def made_up(added: float = 1.0, bare: float = 0.5, prefill: float = 0.5, ratio: float = 1.1, grown: int = 150) -> dict:
    """Results with times in ms, s and MB as given."""
    decode = [{"added_seconds": added / 1000 + d, "bare_seconds": bare / 1000} for d in (-1e-5, 0, 1e-5)]
    prompts = [{"added_seconds": prefill, "bare_seconds": 0.25}]

    def case(placement, state, tables, megabytes):
        memory = {"anonymous": megabytes * 10**6, "file": 0}
        load = {"seconds": 1.0, "memory": memory}
        use = {"decode": decode, "prefill": prompts, "load": load, "memory": memory}
        return {"placement": placement, "state": state, "tables": tables, **use}

    cases = [case("disk", state, "full", 50 + grown) for state in ("cold", "evicted")]
    cases += [case("disk", "cold", "eighth", 60), case("resident", "warm", "none", 50)]
    turns = {phase: {"ratios": {"disk": ratio}} for phase in ("decode", "prefill")}
    return {"cases": cases, "in_turns": turns, "plan": asdict(placement_run.Plan())}


@pytest.mark.parametrize(
    ("figures", "missed"),
    [
        ({}, set()),
        ({"added": 1.6}, {"disk, cold: added per decoded token", "disk, evicted before every token: added"}),
        ({"added": 2.5, "bare": 2.0}, set()),  # a slow drive
        ({"prefill": 0.71}, {"disk, cold: added per prefill of 4,096"}),
        ({"ratio": 1.16}, {"disk, warm: decode", "disk, warm: prefill"}),
        ({"grown": 301}, {"disk: anonymous memory", "disk, cold: load"}),
        ({"grown": 250}, {"disk, cold: load"}),
    ],
)
def test_verdicts_on_made_up_figures(figures, missed):
    verdicts = judge_all(made_up(**figures))
    assert len(verdicts) == 7
    found = {entry["requirement"] for entry in verdicts if not entry["met"]}
    assert len(found) == len(missed)
    assert all(any(requirement.startswith(name) for requirement in found) for name in missed)


def test_what_was_not_measured_is_not_judged():
    results = made_up()
    results["cases"] = results["cases"][:1]
    assert {entry["requirement"].split(":")[0] for entry in judge_all(results)} == {"disk, cold", "disk, warm"}
