# SPDX-License-Identifier: Apache-2.0
"""vLLM serves what this package saves: the same log-probabilities and greedy tokens, but for foretold differences.

`make test-vllm` only: vLLM lives in an environment of its own, `.venv-vllm`. Its CPU build lacks four things that
this model needs; `tests/checkpoints/vllm_stand_ins.py` stands in for them, and each run names what it stood in for.
"""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from config_files import as_written_before
from conftest import PLAIN_ROPE, TINY, YARN_ROPE
from other_readers import assert_tokenizer_loads_untrusted, run_elsewhere, write_package

from eval.checkpoints.runtime_differences import differences
from eval.checkpoints.runtimes import config_problems
from modeling_longcat_lite import LongCatLiteForCausalLM
from tokenization.tool_calls import parse_tool_calls, render_tool_call

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
TOLERANCE = 2e-4  # of a log-probability: its latent norms have an epsilon of 1e-5; 1e-6 here and in the reference
STOOD_IN = ["triton's interpreter", "_C.ngram_compute_n_gram_ids", "_moe_C.topk_softmax", "_C.rotary_embedding"]
NEW_TOKENS = 8
EOS = 2
# vLLM's latent attention on a CPU takes 512 + 64; the hidden size is a multiple of 256 and of 12 tables.
WIDTHS = {
    "hidden_size": 768,
    "ffn_hidden_size": 128,
    "expert_ffn_hidden_size": 64,
    "q_lora_rank": 64,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 8,
    "zero_expert_num": 4,
    "ngram_vocab_size_ratio": 7.37,
}


def drawn(*lengths: int) -> list[list[int]]:
    """Rows of ordinary tokens."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(30, 280, (length,), generator=generator).tolist() for length in lengths]


PROMPTS = drawn(5, 90, 33, 2)
ORDINARY = drawn(24)[0]
WITH_EOS = [
    [*ORDINARY[:8], EOS, *ORDINARY[8:]],
    [*ORDINARY[:4], EOS, EOS, *ORDINARY[4:12], EOS, *ORDINARY[12:]],
    [EOS, *ORDINARY],
    [*ORDINARY, EOS],
]


class Row(NamedTuple):
    """`logprobs` of every token of a prompt but the first, and the `tokens` that follow it greedily."""

    logprobs: torch.Tensor
    tokens: list[int]


def readme() -> str:
    return (ROOT / "model_cards" / "README.md").read_text()


def override_of_the_readme() -> list[str]:
    """The option that `vllm serve` needs, as the README gives it."""
    (line,) = re.findall(r"^vllm serve (.*?)(?:    #.*)?$", readme(), flags=re.MULTILINE)
    _, *options = shlex.split(line)
    assert len(options) == 2 and options[0] == "--hf-overrides"
    return options


def run_vllm(checkpoint: Path, prompts: list[list[int]], *options: str) -> subprocess.CompletedProcess:
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is not there: `make test-vllm` makes it.")
    files = [checkpoint.parent / name for name in ("prompts.json", "vllm.json")]
    files[0].write_text(json.dumps(prompts))
    options = ("--prompts", files[0], "--new-tokens", str(NEW_TOKENS), *options)
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the stand-ins are in this process
    return run_elsewhere(PYTHON, "vllm_outputs.py", checkpoint, files[1], *options, **environment)


def served(checkpoint: Path, prompts: list[list[int]], *options: str) -> list[Row]:
    """What vLLM answers under the README's command."""
    run = run_vllm(checkpoint, prompts, *override_of_the_readme(), *options)
    assert run.returncode == 0, run.stderr
    found = json.loads((checkpoint.parent / "vllm.json").read_text())
    assert found["stood_in"] == STOOD_IN
    return [Row(torch.tensor(row["logprobs"]), row["tokens"]) for row in found["rows"]]


def ours(model: LongCatLiteForCausalLM, prompts: list[list[int]]) -> list[Row]:
    """The same of this package, each row alone."""
    rows = []
    for prompt in prompts:
        input_ids = torch.tensor([prompt])
        with torch.no_grad():
            logprobs = model(input_ids).logits[0, :-1].log_softmax(dim=-1)
        new = model.generate(
            input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=NEW_TOKENS, do_sample=False
        )
        rows.append(Row(logprobs.gather(1, input_ids[0, 1:, None])[:, 0], new[0, len(prompt) :].tolist()))
    return rows


def assert_same(found: list[Row], expected: list[Row]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        assert len(one.logprobs) == len(other.logprobs)
        assert (one.logprobs - other.logprobs).abs().max() < TOLERANCE


def with_row_0_for_eos(model: LongCatLiteForCausalLM) -> LongCatLiteForCausalLM:
    """The model as vLLM understands it: every table has row 0 for an end-of-sequence token."""
    embedding = model.model.ngram_embeddings
    ids, order = embedding.ids, embedding.max_ngram_order

    def ids_of_vllm(codes: torch.Tensor) -> torch.Tensor:
        tokens = torch.where(codes < 0, ~codes, codes)[:, order - 1 :]
        return ids(codes).masked_fill(tokens == EOS, 0)

    embedding.ids = ids_of_vllm
    return model


def fields_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def packaged(folder: Path, **overrides) -> Path:
    """A package for the Hub that this CPU build can serve, with logits as large as tiny models'."""
    scale = (TINY["hidden_size"] / WIDTHS["hidden_size"]) ** 0.5
    return write_package(folder, scale, **{**WIDTHS, "rope_parameters": YARN_ROPE, **overrides})


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """With YaRN, as the released model."""
    return packaged(tmp_path_factory.mktemp("yarn"))


@pytest.fixture(scope="module")
def plain_package(tmp_path_factory) -> Path:
    return packaged(tmp_path_factory.mktemp("plain"), rope_parameters=PLAIN_ROPE)


@pytest.fixture(scope="module")
def answers(package) -> list[Row]:
    """vLLM's for all prompts, in one batch of unequal lengths."""
    return served(package, PROMPTS + WITH_EOS)


def test_a_package_is_served_as_it_is(package, answers):
    assert config_problems("vLLM", fields_of(package)) == []
    assert_same(answers[: len(PROMPTS)], ours(LongCatLiteForCausalLM.from_pretrained(package), PROMPTS))


def test_long_prompts_in_pieces(package):
    """The n-grams of a piece look back on the piece before."""
    found = served(package, PROMPTS, "--max-num-batched-tokens", "16")
    assert_same(found, ours(LongCatLiteForCausalLM.from_pretrained(package), PROMPTS))


def test_plain_rope(plain_package):
    """With a stand-in for the kernel of the CPU build, whose fault is foretold."""
    assert any("plain RoPE" in text for text in differences("vLLM", fields_of(plain_package)))
    found = served(plain_package, PROMPTS)
    assert_same(found, ours(LongCatLiteForCausalLM.from_pretrained(plain_package), PROMPTS))


def test_after_eos_it_differs_as_foretold(package, answers):
    """Equal through the first EOS, other logits after it, and exactly those of a model with row 0 there."""
    found = answers[len(PROMPTS) :]
    expected = ours(LongCatLiteForCausalLM.from_pretrained(package), WITH_EOS)
    for prompt, one, other in zip(WITH_EOS, found, expected, strict=True):
        apart, through = (one.logprobs - other.logprobs).abs(), prompt.index(EOS)
        assert apart[:through].numel() == through and bool((apart[:through] < TOLERANCE).all())
        assert through == len(prompt) - 1 or apart[through:].max() > 0.01
    assert_same(found, ours(with_row_0_for_eos(LongCatLiteForCausalLM.from_pretrained(package)), WITH_EOS))
    assert any("row 0" in text for text in differences("vLLM", fields_of(package)))


def test_a_hidden_size_that_its_zero_experts_do_not_take_is_foretold(tmp_path):
    """192 is below one block of 256: the zero experts add nothing, and nothing is said."""
    folder = packaged(tmp_path, hidden_size=192)
    assert any("`hidden_size` is 192" in text for text in differences("vLLM", fields_of(folder)))
    found = served(folder, PROMPTS)
    model = LongCatLiteForCausalLM.from_pretrained(folder)
    apart = [one.logprobs - other.logprobs for one, other in zip(found, ours(model, PROMPTS), strict=True)]
    assert torch.cat(apart).abs().max() > 0.01
    assert_same(found, ours(LongCatLiteForCausalLM.from_pretrained(folder, zero_expert_type="drop"), PROMPTS))


@pytest.mark.parametrize("index_topk", [None, 64])
def test_a_sparse_model_is_refused_as_foretold(index_topk, package, tmp_path):
    """A null, which this package wrote until November 2026, is enough."""
    fields = {**fields_of(package), "index_topk": index_topk}
    folder = tmp_path / "edited"
    folder.mkdir()
    for file in package.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    (folder / "config.json").write_text(json.dumps(fields))
    assert any("`index_topk`" in problem for problem in config_problems("vLLM", fields))
    assert run_vllm(folder, PROMPTS, *override_of_the_readme()).returncode != 0


def test_the_bias_of_a_router_is_left_out_as_foretold(tmp_path):
    """Without a word."""
    folder = packaged(tmp_path, router_bias=True)
    assert any("`router_bias`" in problem for problem in config_problems("vLLM", fields_of(folder)))
    found, model = served(folder, PROMPTS), LongCatLiteForCausalLM.from_pretrained(folder)
    apart = [one.logprobs - other.logprobs for one, other in zip(found, ours(model, PROMPTS), strict=True)]
    assert torch.cat(apart).abs().max() > 0.01
    for layer in model.model.layers:
        layer.mlp.router.classifier.bias.data.zero_()
    assert_same(found, ours(model, PROMPTS))


def test_without_the_override_it_is_refused(package):
    run = run_vllm(package, PROMPTS)
    assert run.returncode != 0
    assert any("--hf-overrides" in text for text in differences("vLLM", fields_of(package)))


def test_the_tokenizer_is_read_without_trust(package, plain_package):
    for folder in (package, plain_package):
        assert assert_tokenizer_loads_untrusted(folder, PYTHON) == "5.19.0"


@pytest.mark.parametrize("rope", ["yarn", "plain"])
def test_sglang_reads_the_config(rope, package, plain_package):
    """By its own class, with every field that its model reads as trained."""
    folder = package if rope == "yarn" else plain_package
    run = run_elsewhere(PYTHON, "sglang_config.py", folder)
    assert run.returncode == 0, run.stderr
    found, stated = json.loads(run.stdout), fields_of(folder)
    derived = {
        "num_hidden_layers": stated["num_layers"],
        "intermediate_size": stated["ffn_hidden_size"],
        "moe_intermediate_size": stated["expert_ffn_hidden_size"],
        "ngram_embedding_m": int(stated["ngram_vocab_size_ratio"] * stated["vocab_size"]),
        "ngram_embedding_n": stated["emb_neighbor_num"],
        "ngram_embedding_k": stated["emb_split_num"],
        "index_topk": None,
    }
    assert found == {name: derived[name] if name in derived else stated[name] for name in found}
    assert (found["rope_scaling"] is None) == (rope == "plain")


def test_sglang_does_not_read_the_spelling_of_before_as_foretold(package, tmp_path):
    fields = as_written_before(fields_of(package))
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert any("`rope_parameters`" in problem for problem in config_problems("SGLang", fields))
    assert run_elsewhere(PYTHON, "sglang_config.py", tmp_path).returncode != 0


REPLIES = [
    "Just text.</longcat_s>",
    render_tool_call("f", {"city": "Paris", "zip": "75001", "days": 3, "deep": {"a": [1, None]}}) + "</longcat_s>",
    "One. " + render_tool_call("f", {}) + render_tool_call("g", {"text": "a < b\n"}) + "</longcat_s>",
]


def test_tool_calls_after_the_edit_of_the_readme(package, tmp_path):
    """The template as saved is refused; edited, vLLM reads what `parse_tool_calls` reads."""
    (tmp_path / "replies.json").write_text(json.dumps(REPLIES))
    run = run_elsewhere(PYTHON, "vllm_tool_calls.py", package, tmp_path / "replies.json")
    assert run.returncode != 0 and "unsupported semantic fields: ['content']" in run.stderr

    folder = tmp_path / "outputs" / "my-package"
    shutil.copytree(package, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (edit,) = re.findall(r"^### Tool calls in vLLM.*?```python\n(.*?)```", readme(), flags=re.MULTILINE | re.DOTALL)
    exec(edit.replace("outputs/my-package", str(folder)), {})
    run = run_elsewhere(PYTHON, "vllm_tool_calls.py", folder, tmp_path / "replies.json")
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"reply"')]
    assert [line["reply"] for line in lines] == REPLIES
    for line in lines:
        content, calls = parse_tool_calls(line["reply"])
        expected = [[call["function"]["name"], call["function"]["arguments"]] for call in calls]
        for read in (line["whole"], line["streamed"]):
            assert read["content"] == content
            assert [[name, json.loads(arguments)] for name, arguments in read["calls"]] == expected
