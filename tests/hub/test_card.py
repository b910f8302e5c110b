# SPDX-License-Identifier: Apache-2.0
"""The card: metadata that the Hub accepts, and only numbers that are in a file."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from card_cases import (
    FACTS,
    OF_OUR_OWN,
    ON_THE_HUB,
    PNG,
    REPORT,
    RUN,
    STATE,
    is_rounded,
    numbers_in_tables,
    numbers_of,
    run_command,
    section,
    write_facts,
    write_results,
    write_run,
)
from huggingface_hub import ModelCard, parse_eval_result_entries
from tiny_chat import write_tiny_chat

from eval.reports.results import model_identity
from model_cards import write_card
from model_cards.build_hub_repo import build_hub_repo
from model_cards.card import REQUIREMENT, CardSources, make_card
from model_cards.card_metadata import check_metadata
from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.checkpoint_header import read_safetensors_header
from training.data import documentation as conversations
from training.demo import __main__ as demo

ALL_FACTS = sorted(Path("model_cards/facts").glob("*.yaml"))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("chat")) / "model"


@pytest.fixture(scope="module")
def sources(model_dir, tmp_path_factory) -> CardSources:
    folder = tmp_path_factory.mktemp("sources")
    machine = {"date": "2026-11-25T21:41", "torch": "2.13.0"}
    results = [
        write_results(folder / "harness.json", model_dir, ON_THE_HUB, machine=machine),
        write_results(folder / "held_out.json", model_dir, OF_OUR_OWN),
    ]
    (folder / "held_out.png").write_bytes(PNG)
    (folder / "report.json").write_text(json.dumps(REPORT))
    return CardSources(write_facts(folder / "facts.yaml"), results, folder / "report.json", write_run(folder))


@pytest.fixture(scope="module")
def card(model_dir, sources):
    return make_card(model_dir, sources)


def test_metadata_is_what_the_hub_reads(card):
    data = ModelCard(card.text).data
    check_metadata(data.to_dict())
    assert ModelCard(str(ModelCard(card.text))).data.to_dict() == data.to_dict()
    assert (data.license, data.language, data.library_name) == ("apache-2.0", ["en"], "transformers")
    assert data.pipeline_tag == "text-generation" and data.model_name == "Tiny"
    assert {"longcat", "custom_code", "n-gram-embedding"} <= set(data.tags)
    # Read as plain YAML, as other readers of the Hub do.
    front_matter = yaml.safe_load(card.text.split("---\n")[1])
    named = [metric for result in front_matter["model-index"][0]["results"] for metric in result["metrics"]]
    assert {metric["name"]: metric["value"] for metric in named} == {
        f"{result['task']}, {result['metric']}": result["value"] for result in ON_THE_HUB + OF_OUR_OWN
    }


def test_every_metric_of_the_model_index_is_in_a_result_file(card):
    shown = [(r.metric_name, r.metric_type, r.metric_value) for r in ModelCard(card.text).data.eval_results]
    measured = [(f"{r['task']}, {r['metric']}", r["metric"], r["value"]) for r in ON_THE_HUB + OF_OUR_OWN]
    assert sorted(shown) == sorted(measured)
    gsm8k = next(r for r in ModelCard(card.text).data.eval_results if r.metric_type == "exact_match")
    assert (gsm8k.dataset_type, gsm8k.dataset_config, gsm8k.dataset_split) == ("openai/gsm8k", "main", "test")


def test_leaderboards_get_one_number_a_task_of_the_hub(card, model_dir, tmp_path):
    card.write(tmp_path)
    assert [path.name for path in (tmp_path / ".eval_results").iterdir()] == ["harness.yaml"]
    entry, other = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results" / "harness.yaml").read_text()))
    first, _, last = ON_THE_HUB
    assert (other.task_id, other.value) == (last["task"], last["value"])
    assert (entry.dataset_id, entry.task_id, entry.value) == (first["dataset"], first["task"], first["value"])
    assert entry.date == "2026-11-25T21:41"
    assert [float(n) for n in re.findall(r"\d[\d.]*", entry.notes)] == [first["stderr"], first["samples"]]


def test_every_number_in_the_tables_is_in_a_file(card):
    for title, files in (("Evaluation", [ON_THE_HUB, OF_OUR_OWN]), ("Training", [STATE, RUN])):
        written = numbers_in_tables(section(card.text, title))
        assert len(written) >= 5
        assert [n for n in written if not is_rounded(n, numbers_of(files))] == []
    # And the other way round: no result is left out.
    for result in ON_THE_HUB + OF_OUR_OWN:
        assert f"{result['value']:.4g}" in section(card.text, "Evaluation")


def test_numbers_of_the_model_are_counted(card, model_dir):
    model = LongCatLiteForCausalLM.from_pretrained(model_dir)
    tensors = model.state_dict()
    ngram = {name: tensor.numel() for name, tensor in tensors.items() if "ngram_embeddings" in name}
    total = sum(tensor.numel() for tensor in tensors.values())
    tables = sum(tensor.nbytes for name, tensor in tensors.items() if ".embedders." in name)
    assert f"| parameters | {total:,} |" in card.text
    assert f"| {sum(ngram.values()):,} ({100 * sum(ngram.values()) / total:.1f} %) |" in card.text
    config = model.config
    assert (
        f"{config.num_subtables} tables, {sum(config.subtable_sizes):,} rows of {config.subtable_width}" in card.text
    )
    on_disk = {
        n: e for n, e in read_safetensors_header(model_dir / "model.safetensors")[0].items() if "embedders" in n
    }
    assert tables == sum(entry.num_bytes for entry in on_disk.values())
    assert f'| `"host"` | {(sum(t.nbytes for t in tensors.values()) - tables) / 1e3:.0f} KB |' in card.text


def test_the_facts_are_in_the_card(card):
    for text in (FACTS["summary"], FACTS["training_data"], FACTS["intended_use"], FACTS["citation"], *FACTS["limits"]):
        assert text in card.text
    assert section(card.text, "Evaluation").startswith(f"\n{FACTS['evaluation']}\n\n| task |")
    assert r"""{"role": "user", "content": "What does \"function 1\" do, & isn't it 3 < 4 — é?"}""" in card.text
    assert "{{" not in card.text and "{%" not in card.text and "None" not in card.text
    assert "````text\nasked:     Q?" in card.text  # a longer fence than the one in the answer
    assert "torch 2.13.0" in card.text


def test_plots_come_along(card, tmp_path):
    card.write(tmp_path)
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card.text)
    assert sorted(shown) == ["held_out.png", "training_curves.png"]
    assert all((tmp_path / name).read_bytes() == PNG for name in shown)


def test_the_run_may_be_that_of_another_trainer(model_dir, tmp_path):
    (tmp_path / "trl").mkdir()
    (tmp_path / "trl" / "trainer_state.json").write_text(json.dumps(STATE))
    ours = make_card(model_dir, CardSources(run=write_run(tmp_path / "ours"))).text
    theirs = section(make_card(model_dir, CardSources(run=tmp_path / "trl")).text, "Training")
    rows = {line for line in theirs.splitlines() if line.startswith("| ") and "learning rate" not in line}
    assert len(rows) >= 6 and rows <= set(section(ours, "Training").splitlines())
    assert "| learning rate, largest logged | 0.00199 |" in theirs and "| `learning_rate` | 0.002 |" in ours


def test_what_was_not_finite_is_left_out(model_dir, tmp_path):
    metrics = {"loss": [[1, 2.5], [2, None]], "grad_norm": [[2, None]]}
    (tmp_path / "training_metrics.json").write_text(json.dumps(metrics))
    text = section(make_card(model_dir, CardSources(run=tmp_path)).text, "Training")
    assert "| training loss, first and last | 2.5, 2.5 |" in text and "None" not in text


def test_a_hub_folder_has_the_record_of_its_run(model_dir, sources, tmp_path):
    folder = tmp_path / "package"
    build_hub_repo(model_dir, folder, sources)
    again = make_card(folder, CardSources(sources.facts, sources.results, sources.report))
    assert again.text == (folder / "README.md").read_text()
    identities = [model_identity(of) for of in (model_dir, folder)]
    assert identities[0] == identities[1] | {"name": "model"}


def test_a_card_without_sources_says_that_nothing_is_known(model_dir):
    text = make_card(model_dir, CardSources(license="mit")).text
    assert ModelCard(text).data.license == "mit"
    for admitted in ("No results are available", "have not described", "Assume it is\nuntested"):
        assert admitted in text
    assert not numbers_in_tables(section(text, "Evaluation") + section(text, "Training"))


def test_writing_again_replaces_results(model_dir, sources, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in model_dir.iterdir():
        (folder / path.name).symlink_to(path)
    arguments = ["--folder", str(folder), "--facts", str(sources.facts)]
    run_command(write_card, *arguments, "--results", *map(str, sources.results))
    assert (folder / ".eval_results" / "harness.yaml").is_file()
    (folder / "mine.png").write_bytes(PNG)
    assert (folder / "held_out.png").is_file()
    run_command(write_card, *arguments, "--results", str(sources.results[1]))
    assert (folder / "held_out.png").is_file()
    assert not (folder / ".eval_results" / "harness.yaml").exists()
    run_command(write_card, *arguments, "--results", str(sources.results[0]))
    assert [path.name for path in folder.glob("*.png")] == ["mine.png"]
    run_command(write_card, *arguments, "--results", str(sources.results[1]))
    assert "gsm8k" not in (folder / "README.md").read_text()
    assert f"{folder}/README.md" in capsys.readouterr().out
    assert not list(folder.glob("*.partial")) + list(folder.glob(".*.partial"))


def test_tables_of_few_bits_are_named(tmp_path):
    model_dir = write_tiny_chat(tmp_path, ngram_table_bits=8) / "model"
    whole = write_tiny_chat(tmp_path / "whole") / "model"
    text = make_card(model_dir, CardSources()).text
    assert "float32; n-gram tables in 8 bits" in text and "stored in 8 bits" in text
    parameters = r"\| parameters \| [\d,]+ \|"
    assert re.findall(parameters, text) == re.findall(parameters, make_card(whole, CardSources()).text)


@pytest.mark.parametrize("facts", ALL_FACTS, ids=lambda path: path.stem)
def test_our_facts_make_a_card(model_dir, facts):
    data = ModelCard(make_card(model_dir, CardSources(facts)).text).data
    assert data.license in ("apache-2.0", "mit")


def test_numbers_in_the_demos_facts_are_those_of_the_demo():
    told = yaml.safe_load(Path("model_cards/facts/demo.yaml").read_text())["training_data"]
    expected = [conversations.MAX_ANSWER_CHARS, demo.CORE_ROUNDS, conversations.HELD_OUT_PERCENT]
    assert [int(n) for n in re.findall(r"\d+", told)] == expected


def test_the_requirement_is_that_of_the_package():
    assert REQUIREMENT in tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]


def test_the_code_loads_the_repository_that_it_goes_to(model_dir, tmp_path):
    facts = write_facts(tmp_path / "facts.yaml", repo_id="me/tiny")
    for sources in (CardSources(facts), CardSources(repo_id="me/tiny"), CardSources(facts, repo_id="me/tiny")):
        text = make_card(model_dir, sources).text
        assert 'name = "me/tiny"\n' in text and "--model_name_or_path me/tiny " in text
    with pytest.raises(ValueError, match=r"`repo_id` in .*facts.yaml is me/tiny, but the upload goes to me/other"):
        make_card(model_dir, CardSources(facts, repo_id="me/other"))


def test_names_of_tasks_do_not_break_the_table(model_dir, tmp_path):
    file = write_results(tmp_path / "harness.json", model_dir, [{"task": "a|b\nc", "metric": "acc", "value": 1.0}])
    text = make_card(model_dir, CardSources(results=[file])).text
    assert "| a\\|b c | acc | 1 |" in text


def test_it_says_how_to_serve_the_model_and_what_differs_there(card, tmp_path):
    """A model that no other runtime serves has no such section."""
    text = section(card.text, "Use")
    assert '`vllm serve . --hf-overrides \'{"model_type": "longcat_flash"}\'`' in text
    assert '`mlx_lm.generate --model . --prompt "..."`' in text
    for difference in ("row 0 of every table", "do not stop at end-of-sequence", "without `routed_scaling_factor`"):
        assert difference in text
    assert "`hidden_size` is 48, which is not a multiple of 256" in text
    assert "`response_template.defaults`" in text  # what vLLM's tool parser wants changed
    amplified = write_tiny_chat(tmp_path, embedding_amplification="layer_norm") / "model"
    assert "Serve elsewhere" not in make_card(amplified, CardSources(license="apache-2.0")).text
