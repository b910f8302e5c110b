# SPDX-License-Identifier: Apache-2.0
"""What tests of other environments share: a package as users get it, and its tokenizer read without trust."""

import json
import os
import subprocess
from pathlib import Path
from typing import TypeAlias

import torch
from conftest import randomize
from tiny_chat import ANSWERS, write_tiny_chat
from transformers import AutoTokenizer

from model_cards.build_hub_repo import build_hub_repo
from model_cards.card import CardSources
from modeling_longcat_lite import LongCatLiteForCausalLM

TESTS = Path(__file__).parent
QUESTION, ANSWER = "What does function 3 do?", ANSWERS[2]
Finished: TypeAlias = subprocess.CompletedProcess


def write_package(folder: Path, scale: float = 1.0, **overrides) -> Path:
    """A package for the Hub of a model with weights of which none is left as initialised, with its tokenizer.

    Args:
        folder (`Path`): To write into; the package is its `package`.
        scale (`float`, *optional*, defaults to 1.0): Factor on the matrices: wide models get smaller ones.
        overrides: Fields of the config other than those of `tiny_config`.
    """
    write_tiny_chat(folder, **overrides)
    model = randomize(LongCatLiteForCausalLM.from_pretrained(folder / "model"))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= scale
    model.save_pretrained(folder / "model")
    build_hub_repo(folder / "model", folder / "package", card=CardSources(license="apache-2.0"))
    return folder / "package"


def prompt_ids(package: Path) -> list[int]:
    """The chat's prompt, as this package's environment reads it."""
    messages = [{"role": "user", "content": QUESTION}]
    tokenizer = AutoTokenizer.from_pretrained(package)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def teach(package: Path) -> None:
    """Trains the model in a package until it answers `QUESTION` with `ANSWER`, and nothing comes near that answer."""
    model = LongCatLiteForCausalLM.from_pretrained(package).train()
    tokenizer, prompt = AutoTokenizer.from_pretrained(package), prompt_ids(package)
    answer = [*tokenizer(ANSWER, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    input_ids, labels = torch.tensor([prompt + answer]), torch.tensor([[-100] * len(prompt) + answer])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model(input_ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.01
    model.save_pretrained(package)


def greedy_text(package: Path) -> str:
    """This package's answer to `QUESTION`."""
    model = LongCatLiteForCausalLM.from_pretrained(package)
    prompt = torch.tensor([prompt_ids(package)])
    new = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False)
    tokens = new[0, prompt.shape[1] :]
    return AutoTokenizer.from_pretrained(package).decode(tokens, skip_special_tokens=True)


def run_elsewhere(python: Path, script: str, *arguments: str | Path, **environment: str) -> Finished:
    """A script of `tests/` in another environment."""
    return run_command([python, TESTS / script, *arguments], **environment)


def run_command(command: list[str | Path], **environment: str) -> Finished:
    """A command without a network, with one thread, and with nobody to answer a question."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        command, capture_output=True, text=True, env=variables, stdin=subprocess.DEVNULL, check=False
    )


def assert_tokenizer_loads_untrusted(package: Path, python: Path) -> str:
    """In the environment of `python`, and says the same; the version of transformers there."""
    run = run_elsewhere(python, "untrusted_tokenizer.py", package)
    assert run.returncode == 0, run.stderr
    read = [json.loads(line[line.index("{") :]) for line in run.stdout.splitlines() if '{"version"' in line]
    assert [one["ids"] for one in read] == [prompt_ids(package)] * 2
    return read[0]["version"]
