# SPDX-License-Identifier: Apache-2.0
"""`eval.fit`: bytes against tensors and processes, placement against accelerate, and what is printed to be pasted."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CONFORMANCE, randomize, tiny_config
from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map

from eval import fit
from eval.fit_changes import find_changes
from eval.fit_memory import Run, activation_bytes, cache_bytes, latents_are_cheaper
from eval.fit_placement import PLACEMENTS, Machine, Model, plan
from eval.fit_speed import estimate, expert_share
from eval.fit_weights import TABLES, read_checkpoint, weigh
from eval.units import format_size, parse_size
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM

ROOT = Path(__file__).parents[1]
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
        (["--host-memory", "64GB", "--batch", 0], "`--batch`"),
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


def test_the_released_model(released):
    parts = {p: sum(unit.parts.get(p, 0) for unit in released.units["resident"]) for p in (TABLES, "routed experts")}
    assert parts[TABLES] == released.tables["disk"] == 2 * 256 * sum(LongCatLiteConfig().subtable_sizes)
    assert parts["routed experts"] == 2 * 33_822_867_456
    draft_head = sum(unit.parts.get("draft head", 0) for unit in released.units["resident"])
    assert draft_head - 64 * 4 == 2 * 510_870_528  # less its two rotary buffers
    one_token = cache_bytes(LongCatLiteConfig(), Run(context=1), torch.bfloat16)
    assert one_token == 28 * (512 + 64) * 2 + 4 * 8


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_tables_of_few_bits(bits):
    checkpoint = read_checkpoint(None)
    rows = sum(checkpoint.config.subtable_sizes)
    row = {16: 512, 8: 256 + 4, 4: 128 + 4}[bits]
    for placement in PLACEMENTS:
        assert sum(unit.parts.get(TABLES, 0) for unit in weigh(checkpoint, placement, bits)) == rows * row


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(
    "overrides",
    [
        {"num_nextn_predict_layers": 1},
        {"embedding_amplification": "layer_norm", "router_bias": True, "attention_bias": True},
        {"tie_word_embeddings": True, "emb_neighbor_num": 3},
    ],
    ids=["draft head", "biases", "tied"],
)
def test_every_byte_of_a_loaded_model(tmp_path, overrides, placement, dtype):
    config = tiny_config(**overrides)
    randomize(LongCatLiteForCausalLM(config)).to(torch.float16).save_pretrained(tmp_path)
    # As in a released checkpoint, where the draft head is found in the files alone.
    written = json.loads((tmp_path / "config.json").read_text())
    written.pop("num_nextn_predict_layers", None)
    (tmp_path / "config.json").write_text(json.dumps(written))

    model = LongCatLiteForCausalLM.from_pretrained(tmp_path, dtype=dtype, ngram_tables=placement)
    weighed = Model.of(read_checkpoint(str(tmp_path), dtype), bits=None)
    tensors = [*model.parameters(), *model.buffers()]
    assert sum(unit.size for unit in weighed.units[placement]) == sum(t.numel() * t.itemsize for t in tensors)
    if placement == "host":
        rows = model.model.ngram_embeddings.tables.rows
        assert weighed.tables["host"] == sum(table.numel() for table in rows)

    output = model.generate(torch.full((2, 9), 7), max_new_tokens=4, return_dict_in_generate=True, pad_token_id=3)
    cache = output.past_key_values
    held = [t for layer in cache.layers for t in (layer.keys, layer.values)] + [cache.token_history]
    run = Run(context=held[0].shape[2], batch=2)
    assert cache_bytes(config, run, model.dtype) == sum(t.numel() * t.itemsize for t in held)


# Shape, placement, context, rows, chunk: in each another part of the memory is the largest.
SMALL = {
    "vocab_size": 4096,
    "hidden_size": 384,
    "num_attention_heads": 4,
    "ffn_hidden_size": 512,
    "expert_ffn_hidden_size": 128,
    "q_lora_rank": 128,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 16,
    "zero_expert_num": 8,
    "moe_topk": 4,
    "max_position_embeddings": 16384,
    "ngram_vocab_size_ratio": 3.3,
}
MEASURED = {
    "tables": ({"ngram_vocab_size_ratio": 36.3}, "resident", 256, 1, 256),
    "tables on the host": ({"ngram_vocab_size_ratio": 70.3}, "host", 256, 1, 256),
    "experts": ({"n_routed_experts": 192, "ngram_vocab_size_ratio": 20.3}, "disk", 256, 1, 256),
    "outputs of experts": ({"moe_topk": 8}, "disk", 2048, 2, 2048),
    "cache and chunks": ({"kv_lora_rank": 512, "num_attention_heads": 8}, "disk", 3072, 3, 512),
    "attention": ({"num_attention_heads": 16, "moe_topk": 1}, "resident", 3000, 1, 3000),
}


@pytest.mark.slow  # a process of its own, and models of up to 280 MB
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="measures with /proc")
@pytest.mark.parametrize("name", MEASURED)
def test_memory_of_a_process(tmp_path, name):
    overrides, placement, context, batch, chunk = MEASURED[name]
    LongCatLiteForCausalLM(tiny_config(**SMALL | overrides)).to(torch.bfloat16).save_pretrained(tmp_path)
    weighed, run = Model.of(read_checkpoint(str(tmp_path), "float32"), None), Run(context, batch, chunk)
    held = plan(weighed, run, Machine(gpus=0, gpu_memory=0, host_memory=64 * GB), placement).host

    command = [sys.executable, ROOT / "tests" / "fit_measurement.py", tmp_path, placement, context, batch, chunk]
    # Freed memory goes back at once, so that what is there is what is used.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=os.environ | settings, check=True, capture_output=True, text=True
    )
    measured = json.loads(done.stdout.splitlines()[-1])

    weights = sum(unit.size for unit in weighed.units[placement])
    on_host = weighed.tables["host"] if placement == "host" else 0
    assert measured["weights"] == weights and measured["tables"] == on_host
    assert measured["cache"] == held["KV cache"]
    estimated = sum(held.values()) - held["reserve"]
    for what, ours in (("loaded", weights + on_host), ("peak", estimated)):
        print(f"{name}, {what}: {format_size(ours)} estimated, {format_size(measured[what])} measured")
    assert weights + on_host == pytest.approx(measured["loaded"], rel=0.05)
    assert estimated == pytest.approx(measured["peak"], rel=0.05)


@pytest.mark.parametrize(("chunk", "context"), [(1, 9), (2, 9), (3, 40), (9, 9), (8, 300), (40, 300)])
def test_attention_in_latents_or_heads_is_decided_as_the_model_does(chunk, context):
    config = tiny_config(kv_lora_rank=32)
    attention = LongCatLiteForCausalLM(config).eval().model.layers[0].self_attn[0]
    query, latent = torch.zeros(1, 2, chunk, 12), torch.zeros(1, 1, context, 32)
    mask = None if chunk == context else torch.ones(1, 1, chunk, context, dtype=torch.bool)
    assert latents_are_cheaper(config, Run(context, 1, chunk)) == attention._latents_are_cheaper(query, latent, mask)


def test_shorter_chunks_hold_less():
    config = LongCatLiteConfig()
    held = [activation_bytes(config, Run(chunk=chunk), torch.bfloat16) for chunk in (512, 2048, 8192, 32768)]
    assert held == sorted(held) and held[-1] > 14 * GB


MACHINES = [
    (1, 24 * GIB, 64 * GIB),
    (1, 48 * GB, 128 * GB),
    (1, 80 * GB, 64 * GB),
    (2, 80 * GB, 128 * GB),
    (4, 24 * GB, 64 * GB),
    (8, 24 * GB, 64 * GB),
]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(("gpus", "gpu_memory", "host_memory"), MACHINES)
def test_modules_go_where_accelerate_puts_them(released, gpus, gpu_memory, host_memory, placement):
    result = plan(released, Run(), Machine(gpus, gpu_memory, host_memory), placement)
    if not result.fits:
        pytest.skip("does not fit")
    with torch.device("meta"):
        model = LongCatLiteForCausalLM(LongCatLiteConfig(num_nextn_predict_layers=1), ngram_tables=placement)
    model = model.to(torch.bfloat16)
    split = {"no_split_module_classes": model._no_split_modules}
    budgets = get_balanced_memory(model, max_memory=dict(result.max_memory), **split)
    theirs = infer_auto_device_map(model, max_memory=budgets, **split)

    def their_place(name: str):
        while name not in theirs:
            name = name.rpartition(".")[0]
        return theirs[name]

    assert "disk" not in theirs.values()
    for units, on_gpu in ((result.on_gpu, True), (result.on_host, False)):
        for unit in units:
            if unit.name != "model.ngram_embeddings":  # the buffers beside the tables
                assert (their_place(unit.name) != "cpu") == on_gpu, unit.name
    placed = dict.fromkeys(range(gpus), 0)
    for unit in result.on_gpu:
        if unit.name != "model.ngram_embeddings":
            placed[their_place(unit.name)] += unit.size
    beside = ("KV cache", "activations", "layer in transit", "reserve")
    ours = [sum(size for part, size in gpu.items() if part not in beside) for gpu in result.gpus]
    assert ours == pytest.approx(list(placed.values()), abs=1000)


def test_a_plan_stays_inside_the_machine(released):
    for gpus, gpu_memory, host_memory in MACHINES:
        for placement in PLACEMENTS:
            result = plan(released, Run(), Machine(gpus, gpu_memory, host_memory), placement)
            weights = sum(unit.size for unit in released.units[placement])
            assert sum(unit.size for unit in result.on_gpu + result.on_host) == weights
            if result.fits:
                assert all(sum(gpu.values()) <= gpu_memory for gpu in result.gpus)
                assert sum(result.host.values()) <= host_memory


def changed(change, run: Run, machine: Machine) -> tuple[Run, Machine, int | None]:
    """The run and the machine with the options of a change."""
    option, _, value = change.options.partition(" ")
    if option in ("--gpu-memory", "--host-memory"):
        name = option.removeprefix("--").replace("-", "_")
        return run, replace(machine, **{name: parse_size(value, option)}), run.bits
    if option == "--gpus":
        return run, replace(machine, gpus=int(value)), run.bits
    if option == "--bits":
        return run, machine, int(value)
    name = {"--prefill-chunk": "chunk", "--context": "context", "--batch": "batch"}[option]
    return replace(run, **{name: int(value)}), machine, run.bits


@pytest.mark.parametrize(
    ("machine", "run"),
    [
        (Machine(1, 24 * GB, 64 * GB), Run()),
        (Machine(1, 16 * GB, 32 * GB), Run()),
        (Machine(1, 80 * GB, 64 * GB), Run(context=131072, batch=8, chunk=131072)),
        (Machine(0, 0, 100 * GB), Run(context=131072, batch=32)),
        (Machine(1, 16 * GB, 128 * GB), Run(chunk=32768)),
    ],
)
def test_every_change_makes_it_fit(released, machine, run):
    assert not any(plan(released, run, machine, placement).fits for placement in PLACEMENTS)
    changes = find_changes(released, run, machine)
    assert any(change.options.startswith("--host-memory") for change in changes) or machine.gpus
    assert changes
    for change in changes:
        if change.options.startswith("--"):
            new_run, new_machine, bits = changed(change, run, machine)
            model = released if bits is None else Model.of(released.checkpoint, bits)
            assert plan(model, new_run, new_machine, change.placement).fits, change


def test_fewer_bits_are_offered(released):
    machine = Machine(2, 80 * GB, 16 * GB)
    assert plan(released, Run(), machine, "resident").fits
    without_disk = find_changes(released, Run(batch=16), Machine(1, 80 * GB, 50 * GB), on_gpus=True)
    assert without_disk


def test_the_link_is_what_layers_on_the_host_cost(released):
    run, machine = Run(), Machine(1, 24 * GIB, 64 * GIB)
    result = plan(released, run, machine, "disk")
    seconds = estimate(released, run, machine, result).decode
    not_run = sum(unit.parts.get("draft head", 0) for unit in result.on_host)
    assert seconds["link"] == pytest.approx((result.offloaded - not_run) / 25e9)
    faster = replace(machine, link_bandwidth=50e9)
    assert estimate(released, run, faster, result).decode["link"] == pytest.approx(seconds["link"] / 2)


def test_decoding_without_a_link_reads_active_weights(released):
    run, machine = Run(context=1), Machine(2, 80 * GB, 128 * GB)
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


@pytest.mark.parametrize("folder", ["base"])
def test_a_checkpoint_on_the_host_alone(tmp_path, capsys, folder):
    run_fit(
        "--gpus", 0, "--host-memory", "8GB", "--model", CONFORMANCE / folder, "--context", 64, "--output", tmp_path
    )
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "fit.json").read_text())
    assert results["recommended"] and not results["changes"]
    assert str(CONFORMANCE / folder) in printed  # to be pasted
    assert str(ROOT) not in (tmp_path / "fit.json").read_text() + (tmp_path / "fit.md").read_text()
    assert "device_map" not in results["arguments"][0]
    assert results["machine"]["tflops"] == 1


def test_a_damaged_file_is_named(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        read_checkpoint(str(tmp_path))
