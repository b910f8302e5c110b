# SPDX-License-Identifier: Apache-2.0
"""`eval.fit`: sizes and options, placement against accelerate, changes, speed, and what is printed to be pasted."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CONFORMANCE
from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map

from eval.fit import __main__ as fit
from eval.fit.activations import Workload
from eval.fit.changes import Search, find_changes
from eval.fit.placement import PLACEMENTS, Machine, Model, Plan, plan
from eval.fit.speed import estimate, expert_share
from eval.fit.weights import read_checkpoint
from eval.reports.units import format_size, parse_size
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM, experts_quantization
from modeling_longcat_lite.experts_quantization import EXPERT_FORMATS

ROOT = Path(__file__).parents[2]
GB, GIB = 10**9, 2**30


def run_fit(*options) -> None:
    fit.main(fit.make_parser().parse_args([str(option) for option in options]))


@pytest.fixture(scope="module")
def released() -> Model:
    return Model.of(read_checkpoint(None), bits=None)


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * GB), ("24GiB", 24 * GIB), ("1.5 GiB", 3 * GIB // 2), ("64gb", 64 * GB), ("900MB", 900 * 10**6)],
)
def test_sizes(text, size):
    assert parse_size(text, "--gpu-memory") == size


def test_rates_may_say_a_second():
    assert parse_size("25GB/s", "--link-bandwidth", per_second=True) == parse_size("25GB", "--link-bandwidth")
    assert format_size(62_813_995_008) == "62.8 GB" and format_size(512) == "512 B"


@pytest.mark.parametrize("text", ["24", "GB", "24Gb/s", "-3GB", "0GB", "24 apples", ""])
def test_a_wrong_size_names_its_option(text):
    with pytest.raises(ValueError, match=r"`--host-memory`.*write it as `24GB`"):
        parse_size(text, "--host-memory")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host-memory", "64"], "`--host-memory`"),
        (["--host-memory", "64GB", "--gpu-bandwidth", "fast"], "`--gpu-bandwidth`"),
        (["--host-memory", "64GB", "--context", 400_000], "`--context`.*327680"),
        (["--host-memory", "64GB", "--batch-size", 0], "`--batch-size`"),
        (["--host-memory", "64GB", "--gpus", 65], "`--gpus`"),
        (["--host-memory", "64GB", "--prefill-chunk", -1], "`--prefill-chunk`"),
        (["--host-memory", "64GB", "--tflops", 0], "`--tflops`"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        run_fit("--gpu-memory", "24GB", *options)


def test_gpus_need_their_memory():
    with pytest.raises(ValueError, match="`--gpu-memory` is missing"):
        run_fit("--host-memory", "64GB")


MACHINES = [
    (1, 24 * GIB, 64 * GIB),
    (1, 48 * GB, 128 * GB),
    (1, 80 * GB, 64 * GB),
    (2, 80 * GB, 128 * GB),
    (4, 24 * GB, 64 * GB),
    (8, 24 * GB, 64 * GB),
]


def released_on_meta(placement: str) -> LongCatLiteForCausalLM:
    with torch.device("meta"):
        model = LongCatLiteForCausalLM(LongCatLiteConfig(num_nextn_predict_layers=1), ngram_tables=placement)
    return model.to(torch.bfloat16)


@pytest.mark.parametrize(("gpus", "gpu_memory", "host_memory"), MACHINES)
def test_modules_go_where_accelerate_puts_them(released, gpus, gpu_memory, host_memory):
    plans = [plan(released, Workload(), Machine(gpus, gpu_memory, host_memory), placement) for placement in PLACEMENTS]
    assert any(result.fits for result in plans)
    for result in plans:
        if result.fits:
            model = released_on_meta(result.placement)
            split = {"no_split_module_classes": model._no_split_modules}
            budgets = get_balanced_memory(model, max_memory=dict(result.max_memory), **split)
            compare_places(result, infer_auto_device_map(model, max_memory=budgets, **split))


def compare_places(result: Plan, theirs: dict[str, int | str]):
    """Module by module, and the sums of every GPU."""

    def their_place(name: str):
        while name not in theirs:
            name = name.rpartition(".")[0]
        return theirs[name]

    assert "disk" not in theirs.values()
    beside_modules = "model.ngram_embeddings"  # the buffers of the hash
    placed = dict.fromkeys(range(len(result.gpus)), 0)
    for unit in result.on_gpu:
        if unit.name != beside_modules:
            assert their_place(unit.name) != "cpu", unit.name
            placed[their_place(unit.name)] += unit.size
    assert {their_place(unit.name) for unit in result.on_host} <= {"cpu"}
    beside = ("KV cache", "activations", "layer in transit", "reserve")
    ours = [sum(size for part, size in gpu.items() if part not in beside) for gpu in result.gpus]
    assert ours == pytest.approx(list(placed.values()), abs=1000)


def test_a_plan_stays_inside_the_machine(released):
    for gpus, gpu_memory, host_memory in MACHINES:
        for placement in PLACEMENTS:
            result = plan(released, Workload(), Machine(gpus, gpu_memory, host_memory), placement)
            weights = sum(unit.size for unit in released.units[placement])
            assert sum(unit.size for unit in result.on_gpu + result.on_host) == weights
            if result.fits:
                assert all(sum(gpu.values()) <= gpu_memory for gpu in result.gpus)
                assert sum(result.host.values()) <= host_memory


def changed(options: str, run: Workload, machine: Machine) -> tuple[Workload, Machine]:
    """The run and the machine with the options of a change."""
    words = options.split()
    for option, value in zip(words[::2], words[1::2], strict=True):
        name = {"--prefill-chunk": "chunk", "--batch-size": "batch"}.get(
            option, option.removeprefix("--").replace("-", "_")
        )
        number = parse_size(value, option) if name.endswith("memory") else int(value)
        if name in ("gpus", "gpu_memory", "host_memory"):
            machine = replace(machine, **{name: number})
        else:
            run = replace(run, **{name: number})
    return run, machine


@pytest.mark.parametrize(
    ("machine", "run"),
    [
        (Machine(1, 24 * GB, 64 * GB), Workload()),
        (Machine(1, 8 * GB, 16 * GB), Workload()),
        (Machine(1, 80 * GB, 64 * GB), Workload(context=131072, batch=8, chunk=131072)),
        (Machine(0, 0, 100 * GB), Workload(context=131072, batch=32)),
        (Machine(1, 16 * GB, 128 * GB), Workload(chunk=32768)),
        (Machine(1, 80 * GB, 64 * GB), Workload(context=100)),
    ],
)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_change_does_what_it_says(released, machine, run, placement):
    fits = plan(released, run, machine, placement).fits
    found = find_changes(Search(released, run, machine, placement))
    assert bool(found) != fits
    for change in found:
        if change.options.startswith("--"):
            new_run, new_machine = changed(change.options, run, machine)
            model = released if new_run.bits is None else Model.of(released.checkpoint, new_run.bits)
            assert plan(model, new_run, new_machine, placement).fits, change


def test_fewer_bits_fit_the_host(released):
    options = [c.options for c in find_changes(Search(released, Workload(), Machine(1, 80 * GB, 64 * GB), "host"))]
    assert "--bits 8" in options and "--host-memory 65GB" in options


def test_an_expert_format_is_one_entry(tmp_path, monkeypatch):
    page = (ROOT / "eval" / "checkpoints" / "adding_an_expert_format.md").read_text()
    monkeypatch.setitem(EXPERT_FORMATS, "int8-rows", None)  # which is undone
    names = dict(vars(experts_quantization))
    for block in page.split("```python\n")[1:]:
        exec(block.split("```")[0], names)
    values, decoded = 33_822_867_456, {}  # 14 layers of 256 experts with 3 matrices of 1024 x 3072
    rows, blocks = 14 * 256 * (1024 + 1024 + 3072), 14 * 256 * 3 * 8 * 24
    sizes = {"bfloat16": 2 * values, "fp8": values + 4 * blocks, "int8-rows": values + 2 * rows}
    for name, size in sizes.items():
        memory = ["--gpus", 2, "--gpu-memory", "80GB", "--host-memory", "128GB"]
        run_fit(*memory, "--experts", name, "--output", tmp_path)
        results = json.loads((tmp_path / "fit.json").read_text())
        best = results["placements"]["disk"]
        assert sum(gpu.get("routed experts", 0) for gpu in best["gpus"]) == size
        decoded[name] = best["speed"]["decode_tokens_per_second"]
        assert (name in (tmp_path / "fit.md").read_text()) and (name in str(results["arguments"]))
    assert min(decoded["int8-rows"], decoded["fp8"]) > decoded["bfloat16"]
    # Prefilling multiplies as many values, however they are stored.
    speeds = {}
    for name in ("bfloat16", "fp8"):
        model = Model.of(read_checkpoint(None, experts=name), bits=None)
        machine = Machine(2, 80 * GB, 128 * GB, tflops=1.0)
        speeds[name] = estimate(model, Workload(), machine, plan(model, Workload(), machine, "disk")).prefill
    assert speeds["fp8"]["arithmetic"] == pytest.approx(speeds["bfloat16"]["arithmetic"], rel=1e-9)


def test_what_keeps_the_link_free(released):
    machine = Machine(1, 24 * GIB, 64 * GIB)
    for change in find_changes(Search(released, Workload(), machine, "disk", on_gpus=True)):
        new_run, new_machine = changed(change.options, Workload(), machine)
        assert plan(released, new_run, new_machine, "disk").offloaded == 0


def test_the_link_is_what_layers_on_the_host_cost(released):
    run, machine = Workload(), Machine(1, 24 * GIB, 64 * GIB)
    result = plan(released, run, machine, "disk")
    seconds = estimate(released, run, machine, result).decode
    not_run = sum(unit.parts.get("draft head", 0) for unit in result.on_host)
    assert seconds["link"] == pytest.approx((result.offloaded - not_run) / 25e9)
    faster = replace(machine, link_bandwidth=50e9)
    assert estimate(released, run, faster, result).decode["link"] == pytest.approx(seconds["link"] / 2)


def test_decoding_without_a_link_reads_active_weights(released):
    run, machine = Workload(context=1), Machine(2, 80 * GB, 128 * GB)
    result = plan(released, run, machine, "resident")
    # 3.98 billion activated parameters at 8 routed experts, of which the head and the n-gram projections are read too.
    active = 3.98e9 + 3072**2
    speed = estimate(released, run, machine, result)
    assert speed.decode["memory"] == pytest.approx(2 * active / 1000e9, rel=0.01)
    assert speed.decode_tokens_per_second == pytest.approx(1 / sum(speed.decode.values()))
    assert expert_share(LongCatLiteConfig(), 1) == pytest.approx(12 / 384)


def call_keywords(line: str) -> dict:
    """The arguments of a printed call."""
    node = ast.parse(line).body[0]
    call = node.value
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}


def test_the_command_writes_its_report(tmp_path, capsys):
    run_fit("--gpu-memory", "24GiB", "--host-memory", "64GiB", "--output", tmp_path)
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "fit.json").read_text())
    assert results["recommended"] == "disk"
    loading, generating = results["arguments"]
    assert loading in printed and generating in printed
    arguments = call_keywords(loading)
    assert arguments["ngram_tables"] == "disk" and arguments["device_map"] == "auto"
    assert set(arguments["max_memory"]) == {0, "cpu"} and arguments["dtype"] == "bfloat16"
    assert call_keywords(generating) == {"prefill_chunk_size": 2048}
    text = (tmp_path / "fit.md").read_text()
    assert "0.5 GiB" in text and "2 GiB" in text and "62.8 GB" in text and loading in text
    assert results["changes"] and all(change["options"] in text for change in results["changes"])
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_on_the_host_alone(tmp_path, capsys):
    folder = CONFORMANCE / "base"
    run_fit("--gpus", 0, "--host-memory", "8GB", "--model", folder, "--context", 64, "--output", tmp_path)
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "fit.json").read_text())
    assert results["recommended"] and not results["changes"]
    loading = next(line for line in printed.splitlines() if "from_pretrained" in line)
    exec(loading, pasted := {"LongCatLiteForCausalLM": LongCatLiteForCausalLM})
    assert pasted["model"].config.hidden_size == LongCatLiteConfig.from_pretrained(folder).hidden_size
    assert str(ROOT) not in (tmp_path / "fit.json").read_text() + (tmp_path / "fit.md").read_text()
    assert "device_map" not in results["arguments"][0]
    assert results["machine"]["tflops"] == 1
