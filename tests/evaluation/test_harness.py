# SPDX-License-Identifier: Apache-2.0
"""The harness: the batch changes nothing, finished benchmarks are kept, and wrong input is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from drawn_figures import drawn_figures
from harness_cases import LIMIT, few_tasks_of_lm_eval, run, values, write_model
from lm_eval.api.instance import Instance

from eval.checkpoints.load import ModelFolder
from eval.harness.run import LongCatLiteLM, load_model
from eval.harness.suite import suites
from eval.reports.results import model_identity, read_results
from modeling_longcat_lite import LongCatLiteForCausalLM


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with few_tasks_of_lm_eval():
        yield write_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def in_batches_of_8(model, tmp_path_factory):
    output = tmp_path_factory.mktemp("batch8")
    with drawn_figures() as figures:
        status, results = run(model, output, "--limit", LIMIT)
    assert status == 0
    check_figure(figures["harness_smoke.png"], results)
    return output, results


def check_figure(figure, results):
    """Every task's first metric is drawn: texts on the left, shares and guessing on the right."""
    first = {one["task"].removeprefix("pydoc_"): one for one in reversed(results["results"])}
    texts, shares = figure.panels
    assert (texts.y_label, shares.y_label) == ("bits per byte, less is better", "right, %")
    (bars,) = texts.of_kind("bars")
    expected = {"text\ncore": first["text_core"]["value"], "text\nheld out": first["text_held_out"]["value"]}
    assert bars.named == pytest.approx(expected)
    (bars,), guessing = shares.of_kind("bars"), shares.series("guessing")
    right = {name: one for name, one in first.items() if not name.startswith("text")}
    assert len(bars.named) == len(right) == 5
    for label, height in bars.named.items():
        name, metric = label.rstrip(")").rsplit("\n(", 1)
        one = first[name.replace("\n", "_").replace(" ", "_")]
        assert (one["metric"], 100 * one["value"]) == (metric, pytest.approx(height))
    assert guessing.y == [25.0] * 3 and shares.legend == ["guessing"]


def counted_calls(monkeypatch, fail_at=None) -> list[int]:
    """Sequences of each scoring forward from now on; the one numbered `fail_at` is interrupted."""
    calls, plain = [], LongCatLiteLM._model_call

    def call(self, inps, *args, **kwargs):
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        calls.append(len(inps))
        return plain(self, inps, *args, **kwargs)

    monkeypatch.setattr(LongCatLiteLM, "_model_call", call)
    return calls


def test_all_tasks_of_the_smoke_suite_have_numbers(in_batches_of_8):
    output, results = in_batches_of_8
    assert list(results["benchmarks"]) == [benchmark.name for benchmark in suites()["smoke"].benchmarks]
    for one in results["results"]:
        assert one["samples"] == 2
        assert one["metric"] == "bits_per_byte" or 0 <= one["value"] <= 1
    assert (output / "harness_smoke.png").is_file()
    text = (output / "harness_smoke.md").read_text()
    assert "| pydoc_tool_choice | acc |" in text and "Only 2 questions" in text
    assert str(output) not in text + json.dumps(results)


def test_batches_of_1_and_8_give_the_same(model, in_batches_of_8, tmp_path):
    _, eight = in_batches_of_8
    _, one = run(model, tmp_path, "--limit", LIMIT, "--batch-size", 1)
    assert values(one) == pytest.approx(values(eight), abs=1e-5)
    shares = [key for key in values(one) if key[1] != "bits_per_byte"]
    assert [values(one)[key] for key in shares] == [values(eight)[key] for key in shares]
    answers = [[benchmark["examples"] for benchmark in run["benchmarks"].values()] for run in (one, eight)]
    assert answers[0] == answers[1]
    assert sum(len(examples) for examples in answers[0]) == 4  # two answers and two tool calls


def requests(kind, arguments):
    return [Instance(kind, {}, one, 0, metadata=("test", 0, 1)) for one in arguments]


PAIRS = [
    ("What does function 1 do?", "Join the strings."),
    ("<longcat_user>What does function 2 do? <longcat_assistant>", "Return the length."),
    ("a", " much longer continuation than the context that stands before it, so that others are padded"),
    ("x y", "z"),
]


def test_log_likelihoods_are_those_of_a_plain_forward(model):
    one, eight = (load_model(ModelFolder(model), batch_size=size) for size in (1, 8))
    found = [lm.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True) for lm in (one, eight)]
    for number, (context, continuation) in enumerate(PAIRS):
        ids = one.tokenizer(context + continuation, return_tensors="pt")["input_ids"]
        begin = len(one.tokenizer(context)["input_ids"])
        with torch.no_grad():
            likely = one.model(ids, use_cache=False).logits[0, begin - 1 : -1].log_softmax(-1)
        expected = likely.gather(1, ids[0, begin:, None]).sum().item()
        for answers in found:
            assert answers[number][0] == pytest.approx(expected, abs=1e-4)
            assert answers[number][1] == bool((likely.argmax(-1) == ids[0, begin:]).all())


def test_generated_answers_are_those_of_generate_alone(model):
    prompts = [context for context, _ in PAIRS]
    options = {"until": [], "do_sample": False, "max_gen_toks": 12}
    found = [
        load_model(ModelFolder(model), batch_size=size).generate_until(
            requests("generate_until", [(prompt, options) for prompt in prompts]), disable_tqdm=True
        )
        for size in (1, 8)
    ]
    lm = load_model(ModelFolder(model), batch_size=1)
    alone = []
    for prompt in prompts:
        ids = lm.tokenizer(prompt, return_tensors="pt")["input_ids"]
        tokens = lm.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        alone.append(lm.tokenizer.decode(tokens, skip_special_tokens=True))
    assert found[0] == found[1] == alone
    assert len(set(alone)) > 1


def test_an_interrupted_run_goes_on(model, in_batches_of_8, tmp_path, monkeypatch):
    options = ("--limit", LIMIT, "--batch-size", 1, "--tasks", "pydoc_text_core", "pydoc_choice_core")
    with monkeypatch.context() as patch:
        first = counted_calls(patch, fail_at=6)
        with pytest.raises(KeyboardInterrupt):
            run(model, tmp_path, *options)
        assert len(first) == 6  # two texts, and four of the eight choices
        assert not (tmp_path / "harness_smoke.json").exists()
    with monkeypatch.context() as patch:
        second = counted_calls(patch)
        _, results = run(model, tmp_path, *options)
        assert len(second) == 4
    whole = values(in_batches_of_8[1])
    assert values(results) == pytest.approx({key: whole[key] for key in values(results)}, abs=1e-5)
    with monkeypatch.context() as patch:
        third = counted_calls(patch)
        assert values(run(model, tmp_path, *options)[1]) == values(results)
        assert not third
    assert not list(tmp_path.rglob("*.db")) and not list(tmp_path.rglob("*.partial"))


def test_answers_of_another_config_are_not_taken(model, tmp_path, monkeypatch):
    folder = shutil.copytree(model, tmp_path / "model")
    options = ("--limit", LIMIT, "--batch-size", 1, "--tasks", "pydoc_choice_core")
    with monkeypatch.context() as patch:
        counted_calls(patch, fail_at=4)
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path, *options)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"routed_scaling_factor": 1.5}))
    calls = counted_calls(monkeypatch)
    assert run(folder, tmp_path, *options)[0] == 0
    assert len(calls) == 8  # the first four too


def test_a_rerun_gives_the_same_numbers(model, in_batches_of_8, monkeypatch):
    output, before = in_batches_of_8
    calls = counted_calls(monkeypatch)
    _, again = run(model, output, "--limit", LIMIT, "--no-resume")
    assert calls
    assert values(again) == values(before)


def test_other_settings_are_measured_anew(model, in_batches_of_8, monkeypatch):
    output, _ = in_batches_of_8
    calls = counted_calls(monkeypatch)
    run(model, output, "--limit", 1, "--tasks", "pydoc_text_core")
    assert sum(calls) == 1


@pytest.mark.parametrize("placement", ["host", "disk"])
def test_tables_elsewhere_give_the_same(model, in_batches_of_8, placement, tmp_path):
    options = ("--limit", LIMIT, "--ngram-tables", placement, "--tasks", "pydoc_text_core", "pydoc_text_held_out")
    found, whole = values(run(model, tmp_path, *options)[1]), values(in_batches_of_8[1])
    assert len(found) == 2
    assert found == pytest.approx({key: whole[key] for key in found}, abs=1e-6)


def test_zeroed_tables_give_other_scores_kept_apart(model, tmp_path):
    options = ["--limit", LIMIT, "--tasks", "pydoc_text_held_out"]
    on = run(model, tmp_path, *options)[1]
    assert run(model, tmp_path, *options, "--ablation", "zeroed")[1] == on
    zeroed = read_results(tmp_path / "harness_smoke_zeroed.json", model_identity(model))
    key = ("pydoc_text_held_out", "bits_per_byte")
    assert zeroed["settings"]["ablation"] == "zeroed" and list(values(zeroed)) == [key]
    assert abs(values(zeroed)[key] - values(on)[key]) > 1e-4
    text = (tmp_path / "harness_smoke_zeroed.md").read_text()
    assert "N-gram tables zeroed" in text and "(harness_smoke_zeroed.png)" in text


def test_texts_are_cut_where_attention_would_be_sparse(model, tmp_path):
    values_of = {}
    for name, fields in (("sparse", {"attention_method": "LSA", "index_topk": 64}), ("short", {})):
        folder = Path(shutil.copytree(model, tmp_path / name))
        config = json.loads((folder / "config.json").read_text())
        fields = fields or {"max_position_embeddings": 64}
        (folder / "config.json").write_text(json.dumps(config | fields))
        options = ("--tasks", "pydoc_text_core", "--limit", 8)
        values_of[name] = values(run(folder, tmp_path / f"{name}-out", *options)[1])
    assert values_of["sparse"] == values_of["short"]


def test_a_finished_task_of_another_model_is_refused(model, in_batches_of_8, tmp_path):
    output, _ = in_batches_of_8
    shutil.copytree(output / "work", tmp_path / "work")
    other = tmp_path / "model"
    shutil.copytree(model, other)
    weights = LongCatLiteForCausalLM.from_pretrained(other)
    weights.lm_head.weight.data.mul_(2)
    weights.save_pretrained(other)
    (kept,) = (folder for folder in (tmp_path / "work").glob("model-*") if (folder / "pydoc_tool_call.json").exists())
    ours, theirs = model_identity(other)["weights_sha256"][:8], model_identity(model)["weights_sha256"][:8]
    kept.rename(kept.with_name(kept.name.replace(theirs, ours)))
    with pytest.raises(ValueError, match=r"pydoc_text_core\.json was measured on another model: its weights_sha256"):
        run(other, tmp_path, "--limit", LIMIT)


@pytest.mark.parametrize(
    ("suite", "options", "message"),
    [
        ("smoke", ("--seed", "-1"), "`--seed` is -1, but must be from 0 to 4294967295"),
        ("bse", (), "`--suite` is 'bse': choose one of base, chat, smoke"),
        (
            "smoke",
            ("--tasks", "mmlu"),
            "`--tasks` has 'mmlu', which is not in suite smoke: choose from pydoc_text_core",
        ),
        ("smoke", ("--limit", "0"), "`--limit` is 0, but must be at least 1"),
        ("smoke", ("--batch-size", "0"), "`--batch-size` is 0"),
        ("chat", ("--server", "localhost"), "`--server` is 'localhost'"),
        (
            "chat",
            ("--record", "mmlu=0.5"),
            "`--record` has 'mmlu', but the benchmarks of suite chat that other programs run are: tau2_air",
        ),
        ("chat", ("--record", "vitabench=7"), "`--record` has 'vitabench=7': write the score as a share from 0 to 1"),
    ],
)
def test_bad_input_is_named(model, suite, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(model, tmp_path, *options, suite=suite)


def test_a_tokenizer_of_another_vocabulary_is_named(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 5000, "content": "<other>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokens, above `vocab_size` \(280\) of the model"):
        run(folder, tmp_path / "out")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_folder_that_is_no_model_is_named(model, missing, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    message = "has no chat template" if missing == "chat_template.jinja" else f"has no {missing}"
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "model", tmp_path / "out")
