# SPDX-License-Identifier: Apache-2.0
"""vLLM serves what this package saves: the same log-probabilities and greedy tokens, but for foretold differences.

`make test-vllm` only: vLLM lives in an environment of its own, `.venv-vllm`. Its CPU build lacks four things that
this model needs; `tests/vllm_stand_ins.py` stands in for them, and each run names what it stood in for.
"""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import PLAIN_ROPE, TINY, YARN_ROPE, randomize
from tiny_chat import write_tiny_chat

from eval.runtime_differences import differences
from eval.runtime_expectations import config_problems
from model_cards.build_hub_repo import build_hub_repo
from model_cards.card import CardSources
from modeling_longcat_lite import LongCatLiteForCausalLM

pytestmark = pytest.mark.vllm

TESTS = Path(__file__).parent
PYTHON = TESTS.parent / ".venv-vllm" / "bin" / "python"
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


def command_of_the_readme() -> dict[str, str]:
    """Options of `vllm serve` as the README gives them."""
    (line,) = re.findall(r"^vllm serve (.*)$", (TESTS.parent / "README.md").read_text(), flags=re.MULTILINE)
    _, *options = shlex.split(line.split("    #")[0])
    return dict(zip(options[::2], options[1::2], strict=True))


def run_vllm(checkpoint: Path, prompts: list[list[int]], *options: str) -> subprocess.CompletedProcess:
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is not there: `make test-vllm` makes it.")
    (checkpoint.parent / "prompts.json").write_text(json.dumps(prompts))
    command = [PYTHON, TESTS / "vllm_outputs.py", checkpoint, checkpoint.parent / "vllm.json"]
    command += ["--prompts", checkpoint.parent / "prompts.json", "--new-tokens", str(NEW_TOKENS), *options]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the stand-ins are in this process
        "VLLM_NO_USAGE_STATS": "1",
    }
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False
    )


def served(checkpoint: Path, prompts: list[list[int]], *options: str) -> list[Row]:
    """What vLLM answers under the README's command."""
    (overrides,) = command_of_the_readme().items()
    run = run_vllm(checkpoint, prompts, *overrides, *options)
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


def saved(folder: Path, **overrides) -> Path:
    """A model with weights of which none is left as initialised, with its tokenizer."""
    model_folder = write_tiny_chat(folder, **{**WIDTHS, "rope_parameters": YARN_ROPE, **overrides}) / "model"
    model = randomize(LongCatLiteForCausalLM.from_pretrained(model_folder))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= (TINY["hidden_size"] / WIDTHS["hidden_size"]) ** 0.5  # logits as large as tiny models'
    model.save_pretrained(model_folder)
    return model_folder


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A package for the Hub, with YaRN as the released model has it."""
    folder = tmp_path_factory.mktemp("yarn")
    build_hub_repo(saved(folder), folder / "package", card=CardSources(license="apache-2.0"))
    return folder / "package"


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


def test_plain_rope(tmp_path):
    """With a stand-in for the kernel of the CPU build, whose fault is foretold."""
    folder = saved(tmp_path, rope_parameters=PLAIN_ROPE)
    assert any("plain RoPE" in text for text in differences("vLLM", fields_of(folder)))
    assert_same(served(folder, PROMPTS), ours(LongCatLiteForCausalLM.from_pretrained(folder), PROMPTS))


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
    folder = saved(tmp_path, hidden_size=192)
    assert any("`hidden_size` is 192" in text for text in differences("vLLM", fields_of(folder)))
    found = served(folder, PROMPTS)
    model = LongCatLiteForCausalLM.from_pretrained(folder)
    apart = [one.logprobs - other.logprobs for one, other in zip(found, ours(model, PROMPTS), strict=True)]
    assert torch.cat(apart).abs().max() > 0.01
    assert_same(found, ours(LongCatLiteForCausalLM.from_pretrained(folder, zero_expert_type="drop"), PROMPTS))


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        ({"index_topk": None}, "index_topk"),
        ({"index_topk": 64}, "index_topk"),
        ({"kv_lora_rank": "absent"}, "kv_lora_rank"),
    ],
    ids=["null index_topk", "index_topk", "kv_lora_rank"],
)
def test_what_it_refuses_is_foretold(edit, field, package, tmp_path):
    fields = {key: value for key, value in {**fields_of(package), **edit}.items() if value != "absent"}
    folder = tmp_path / "edited"
    folder.mkdir()
    for file in package.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    (folder / "config.json").write_text(json.dumps(fields))
    assert any(f"`{field}`" in problem for problem in config_problems("vLLM", fields))
    (overrides,) = command_of_the_readme().items()
    assert run_vllm(folder, PROMPTS, *overrides).returncode != 0


def test_without_the_override_it_is_refused(package):
    run = run_vllm(package, PROMPTS)
    assert run.returncode != 0
    assert any("--hf-overrides" in text for text in differences("vLLM", fields_of(package)))
