# SPDX-License-Identifier: Apache-2.0
"""Mistakes in the sources of a card: errors name file and key, and no card is written."""

import json
import math
from pathlib import Path

import pytest
import torch
from card_cases import OF_OUR_OWN, ON_THE_HUB, PNG, REPORT, write_facts, write_results, write_run
from tiny_chat import write_tiny_chat

from eval.reports.results import result_file
from model_cards.card import CardSources, make_card
from modeling_longcat_lite import LongCatLiteForCausalLM


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("chat")) / "model"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"license": "apache"}, r"`license` is 'apache'.*not in the Hub's list"),
        ({"license": None}, r"facts.yaml lacks: license"),
        ({"license": "other"}, r"`license_name` goes with `license: other`"),
        ({"license": "other", "license_name": "mine"}, r"`license_link` goes with"),
        ({"license": "other", "license_name": "Mine!", "license_link": "LICENSE"}, r"`license_name` is 'Mine!'"),
        ({"license": "other", "license_name": "mine", "license_link": "a/b"}, r"`license_link` is 'a/b'"),
        ({"license_name": "apache"}, r"`license_name` goes with `license: other`, and only"),
        ({"language": ["english"]}, r"`language` has 'english'"),
        ({"language": [False]}, r"`language` must be a list of texts, but is \[False\]"),
        ({"base_model": ["outputs/demo/model"]}, r"`base_model` has 'outputs/demo/model', which is not an id"),
        ({"base_model": ["model"]}, r"`base_model` has 'model', which is not an id"),
        ({"base_model_relation": "finetune"}, r"`base_model_relation` needs a `base_model`"),
        ({"base_model": ["a/b"], "base_model_relation": "child"}, r"`base_model_relation` is 'child'"),
        ({"base_model": ["a/b"], "base_model_relation": "adapter"}, r"'adapter', but this is a whole model"),
        ({"name": "Tiny\n# Large"}, r"`name` must be one line"),
        ({"datasets": ["/data/rows"]}, r"`datasets` has '/data/rows'"),
        ({"repo_id": "./folder"}, r"`repo_id` has './folder'"),
        ({"limits": []}, r"`limits` must be a list"),
        ({"summary": "  "}, r"`summary` must be text"),
        ({"licence": "mit"}, r"unknown keys: licence"),
    ],
)
def test_wrong_facts_are_named(model_dir, tmp_path, changes, message):
    facts = write_facts(tmp_path / "facts.yaml", **changes)
    with pytest.raises(ValueError, match=message):
        make_card(model_dir, CardSources(facts))


def test_a_card_never_has_a_secret(model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "my-very-own-token")
    for secret, kind in (("hf_" + "aB3" * 11, "a Hugging Face token"), ("my-very-own-token", "your own token")):
        facts = write_facts(tmp_path / "facts.yaml", training_data=f"Read with {secret}.")
        with pytest.raises(
            ValueError, match=rf"README.md, made from .*facts.yaml, line \d+: contains {kind}"
        ) as refused:
            make_card(model_dir, CardSources(facts))
        assert secret not in str(refused.value)


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\x00"])
def test_a_file_without_facts(model_dir, tmp_path, text):
    (tmp_path / "facts.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"`facts` .*facts.yaml"):
        make_card(model_dir, CardSources(tmp_path / "facts.yaml"))


def test_a_run_that_is_not_there(model_dir, tmp_path):
    with pytest.raises(ValueError, match=r"`run` .*nowhere is not a folder"):
        make_card(model_dir, CardSources(run=tmp_path / "nowhere"))


def test_the_license_is_in_one_place(model_dir, tmp_path):
    with pytest.raises(ValueError, match="`license` is for a card without `facts`"):
        make_card(model_dir, CardSources(write_facts(tmp_path / "facts.yaml"), license="mit"))


@pytest.mark.parametrize("changed", ["weights", "config"])
def test_results_of_another_model_are_refused(model_dir, tmp_path, changed):
    file = write_results(tmp_path / "harness.json", model_dir, ON_THE_HUB)
    model = LongCatLiteForCausalLM.from_pretrained(model_dir)
    if changed == "config":
        model.config.routed_scaling_factor *= 2
    else:
        with torch.no_grad():
            model.lm_head.weight.add_(1)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"harness.json was measured on another model: its {changed}_sha256"):
        make_card(tmp_path, CardSources(results=[file]))


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([{"task": "drop", "value": 1.0}], r"results\[0\] lacks metric"),
        ([{"task": "drop", "metric": "f1"}], r"results\[0\] lacks value"),
        ([{"task": "drop", "metric": "f1", "value": math.nan}], r"results\[0\].value is nan, not a finite number"),
        ([{"task": "drop", "metric": "f1", "value": 1, "stderr": "low"}], r"results\[0\].stderr is 'low'"),
        ([OF_OUR_OWN[0], OF_OUR_OWN[0]], r"both have held-out, loss"),
        ([], r"has no results"),
    ],
)
def test_broken_result_files_are_named(model_dir, tmp_path, results, message):
    file = write_results(tmp_path / "broken.json", model_dir, results)
    with pytest.raises(ValueError, match=f"broken.json.*{message}"):
        make_card(model_dir, CardSources(results=[file]))


def test_results_of_an_ablation_are_refused(model_dir, tmp_path):
    file = tmp_path / "zeroed.json"
    content = result_file(model_dir, "harness", OF_OUR_OWN, settings={"ablation": "zeroed"})
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="was measured with n-gram tables zeroed"):
        make_card(model_dir, CardSources(results=[file]))


def test_results_on_few_questions_are_refused(model_dir, tmp_path):
    file = tmp_path / "few.json"
    file.write_text(json.dumps(result_file(model_dir, "harness", OF_OUR_OWN, settings={"limit": 2})), encoding="utf-8")
    with pytest.raises(ValueError, match=r"few\.json was measured with `--limit 2`"):
        make_card(model_dir, CardSources(results=[file]))


def test_figures_of_one_name_are_refused(model_dir, tmp_path):
    files = []
    for name, results in (("a", ON_THE_HUB), ("b", OF_OUR_OWN)):
        (tmp_path / name).mkdir()
        files.append(write_results(tmp_path / name / "results.json", model_dir, results))
        files[-1].with_suffix(".png").write_bytes(PNG)
    with pytest.raises(ValueError, match=r"b/results.png and .*a/results.png have the same name"):
        make_card(model_dir, CardSources(results=files))


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"training_steps": 1298}, r"report.json lacks heldout_loss_before, heldout_loss_after"),
        (REPORT | {"training_steps": 5}, r"report.json is of another run: its training_steps is 5, but 1298"),
        (REPORT | {"heldout_loss_after": 1.0}, r"report.json is of another run: its heldout_loss_after is 1.0"),
    ],
)
def test_wrong_reports_are_named(model_dir, tmp_path, report, message):
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match=message):
        make_card(model_dir, CardSources(report=tmp_path / "report.json", run=write_run(tmp_path)))


@pytest.mark.parametrize("folder", ["empty", "adapter"])
def test_a_folder_without_a_model(tmp_path, model_dir, folder):
    if folder == "adapter":
        base = {"base_model_name_or_path": str(model_dir), "peft_type": "LORA"}
        (tmp_path / "adapter_config.json").write_text(json.dumps(base))
    with pytest.raises(ValueError, match=r"neither config.json nor|has an adapter_config.json but no"):
        make_card(tmp_path, CardSources())
