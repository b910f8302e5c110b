# SPDX-License-Identifier: Apache-2.0
"""A push that is wrong or would publish a secret sends nothing; files that training leaves are not uploaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fake_hub import TOKEN, FakeHub
from safetensors.torch import save_file
from tiny_chat import write_tiny_chat

from model_cards import upload_checks
from model_cards.build_hub_repo import build_hub_repo

REFUSE = """
import sys
from model_cards.push_to_hub import main, make_parser
for line in sys.stdin:
    try:
        print("pushed:", line, main(make_parser().parse_args(line.strip().split("|"))))
    except ValueError as error:
        print("refused:", error)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    chat = write_tiny_chat(tmp_path_factory.mktemp("chat"))
    build_hub_repo(chat / "model", chat / "package", max_shard_size="200KB")
    return chat / "package"


@pytest.fixture
def hub():
    with FakeHub() as hub:
        yield hub


def test_what_cannot_be_right_sends_nothing(package, tmp_path, hub):
    def folder(name: str, without: str = "", **added: str) -> Path:
        (tmp_path / name).mkdir()
        for path in package.iterdir():
            if path.name != without:
                (tmp_path / name / path.name).symlink_to(path)
        for file, text in added.items():
            path = tmp_path / name / file.replace("__", ".")
            path.unlink(missing_ok=True)
            path.write_text(text)
        return tmp_path / name

    shard = sorted(path.name for path in package.glob("*.safetensors"))[1]
    key = "sk-proj-" + "a1B2" * 6
    linked = folder("link")
    (linked / "gone.txt").symlink_to(tmp_path / "nowhere")
    config = {**json.loads((package / "config.json").read_text()), "auto_map": None}
    cases = {
        (package, "me/ti--ny"): "`repo` 'me/ti--ny' is not the name of a repository",
        (package, "me/models/tiny"): "`repo` 'me/models/tiny'",
        (package, f"{hub.url}/me/tiny"): f"`repo` '{hub.url}/me/tiny'",
        (package, "me/tiny.git"): "`repo` 'me/tiny.git'",
        (package, "me/tiny", "--revision", "0" * 40): "`revision` 000",
        (package, "me/tiny", "--base-model", "me/base"): "`base_model` is for adapters",
        (tmp_path / "nowhere", "me/tiny"): "is not a folder",
        (folder("no-config", "config.json"), "me/tiny"): "lacks config.json",
        (folder("no-tokenizer", "tokenizer.json"), "me/tiny"): "lacks tokenizer.json",
        (folder("no-card", "README.md"), "me/tiny"): "lacks README.md",
        (folder("no-shard", shard), "me/tiny"): f"lacks {shard}",
        (folder("no-weights", "model.safetensors.index.json"), "me/tiny"): "lacks model.safetensors;",
        (folder("no-code", "moe.py"), "me/tiny"): "lacks moe.py",
        (folder("no-map", config__json=json.dumps(config)), "me/tiny"): "lacks `auto_map` in config.json",
        (folder("broken", model__safetensors__index__json="{"), "me/tiny"): "index.json cannot be read as JSON",
        (folder("list", config__json="[]"), "me/tiny"): "config.json is not a JSON object",
        (linked, "me/tiny"): "contains gone.txt, which is not a file or links to nothing",
        (folder("env", __env="KEY=1"), "me/tiny"): "contains .env, which looks like a secret",
        (folder("pem", server__pem="key"), "me/tiny"): "contains server.pem, which looks like a secret",
        (folder("own", notes__md=f"one\ntwo {TOKEN}"), "me/tiny"): "notes.md, line 2: contains a Hugging Face token",
        (folder("api", run__json=f'{{"key": "{key}"}}'), "me/tiny"): "run.json, line 1: contains an API key",
    }
    lines = "".join("|".join(map(str, ("--folder", source, "--repo", *rest))) + "\n" for source, *rest in cases)
    said = hub.run(REFUSE, stdin=lines).splitlines()
    refused = [line for line in said if line.startswith("refused: ")]
    assert len(refused) == len(cases)
    for line, expected in zip(refused, cases.values(), strict=True):
        assert expected in line
    assert key not in "".join(said)
    no_token = hub.run(REFUSE, stdin=lines.splitlines()[-1], HF_TOKEN=None)
    assert "refused: there is no token" in no_token and "hf auth login" in no_token
    offline = hub.run(REFUSE, stdin=f"--folder|{package}|--repo|me/tiny", HF_HUB_OFFLINE="1")
    assert "refused: `HF_HUB_OFFLINE` is set" in offline
    assert hub.requests == []
    # The same, with nothing wrong.
    assert "pushed: " in hub.run(REFUSE, stdin=f"--folder|{package}|--repo|me/tiny")
    assert hub.requests


def test_what_training_left_stays_here(package, tmp_path, hub):
    folder = tmp_path / "folder"
    shutil.copytree(package, folder)
    left = ["training_args.bin", "optimizer.pt", "rng_state.pth", "checkpoint-4/model.safetensors", "runs/events"]
    for name in left:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    said = hub.run(REFUSE, stdin=f"--folder|{folder}|--repo|me/tiny")
    assert "not uploaded: checkpoint-4/, optimizer.pt, rng_state.pth, runs/, training_args.bin" in said
    assert hub.files("me/tiny").keys() == {".gitattributes", *(path.name for path in package.iterdir())}


def test_words_are_no_secrets(tmp_path):
    text = "task-specific-language-modeling-data sk-learn-and-other-names-of-libraries hf_hub_download_to_folder_of_a"
    (tmp_path / "notes.md").write_text(text)
    upload_checks.check_secrets(tmp_path, ["notes.md"], "x")


def test_secrets_of_other_forms_are_found(tmp_path):
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"by": f"me, {TOKEN}"})
    with pytest.raises(ValueError, match=r"model.safetensors, line 1: contains a Hugging Face token"):
        upload_checks.check_secrets(tmp_path, ["model.safetensors"], "x")
    (tmp_path / "notes.md").write_text("my-very-own-token")
    with pytest.raises(ValueError, match=r"notes.md, line 1: contains your own token"):
        upload_checks.check_secrets(tmp_path, ["notes.md"], "very-own-token")
