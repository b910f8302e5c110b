# SPDX-License-Identifier: Apache-2.0
"""What this package saves loads in mlx-lm, an independent implementation, and gives the same logits there.

`make test-mlx` only: mlx-lm lives in an environment of its own, `.venv-mlx`. What it does otherwise is shown as well:
its n-grams do not stop at end-of-sequence tokens, and fields that it does not know are ignored.
"""

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import CONFORMANCE_FOLDERS, PLAIN_ROPE, YARN_ROPE, randomize, tiny_config
from other_readers import (
    ANSWER,
    QUESTION,
    Finished,
    assert_tokenizer_loads_untrusted,
    greedy_text,
    prompt_ids,
    run_command,
    run_elsewhere,
    teach,
    write_package,
)
from safetensors.torch import load_file, save_file
from tiny_chat import WIDTHS_OF_64

from eval.checkpoints.runtimes import config_problems
from modeling_longcat_lite import LongCatLiteForCausalLM

pytestmark = pytest.mark.mlx

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-mlx" / "bin" / "python"
TOLERANCE = 5e-4  # its latent norms have an epsilon of 1e-5; 1e-6 here and in the reference
NO_BOUNDARY: list[int] = []


def run_mlx(checkpoint: Path, output: Path, *arguments: str | Path) -> Finished:
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is not there: `make test-mlx` makes it.")
    return run_elsewhere(PYTHON, "mlx_logits.py", checkpoint, output, *arguments)


def mlx_logits(checkpoint: Path, folder: Path, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What mlx-lm computes: `logits` of one forward, and `step_by_step`, each `[B, T, V]`."""
    save_file({"input_ids": input_ids}, folder / "input_ids.safetensors")
    run = run_mlx(checkpoint, folder / "mlx.safetensors", "--input-ids", folder / "input_ids.safetensors")
    assert run.returncode == 0, run.stderr
    return load_file(folder / "mlx.safetensors")


def distance(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Largest difference of a logit at each token, `[B, T]`."""
    assert found.dtype == expected.dtype == torch.float32
    return (found - expected).abs().amax(dim=-1)


def tiny_model(**overrides) -> LongCatLiteForCausalLM:
    return randomize(LongCatLiteForCausalLM(tiny_config(**overrides))).eval()


class Case(NamedTuple):
    """A conformance checkpoint: its rows, our logits, ours if n-grams stopped nowhere, and mlx-lm's."""

    input_ids: torch.Tensor
    ours: torch.Tensor
    without_boundaries: torch.Tensor
    mlx: dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=CONFORMANCE_FOLDERS, ids=lambda path: path.name)
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp(request.param.name)
    input_ids = load_file(request.param / "golden.safetensors")["input_ids"]
    model = LongCatLiteForCausalLM.from_pretrained(request.param, dtype=torch.float32)
    model.save_pretrained(folder / "saved")
    boundless = LongCatLiteForCausalLM.from_pretrained(folder / "saved", ngram_eos_token_id=NO_BOUNDARY)
    with torch.no_grad():
        ours, without_boundaries = model(input_ids).logits, boundless(input_ids).logits
    return Case(input_ids, ours, without_boundaries, mlx_logits(folder / "saved", folder, input_ids))


def test_logits_agree_through_the_first_eos(case):
    """EOS included: it closes its own segment, and looks back as any other token."""
    before = (case.input_ids == 2).cumsum(dim=1) - (case.input_ids == 2).long()
    for logits in (case.mlx["logits"], case.mlx["step_by_step"]):
        assert distance(logits, case.ours)[before == 0].max() < TOLERANCE


def test_they_differ_after_it_because_mlx_does_not_stop_there(case):
    seen = (case.input_ids == 2).cumsum(dim=1)
    just_after = (seen.roll(1, dims=1) == 1) & (case.input_ids.roll(1, dims=1) == 2)
    just_after[:, 0] = False
    assert just_after.sum() == 2  # two of the three rows have an EOS
    assert distance(case.mlx["logits"], case.ours)[just_after].min() > 1
    for logits in (case.mlx["logits"], case.mlx["step_by_step"]):
        assert distance(logits, case.without_boundaries).max() < TOLERANCE


@pytest.mark.parametrize("rope", [PLAIN_ROPE, YARN_ROPE], ids=["plain", "yarn"])
def test_a_hub_folder_loads_with_its_tokenizer(rope, tmp_path):
    package = write_package(tmp_path, rope_parameters=rope)
    run = run_mlx(package, tmp_path / "mlx.safetensors", "--question", QUESTION)
    assert run.returncode == 0, run.stderr
    found = load_file(tmp_path / "mlx.safetensors")
    prompt = torch.tensor([prompt_ids(package)])
    assert torch.equal(found["input_ids"], prompt)
    with torch.no_grad():
        expected = LongCatLiteForCausalLM.from_pretrained(package)(prompt).logits
    assert distance(found["logits"], expected).max() < TOLERANCE
    assert assert_tokenizer_loads_untrusted(package, PYTHON) == "5.24.0"


def test_config_and_tokenizer_load_with_trust_where_torch_is_absent(tmp_path):
    """`mlx_lm.generate --trust-remote-code` runs this package's config, in an environment without torch."""
    package = write_package(tmp_path, rope_parameters=YARN_ROPE)
    code = (
        "import sys, transformers\n"
        "transformers.AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert 'torch' not in sys.modules\n"
    )
    run = run_command([PYTHON, "-c", code, package])
    assert run.returncode == 0, run.stderr


def test_the_commands_of_the_readme_give_our_greedy_text(tmp_path):
    """On a package with YaRN: generate as it is, convert to 8 bits, generate again."""
    package = write_package(tmp_path, **WIDTHS_OF_64, rope_parameters=YARN_ROPE)
    teach(package)
    assert greedy_text(package) == ANSWER
    readme = (ROOT / "model_cards" / "README.md").read_text()
    commands = re.findall(r"^mlx_lm\.(\w+) (.*)$", readme, flags=re.MULTILINE)
    assert [name for name, _ in commands] == ["generate", "convert", "generate"]
    for name, text in commands:
        given = {"outputs/my-package": package, "outputs/my-mlx": tmp_path / "mlx", "...": QUESTION}
        arguments = [given.get(argument, argument) for argument in shlex.split(text)]
        run = run_command([PYTHON.with_name(f"mlx_lm.{name}"), *arguments])
        assert run.returncode == 0, run.stderr
        if name == "generate":
            _, answer, _ = run.stdout.split("==========\n")
            assert answer.strip() == ANSWER


INPUT_IDS = torch.arange(5, 29).view(2, 12)


@pytest.mark.parametrize(
    "overrides",
    [{"attention_bias": True, "norm_topk_prob": True, "router_bias": True}, {"num_nextn_predict_layers": 1}],
    ids=["other switches", "draft head"],
)
def test_what_it_knows_or_passes_by(overrides, tmp_path):
    model = tiny_model(**overrides)
    model.save_pretrained(tmp_path / "saved")
    assert config_problems("mlx-lm", json.loads((tmp_path / "saved" / "config.json").read_text())) == []
    with torch.no_grad():
        expected = model(INPUT_IDS).logits
    assert distance(mlx_logits(tmp_path / "saved", tmp_path, INPUT_IDS)["logits"], expected).max() < TOLERANCE


@pytest.mark.parametrize(
    "overrides",
    [
        {"embedding_amplification": "layer_norm"},
        {"use_ngram_embedding": False},
        {"tie_word_embeddings": True},
        {"mla_scale_q_lora": False},
        {"mla_scale_kv_lora": False},
        {"zero_expert_type": "drop"},
    ],
    ids=str,
)
def test_what_it_cannot_serve_is_refused_and_foretold(overrides, tmp_path):
    tiny_model(**overrides).save_pretrained(tmp_path / "saved")
    problems = config_problems("mlx-lm", json.loads((tmp_path / "saved" / "config.json").read_text()))
    assert any(f"`{name}`" in problem for name in overrides for problem in problems)
    save_file({"input_ids": INPUT_IDS}, tmp_path / "input_ids.safetensors")
    run = run_mlx(tmp_path / "saved", tmp_path / "mlx.safetensors", "--input-ids", tmp_path / "input_ids.safetensors")
    assert run.returncode != 0


@pytest.mark.parametrize(
    "overrides",
    [{"embedding_amplification": "sqrt_d"}, {"scale_zero_experts": False}, {"hidden_act": "gelu"}],
    ids=str,
)
def test_what_it_would_serve_wrongly_is_foretold(overrides, tmp_path):
    model = tiny_model(**overrides)
    model.save_pretrained(tmp_path / "saved")
    problems = config_problems("mlx-lm", json.loads((tmp_path / "saved" / "config.json").read_text()))
    assert any(f"`{name}`" in problem for name in overrides for problem in problems)
    with torch.no_grad():
        expected = model(INPUT_IDS).logits
    assert distance(mlx_logits(tmp_path / "saved", tmp_path, INPUT_IDS)["logits"], expected).max() > 0.01
