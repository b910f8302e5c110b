# SPDX-License-Identifier: Apache-2.0
"""The placement benchmark runs from end to end, on checkpoints that load, and its summary follows from the cases."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from drawn_figures import drawn_figures
from safetensors import safe_open

from eval.speed.placement import __main__ as table_placement
from eval.speed.placement import cases as placement_cases
from eval.speed.placement import large_tables
from eval.speed.placement.cases import Workload, measure_case
from eval.speed.placement.large_tables import (
    BACKBONE,
    check_space,
    make_checkpoint,
    table_bytes,
    table_files,
    with_tables,
)
from eval.speed.placement.linux import (
    PeakMemory,
    bytes_read,
    cached_share,
    can_evict,
    evict,
    own_mappings,
    random_rows,
    read_in,
    time_drive_reads,
)
from eval.speed.placement.report import summary_table
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


def run_here(threads, function, *arguments):
    """A case in this process: a fresh one would import everything again, a dozen times in a benchmark."""
    return function(*arguments)


def parsed(*arguments):
    return table_placement.make_parser().parse_args([*map(str, arguments)])


def test_the_command_writes_consistent_json_markdown_and_a_chart(drive, monkeypatch):
    monkeypatch.setattr(table_placement, "in_fresh_process", run_here)
    work, output = drive / "work", drive / "results"
    with drawn_figures() as figures:
        table_placement.main(parsed("--quick", "--gigabytes", 0.02, "--work-dir", work, "--output", output))
    assert not list(work.iterdir())  # 8 GB are not left behind
    written = json.loads((output / "table_placement.json").read_text())
    assert {"date", "torch", "cpu", "cores", "threads"} <= written["machine"].keys()
    assert written["tables"]["number"] == 12 and written["tables"]["bytes"] >= 2 * 10**7
    cases = {(case["placement"], case["state"], case["tables"]): case for case in written["cases"]}
    assert len(cases) == len(table_placement.MEASUREMENTS) - 1
    for (placement, state, _), case in cases.items():
        assert case["load"]["cached_share"] == (1 if state == "warm" else 0)
        assert ("added_seconds" in case["decode"][0]) == (state != "warm")
        if state == "warm" or placement == "host":
            assert all(run["bytes_read"] == 0 for run in case["decode"])
    # At least 12 pages a token, since each row is on its own page.
    assert all(run["bytes_read"] >= 12 * 2**12 for run in cases["disk", "evicted", "full"]["decode"])
    text, random = (cases["disk", "cold", "full"][kind] for kind in ("text_prefill", "prefill"))
    assert text[0]["distinct_rows"] < random[0]["distinct_rows"] <= random[0]["rows"] == 12 * 128
    assert written["in_turns"]["decode"]["ratios"].keys() == {"disk", "host"}
    report = (output / "table_placement.md").read_text()
    assert summary_table(written) in report and len(summary_table(written).splitlines()) == 2 + 10
    assert "A quick run" in report and str(drive) not in report + json.dumps(written)
    check_chart(figures["table_placement.png"], cases)


def check_chart(figure, cases: dict):
    """Bars add up to the times, marks are drive reads, and memory is in gigabytes."""
    decode, prefill, memory = figure.panels
    assert [panel.title for panel in figure.panels] == ["decoded token", "prefill of 128", "memory in use"]
    assert [panel.x_label for panel in figure.panels] == ["ms", "s", "GB"]
    assert decode.legend == prefill.legend == ["drive reads", "warm", "added"]
    assert len(decode.y_ticks) == 7 and len(prefill.y_ticks) == 6 and len(memory.y_ticks) == 9
    for panel, phase, scale in ((decode, "decode", 1000), (prefill, "prefill", 1)):
        for name in panel.y_ticks:
            placement, state = name.split(", ")
            drawn = panel.series("warm").named[name] + panel.series("added").named[name]
            runs = cases[placement, state, "full"][phase]
            assert drawn == pytest.approx(scale * median(run["seconds"] for run in runs))
        assert len(panel.series("drive reads").x) == sum("warm" not in name for name in panel.y_ticks)
    anonymous = memory.series("anonymous").named["disk, cold, 1/8 of the tables"]
    assert anonymous == pytest.approx(cases["disk", "cold", "eighth"]["memory"]["anonymous"] / 1e9)


def test_a_case_in_a_fresh_process(drive):
    folder = make_checkpoint(drive, SHAPE, seed=0)
    case = table_placement.in_fresh_process(1, measure_case, folder, "disk", "cold", table_placement.QUICK, 0)
    tables = table_bytes(SHAPE)
    assert case["load"]["bytes_read"] >= (folder / BACKBONE).stat().st_size // 2
    assert 0 < case["prefill"][0]["bytes_read"] < tables + 2**20
    assert {"anonymous", "file"} == case["memory"].keys()


def test_what_a_fresh_process_runs_is_not_in_a_main_module():
    # It does not import the `__main__` of `python -m`, and would end before it measures.
    for name in ("prepare_process", "measure_case", "measure_in_turns", "Workload"):
        assert getattr(placement_cases, name).__module__ == "eval.speed.placement.cases"


def test_a_process_that_fails_says_why():
    with pytest.raises(ValueError, match="Expecting value"):
        table_placement.in_fresh_process(1, json.loads, "the function's own error")
    with pytest.raises(ValueError, match=r"process that measured was killed, .*choose fewer `--gigabytes`"):
        table_placement.in_fresh_process(None, os._exit, 9)


@torch.no_grad()
def test_the_checkpoint_loads_and_holds_the_tables_that_drive_reads_read(checkpoint):
    ids = torch.randint(4, SHAPE.vocab_size, (1, 20))
    models = [LongCatLiteForCausalLM.from_pretrained(checkpoint, ngram_tables=p) for p in ("resident", "disk")]
    logits = [model(ids).logits for model in models]
    assert models[0].dtype == torch.bfloat16 and torch.equal(*logits) and logits[0].isfinite().all()
    tables = table_files(checkpoint)
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
    first = [Path(table.path).read_bytes() for table in table_files(folder)]
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


def test_measurements_depend_on_the_memory():
    choose = table_placement.choose_measurements
    assert choose(8 * 10**9, 20 * 10**9) == (list(table_placement.MEASUREMENTS), [])
    chosen, (reason,) = choose(8 * 10**9, 12 * 10**9)
    assert not any("host" in one.placements for one in chosen) and "host tables" in reason
    assert chosen[-1].placements == ("resident", "disk")
    with pytest.raises(ValueError, match=r"cannot be warm in 9\.0 GB"):
        choose(8 * 10**9, 9 * 10**9)


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


def test_drive_reads_are_of_distinct_rows(checkpoint):
    tables = table_files(checkpoint)
    rows = random_rows(tables, [5] * 11 + [10**9], np.random.default_rng(0))
    assert [len(np.unique(each)) for each in rows] == [5] * 11 + [tables[11].rows]
    seconds = time_drive_reads(tables, [rows, rows])
    assert len(seconds) == 2 and min(seconds) > 0


def test_peak_memory_sees_what_is_gone_again():
    with PeakMemory() as peak:
        before = dict(peak.bytes)
        held = np.ones(2**24)
        del held
    assert peak.bytes["anonymous"] - before["anonymous"] > 2**26


def made_up() -> dict:
    """Results with 1 ms and 0.5 s added, drive reads of half of that, a ratio of 1.1, and 200, 60 and 50 MB."""
    decode = [{"added_seconds": 0.001 + d, "drive_seconds": 0.0005} for d in (-1e-5, 0, 1e-5)]
    prompts = [{"added_seconds": 0.5, "drive_seconds": 0.25}]

    def case(placement, state, tables, megabytes):
        memory = {"anonymous": megabytes * 10**6, "file": 0}
        load = {"seconds": 1.0, "memory": memory}
        use = {"decode": decode, "prefill": prompts, "load": load, "memory": memory}
        return {"placement": placement, "state": state, "tables": tables, **use}

    cases = [case("disk", state, "full", 200) for state in ("cold", "evicted")]
    cases += [case("disk", "cold", "eighth", 60), case("resident", "warm", "none", 50)]
    turns = {phase: {"ratios": {"disk": 1.1}} for phase in ("decode", "prefill")}
    return {"cases": cases, "in_turns": turns, "workload": asdict(Workload())}


def test_the_summary_of_made_up_cases():
    header, _, *lines = summary_table(made_up()).splitlines()
    assert header == "| figure | measured |"
    assert lines == [
        "| disk, cold: added per decoded token | 1.00 ms; drive reads 0.50 ms, ratio 2.00 |",
        "| disk, cold: added per prefill of 4,096 | 0.50 s; drive reads 0.25 s, ratio 2.00 |",
        "| disk, evicted before every token: added per decoded token | 1.00 ms; drive reads 0.50 ms, ratio 2.00 |",
        "| disk, warm: decode time / resident's | 1.100 |",
        "| disk, warm: prefill time / resident's | 1.100 |",
        "| disk: anonymous memory over the backbone's | 150 MB |",
        "| disk, 1/8 of the tables: anonymous memory over the backbone's | 10 MB |",
        "| disk, cold: load | 1.00 s, 150 MB over the backbone's |",
    ]


def test_what_was_not_measured_is_left_out():
    results = made_up()
    results["cases"] = results["cases"][1:2]
    figures = [line.split(":")[0] for line in summary_table(results).splitlines()[2:]]
    assert figures == ["| disk, evicted before every token", "| disk, warm", "| disk, warm"]
