# SPDX-License-Identifier: Apache-2.0
"""Training keeps a card that somebody wrote, whatever TRL and PEFT would write in its place."""

from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, ModelCard
from test_sft import run
from tiny_chat import write_tiny_chat

OURS = "---\nlicense: mit\ntags:\n- longcat\n---\n\n# Ours\n\nWritten from result files.\n"
LORA = ("--use_peft", "--lora_target_modules", "q_a_proj", "q_b_proj", "--lora_r", "2")
CHECKPOINTS = ("--save_strategy", "steps", "--save_steps", "2")


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def pushed(monkeypatch):
    """In place of the Hub: the card that each push would upload."""
    cards = []

    def upload_folder(self, folder_path, **options):
        cards.append(ModelCard.load(f"{folder_path}/README.md").content)

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(HfApi, "list_repo_files", lambda self, repo_id, **_: [])
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return cards


@pytest.mark.parametrize("options", [(), LORA], ids=["whole", "lora"])
def test_checkpoints_saves_and_pushes_leave_a_card_of_ours(chat, tmp_path, pushed, options):
    (tmp_path / "README.md").write_text(OURS)
    trainer = run(chat, tmp_path, *options, *CHECKPOINTS)
    assert (tmp_path / "README.md").read_text() == OURS
    trainer.args.hub_model_id = "me/tiny"
    trainer.push_to_hub()
    assert pushed == [OURS]
    assert (tmp_path / "README.md").read_text() == OURS
    assert not list(tmp_path.glob(".README*"))


@pytest.mark.parametrize("options", [(), LORA], ids=["whole", "lora"])
def test_drafts_of_the_libraries_give_way_to_newer_ones(chat, tmp_path, pushed, options):
    trainer = run(chat, tmp_path, *options)
    trainer.args.hub_model_id = "me/tiny"
    trainer.push_to_hub()
    assert len(pushed) == 1 and "It has been trained using [TRL]" in pushed[0]
    trainer.push_to_hub(dataset_name="me/rows")
    assert "me/rows" in pushed[1]
