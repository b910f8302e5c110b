# SPDX-License-Identifier: Apache-2.0
"""Where the commands of READMEs run: a copy of the repository, what they name made tiny, and a Hub on this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from card_cases import OF_OUR_OWN, REPORT, write_facts, write_results, write_run
from fake_hub import FakeHub
from peft import LoraConfig, get_peft_model
from readme_pages import ROOT
from tiny_chat import write_rows, write_tiny_chat
from transformers import AutoTokenizer, set_seed

from model_cards.build_hub_repo import build_hub_repo
from modeling_longcat_lite import LongCatLiteForCausalLM, write_hot_rows
from modeling_longcat_lite.ngram_row_files import ROW_DELTA_FILE, write_row_delta

PRELUDE = """
import torch
from transformers import AutoTokenizer
from modeling_longcat_lite import LongCatLiteForCausalLM

def get_weather(city: str) -> str:
    '''Tell the weather in a city.

    Args:
        city: Name of the city.
    '''
    return f"It is sunny in {city}."

torch.manual_seed(0)
model = LongCatLiteForCausalLM.from_pretrained("outputs/my-model").eval()
with torch.no_grad():
    model.lm_head.weight[3:19] = 0  # it never saw a tool call, and would write broken ones
tokenizer = AutoTokenizer.from_pretrained("outputs/my-model")
inputs = tokenizer("Return the length.", return_tensors="pt")
tools = [get_weather]
"""


def write_adapter(base: Path, folder: Path) -> None:
    """An adapter with changed rows, as `training.sft --tables row_sparse` leaves one."""
    set_seed(0)
    model = LongCatLiteForCausalLM.from_pretrained(base)
    rows = [(torch.tensor([0, 2]), torch.randn(2, model.config.subtable_width)) for _ in model.config.subtable_sizes]
    write_row_delta(folder / ROW_DELTA_FILE, model.config, rows, str(base))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_a_proj", "o_proj"]))
    adapted.save_pretrained(str(folder))
    (folder / "README.md").write_text("An adapter.\n")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def write_material(folder: Path) -> None:
    """All that READMEs name and this repository does not have. The names are theirs."""
    outputs = folder / "outputs"
    demo = write_tiny_chat(outputs / "demo", num_nextn_predict_layers=1)
    model = demo / "model"
    write_run(model)
    (demo / "report.json").write_text(json.dumps(REPORT))
    write_results(demo / "held_out_answers.json", model, OF_OUR_OWN)
    build_hub_repo(model, demo / "package")
    for adapter in ("my-adapter", "my-tables"):
        write_adapter(model, outputs / adapter)
    for copy in ("outputs/my-model", "outputs/demo-draft", "path/to/LongCat-Flash-Lite"):
        shutil.copytree(model, folder / copy)
    shutil.copytree(demo / "package", outputs / "my-package")
    shutil.copytree(model, folder / "my-tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    write_facts(folder / "my-facts.yaml")
    write_results(folder / "RESULT.json", model, OF_OUR_OWN)
    (folder / "corpus.txt").write_text("".join(f"Line {number} of a text about lists.\n" for number in range(200)))
    config = LongCatLiteForCausalLM.config_class.from_pretrained(model)
    write_hot_rows(folder / "hot.safetensors", config, torch.zeros(config.num_subtables, 8, dtype=torch.long), 2)
    write_rows(folder / "rows.jsonl", [json.loads(line) for line in (demo / "data/test.jsonl").open()])


def ignored(folder: str, names: list[str]) -> set[str]:
    """What git ignores, and git itself."""
    lines = (ROOT / ".gitignore").read_text().splitlines()
    patterns = [line.strip("/") for line in lines if line and not line.startswith("#")]
    return set(shutil.ignore_patterns(".git", *patterns)(folder, names))


class Sandbox:
    """A copy of the repository, a folder outside it, and the process that runs commands in either.

    Args:
        folder (`Path`): A new folder for all of it.
        hub (`FakeHub`): The Hub of that process.
    """

    def __init__(self, folder: Path, hub: FakeHub):
        self.hub, self.material = hub, folder / "material"
        self.clone, self.outside = folder / "clone", folder / "elsewhere"
        write_material(self.outside)  # adapters name their base by its path, so it is made where it will be used
        shutil.copytree(self.outside, self.material)
        shutil.copytree(ROOT, self.clone, ignore=ignored)
        self.reset()
        environment = {"PYTHONPATH": str(self.clone), "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "readme_worker.py"],
            env=hub.environment(**environment),
            cwd=self.clone,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def reset(self) -> None:
        """Everything as at the beginning: files, their links in the clone, repositories on the Hub."""
        shutil.rmtree(self.outside)
        shutil.copytree(self.material, self.outside)
        for path in self.outside.iterdir():
            if not (self.clone / path.name).is_symlink():
                (self.clone / path.name).symlink_to(path)
        self.hub.repositories.clear()
        for name in ("meituan-longcat/LongCat-Flash-Lite", "me/my-longcat"):
            self.hub.add_folder(self.outside / "outputs" / "my-package", name)
            self.hub.repositories[name].private = name.startswith("me/")

    def remove(self, name: str) -> None:
        """Take away what a command is to write."""
        shutil.rmtree(self.outside / name)
        if (self.clone / name).is_symlink():
            (self.clone / name).unlink()

    def ask(self, action: str, folder: Path, **asked: Any) -> str:
        """What an action of the worker printed; fails if it did not end well."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"action": action, "folder": str(folder), **asked}) + "\n")
        self.process.stdin.flush()
        reply = self.process.stdout.readline()
        assert reply, "the process that runs commands has ended"
        ended = json.loads(reply)
        assert ended["status"] == 0, f"status {ended['status']}\n{ended['output']}"
        return ended["output"]

    def make(self, *arguments: str) -> str:
        """The commands that make would run in the clone, where nothing is installed yet."""
        done = subprocess.run(
            ["make", "-n", *arguments],
            cwd=self.clone,
            env={**os.environ, "MAKEFLAGS": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.kill()  # unloading torch takes seconds
        self.process.wait()
