# SPDX-License-Identifier: Apache-2.0
"""A pushed folder arrives whole and loads by name elsewhere; a push that failed goes on when it is run again."""

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from card_cases import run_command
from fake_hub import TOKEN, FakeHub
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_chat import write_tiny_chat
from transformers import AutoTokenizer

from model_cards import build_hub_repo as builder
from model_cards import hub_upload
from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.ngram_row_files import ROW_DELTA_FILE, read_row_delta, write_row_delta
from training import extend_context, sft

QUESTION = [{"role": "user", "content": "What does function 1 do?"}]
PUSH = "import runpy; runpy.run_module('model_cards.push_to_hub', run_name='__main__')"
# The same command twice, of which the first fails: is the folder built again?
BUILD_AND_PUSH_TWICE = """
import sys
from pathlib import Path
from model_cards.build_hub_repo import main, make_parser
try:
    main(make_parser().parse_args())
except Exception as error:
    print("failed:", error, *error.__notes__)
package = Path(sys.argv[sys.argv.index("--output") + 1])
times = {path: path.stat().st_mtime_ns for path in package.iterdir()}
main(make_parser().parse_args())
assert times == {path: path.stat().st_mtime_ns for path in package.iterdir()}
"""
# Arguments: name of the model, name of an adapter or "", file to write; a fourth forbids the package.
LOAD = """
import sys
name, adapter, output = sys.argv[1:4]
if sys.argv[4:]:
    sys.modules["modeling_longcat_lite"] = None
else:
    import modeling_longcat_lite
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=bool(sys.argv[4:]))
if sys.argv[4:]:
    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
else:
    model = modeling_longcat_lite.LongCatLiteForCausalLM.from_pretrained(name)
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "What does function 1 do?"}],
    add_generation_prompt=True, return_dict=True, return_tensors="pt",
)
found = {f"weights.{key}": weights.clone() for key, weights in model.state_dict().items()}
found["answer"] = model.generate(**inputs, max_new_tokens=8)
if adapter:
    from peft import PeftModel
    model.load_ngram_rows(adapter)
    model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        found["adapted"] = model(inputs["input_ids"]).logits
save_file(found, output)
"""
TRAIN_AND_PUSH = """
import sys
from training.sft import main, make_parser
trainer = main(*make_parser().parse_args_and_config(sys.argv[1:]))
trainer.model.push_to_hub("me/model")
"""


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def pushed_files(hub: FakeHub, name: str, revision: str = "main") -> dict[str, bytes]:
    return {path: data for path, data in hub.files(name, revision).items() if path != ".gitattributes"}


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def package(chat) -> Path:
    builder.build_hub_repo(chat / "model", chat / "package", max_shard_size="200KB")
    return chat / "package"


@pytest.fixture(scope="module")
def adapter(chat) -> Path:
    """With drawn weights, since a new adapter changes nothing, and with changed rows."""
    model = LongCatLiteForCausalLM.from_pretrained(chat / "model")
    torch.manual_seed(0)
    targets = LoraConfig(r=2, target_modules=["q_a_proj", "o_proj"], init_lora_weights=False)
    get_peft_model(model, targets).save_pretrained(chat / "adapter")
    rows = [(torch.arange(0, size, 2), torch.randn((size + 1) // 2, 4)) for size in model.config.subtable_sizes]
    write_row_delta(chat / "adapter" / ROW_DELTA_FILE, model.config, rows, str(chat / "model"))
    (chat / "adapter" / "ngram_row_delta.md").write_text(f"Rows of `{chat / 'model'}`, not of `{chat / 'model-2'}`.")
    return chat / "adapter"


@pytest.fixture
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.mark.slow  # three processes that import torch, of which two at a time
def test_model_and_adapter_load_by_name_in_other_processes(chat, adapter, tmp_path, hub):
    hub.fail("POST", "/commit/", times=1, status=403)
    build = ("--model", chat / "model", "--output", tmp_path / "package", "--max-shard-size", "200KB", "--push")
    said = hub.run(BUILD_AND_PUSH_TWICE, *build, "me/tiny")
    assert "failed:" in said and "Run the same command again" in said and f"{hub.url}/me/tiny/commit/" in said
    shards = [path.read_bytes() for path in (tmp_path / "package").glob("*.safetensors")]
    assert len(shards) > 2 and sorted(hub.stored) == sorted(hashlib.sha256(shard).hexdigest() for shard in shards)
    assert pushed_files(hub, "me/tiny") == contents(tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["package"]  # and no note of an unfinished push
    assert 'name = "me/tiny"\n' in hub.files("me/tiny")["README.md"].decode()  # what the card's code loads
    hub.run(PUSH, "--folder", adapter, "--repo", "me/adapter", "--base-model", "me/tiny")

    with ThreadPoolExecutor() as pool:
        without = ("me/tiny", "", tmp_path / "without", "the package")
        loads = [
            pool.submit(hub.run, LOAD, *without, cwd=tmp_path, PYTHONPATH=None),
            pool.submit(hub.run, LOAD, "me/tiny", "me/adapter", tmp_path / "with"),
        ]
        for load in loads:
            load.result()
    model = LongCatLiteForCausalLM.from_pretrained(chat / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(chat / "model")
    inputs = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    for found in (load_file(tmp_path / "without"), load_file(tmp_path / "with")):
        assert torch.equal(found["answer"], answer)
        weights = {name.removeprefix("weights."): w for name, w in found.items() if name.startswith("weights.")}
        assert weights.keys() == model.state_dict().keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        plain = model(inputs["input_ids"]).logits
        model.load_ngram_rows(adapter)
        without_lora = model(inputs["input_ids"]).logits
        adapted = PeftModel.from_pretrained(model, adapter).eval()(inputs["input_ids"]).logits
    assert torch.equal(found["adapted"], adapted)
    assert not torch.equal(plain, without_lora) and not torch.equal(without_lora, adapted)


@pytest.mark.slow  # a process that trains
def test_trainer_and_model_push_their_code(chat, tmp_path, hub):
    options = ("--model_name_or_path", chat / "model", "--dataset_name", chat / "data")
    options += ("--output_dir", tmp_path / "out", "--chat_template_path", "tokenization/chat_template_training.jinja")
    options += ("--max_steps", "1", "--use_cpu", "--bf16", "false", "--report_to", "none", "--save_steps", "1")
    (tmp_path / "out" / "merged").mkdir(parents=True)
    (tmp_path / "out" / "merged" / "model.safetensors").write_bytes(b"of an earlier run")
    hub.run(TRAIN_AND_PUSH, *options, "--max_length", "64", "--push_to_hub", "--hub_model_id", "me/trainer")
    assert (tmp_path / "out" / "training_args.bin").is_file()
    code = {path.name: path.read_bytes() for path in Path("modeling_longcat_lite").glob("*.py")}
    del code["__init__.py"]
    from_trainer, from_model = hub.files("me/trainer"), hub.files("me/model")
    for files in (from_trainer, from_model):
        assert code.items() <= files.items() and {"config.json", "README.md"} <= files.keys()
        assert json.loads(files["config.json"])["auto_map"].keys() >= {"AutoConfig", "AutoModelForCausalLM"}
        assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
        assert not any(TOKEN.encode() in data for data in files.values())
    assert {"tokenizer.json", "chat_template.jinja"} <= from_trainer.keys()
    # Neither with a checkpoint nor at the end is there a pickle or a second model.
    in_training = [commit for commit in hub.repositories["me/trainer"].commits if "in progress" in commit.message]
    assert in_training and all("model.safetensors" in commit.files for commit in in_training)
    for commit in hub.repositories["me/trainer"].commits:
        assert not [name for name in commit.files if name.endswith(".bin") or "/" in name]


@pytest.mark.parametrize("script", [sft, extend_context], ids=["sft", "extend_context"])
def test_a_token_among_the_training_arguments_is_refused(script, chat, tmp_path):
    # `training_args.bin` would hold it, here and in checkpoints, which `hub_strategy` may upload.
    options = ["--model_name_or_path", str(chat / "model"), "--dataset_name", str(chat / "data"), "--use_cpu"]
    options += ["--output_dir", str(tmp_path), "--bf16", "false", "--report_to", "none", "--hub_token", TOKEN]
    stages = ["--stages", "training/recipes/yarn_demo.stages.yaml"] if script is extend_context else []
    with pytest.raises(ValueError, match="`hub_token` would be stored") as refused:
        script.main(*script.make_parser().parse_args_and_config([*options, *stages]))
    assert TOKEN not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_branch_message_and_privacy_arrive(package, hub):
    options = ("--private", "--revision", "trial/one", "--commit-message", "Second try")
    hub.run(PUSH, "--folder", package, "--repo", "me/tiny", *options)
    repository = hub.repositories["me/tiny"]
    assert repository.private
    assert (repository.commits[-1].branch, repository.commits[-1].message) == ("trial/one", "Second try")
    assert pushed_files(hub, "me/tiny", "trial/one") == contents(package)
    assert pushed_files(hub, "me/tiny", "main") == {}


def test_a_public_repository_is_not_taken_for_a_private_one(package, hub):
    hub.run(PUSH, "--folder", package, "--repo", "me/tiny")
    commits = len(hub.repositories["me/tiny"].commits)
    said = hub.run(PUSH, "--folder", package, "--repo", "me/tiny", "--private", fails=True)
    assert "`private`: me/tiny exists and is public" in said
    assert len(hub.repositories["me/tiny"].commits) == commits


def test_a_failed_upload_leaves_the_folder_and_goes_on(package, hub):
    before, push = digests(package), ("--folder", package, "--repo", "me/tiny")
    shards = len(list(package.glob("*.safetensors")))
    hub.fail("PUT", after=2, status=403)
    said = hub.run(PUSH, *push, fails=True)
    assert "Run the same command again" in said and "the disk is full" in said
    assert len(hub.stored) == 2 < shards
    assert digests(package) == before
    assert pushed_files(hub, "me/tiny") == {}
    hub.heal()
    hub.fail("PUT", times=1)  # a connection that drops once is tried again, without a word
    hub.run(PUSH, *push)
    assert len(hub.stored) == len(set(hub.stored)) == shards
    assert pushed_files(hub, "me/tiny") == contents(package)
    assert digests(package) == before


def test_uploads_by_xet_go_on_too_and_large_ones_take_several_commits(package, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(package, folder)
    for index in range(230):
        (folder / f"note-{index}.txt").write_text(f"{index}")
    push = ("--folder", folder, "--repo", "me/tiny", "--commit-message", "By Xet")
    with FakeHub(xet=True) as hub:
        hub.fail("POST", "/commit/", status=403)
        hub.run(PUSH, *push, fails=True)
        sent = list(hub.xet.received)
        assert sent and pushed_files(hub, "me/tiny") == {}
        hub.heal()
        hub.run(PUSH, *push)
        assert hub.xet.received == sent and hub.stored == []
        assert pushed_files(hub, "me/tiny") == contents(folder)
        assert [commit.message for commit in hub.repositories["me/tiny"].commits[1:]] == ["By Xet", "By Xet (part 2)"]


def test_what_an_earlier_push_left_is_not_loaded_with_the_new_weights(chat, package, adapter, tmp_path, hub):
    whole = tmp_path / "whole"
    builder.build_hub_repo(chat / "model", whole)
    shutil.copy(adapter / ROW_DELTA_FILE, whole)
    (whole / "picture.png").write_bytes(b"picture")
    hub.run(PUSH, "--folder", whole, "--repo", "me/tiny")
    assert {"model.safetensors", ROW_DELTA_FILE} <= hub.files("me/tiny").keys()
    said = hub.run(PUSH, "--folder", package, "--repo", "me/tiny")
    assert f"model.safetensors, {ROW_DELTA_FILE}" in said
    assert pushed_files(hub, "me/tiny") == {**contents(package), "picture.png": b"picture"}


def test_an_adapter_names_its_base_as_the_hub_does(chat, adapter, tmp_path, hub):
    before = digests(adapter)
    said = hub.run(PUSH, "--folder", adapter, "--repo", "me/adapter", fails=True)
    assert "`base_model_name_or_path`" in said and "--base-model user/name" in said
    assert hub.requests == []
    said = hub.run(PUSH, "--folder", adapter, "--repo", "me/adapter", "--base-model", "no/name/this", fails=True)
    assert "`base_model` 'no/name/this' is not the name" in said and hub.requests == []
    with_base = ("--folder", adapter, "--repo", "me/adapter", "--base-model", "me/tiny")
    assert "there is no me/tiny on the Hub" in hub.run(PUSH, *with_base, fails=True)
    assert hub.repositories == {}
    hub.add_repository("me/tiny")
    hub.run(PUSH, *with_base)
    files = hub.files("me/adapter")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/tiny"
    assert ModelCard(files["README.md"].decode()).data.base_model == "me/tiny"
    assert not [name for name, data in files.items() if f"{chat}/model".encode() in data.replace(b"model-2", b"")]
    assert files["ngram_row_delta.md"].decode() == f"Rows of `me/tiny`, not of `{chat / 'model-2'}`."
    (tmp_path / ROW_DELTA_FILE).write_bytes(files[ROW_DELTA_FILE])
    config = LongCatLiteForCausalLM.config_class.from_pretrained(chat / "model")
    for table, expected in zip(read_row_delta(tmp_path, config), read_row_delta(adapter, config), strict=True):
        assert all(torch.equal(*pair) for pair in zip(table, expected, strict=True))
    assert digests(adapter) == before


def test_an_adapter_does_not_hide_a_model(package, adapter, hub):
    hub.run(PUSH, "--folder", package, "--repo", "me/tiny")
    before = hub.files("me/tiny")
    with_base = ("--folder", adapter, "--base-model", "me/tiny")
    assert "has a whole model" in hub.run(PUSH, *with_base, "--repo", "me/tiny", fails=True)
    assert hub.files("me/tiny") == before


def test_a_repository_of_others_is_not_written_to(package, hub):
    hub.add_repository("you/tiny")
    said = hub.run(PUSH, "--folder", package, "--repo", "you/tiny", fails=True)
    assert "403" in said and "you/tiny" in said
    assert hub.stored == [] and pushed_files(hub, "you/tiny") == {}


def test_a_token_that_is_refused_is_not_shown(package, hub):
    said = hub.run(PUSH, "--folder", package, "--repo", "me/tiny", fails=True, HF_TOKEN="hf_" + "wrong" * 7)
    assert "401" in said
    said = hub.run(PUSH, "--folder", package, "--repo", "you/tiny", fails=True)
    assert "403" in said and "namespace" in said
    assert hub.repositories == {} and hub.stored == []


def test_changed_rows_that_are_nowhere_are_named(chat):
    with pytest.raises(ValueError, match=r"me/nothing: no such folder, and no repository on the Hub"):
        LongCatLiteForCausalLM.from_pretrained(chat / "model").load_ngram_rows("me/nothing")


def test_options_of_an_upload_need_one(chat, tmp_path):
    with pytest.raises(ValueError, match="add `--push`"):
        run_command(builder, "--model", str(chat / "model"), "--output", str(tmp_path / "out"), "--private")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_push_goes_on_with_the_same_build_only(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_upload, "push_folder", lambda *rest: 1 / 0)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    output = tmp_path / "package"
    output.mkdir()

    def unfinished(*options: str) -> hub_upload.UnfinishedPush:
        arguments = ["--model", str(tmp_path / "model"), "--output", str(output), "--push", "me/tiny", *options]
        return hub_upload.UnfinishedPush(builder.make_parser().parse_args(arguments), output)

    assert not unfinished().is_built()
    with pytest.raises(ZeroDivisionError):
        unfinished().push("me/tiny", False, None, None)
    assert unfinished().is_built()
    assert unfinished("--commit-message", "Again", "--private", "--debug").is_built()
    assert not unfinished("--license", "mit").is_built()
    assert not unfinished("--push", "me/other").is_built()  # its card would name the first
    (tmp_path / "model" / "config.json").write_text("{ }")
    assert not unfinished().is_built()
