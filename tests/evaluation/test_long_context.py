# SPDX-License-Identifier: Apache-2.0
"""Long-context tasks: samples against a solver that reads the prompt, scores, and the command on a tiny model."""

import json
import random
import re
import sys
from collections import Counter
from itertools import pairwise
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_figures import drawn_figures
from tiny_chat import write_tiny_chat
from transformers import AutoTokenizer

from eval.long_context import __main__ as long_context
from eval.long_context.cells import cells_of, prompt_tokens, written
from eval.long_context.ruler import lm_eval_tasks as lm_eval_ruler
from eval.long_context.ruler.needles import NEEDLE_TASKS, NOISE, prose
from eval.long_context.ruler.sample import RulerOptions, matched, matched_any
from eval.long_context.ruler.tasks import RULER_TASKS, Sampler
from eval.losses.positions import bin_edges, document_rows, loss_by_position
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM

PROSE = [f"Sentence number {n} of this text says nothing that anybody would ask for." for n in range(50)]
DEPTHS = [0.0, 0.3, 1.0]
# With these, the prompts of a tokenizer of bytes are short.
SMALL = ["--digits", "2", "--key-type", "numbers", "--value-type", "numbers", "--shots", "0", "--hops", "1"]
SMALL += ["--common-words", "1", "--coded-letters", "2", "--variable-letters", "2", "--new-tokens", "6"]


def words_and_marks(sample) -> int:
    """A plain count of tokens: words, numbers and marks."""
    return len(re.findall(r"\w+|[^\w\s]", f"{sample.said_by_user} {sample.prefix}"))


def solve(name: str, prompt: str) -> list[str]:
    """The answer of a reader who has only the prompt: the text after the worked example, and its question."""
    if name in NEEDLE_TASKS:
        asked = re.search(r"magic \w+ for (.*) mentioned in the provided text\?", prompt)[1]
        keys = re.split(r", and |, ", asked)
        found = re.findall(r"One of the special magic \w+ for (\S+) is: ([\w-]+)\.", prompt)
        return [value for key, value in found if key in keys]
    if name == "vt":
        value = re.findall(r"assigned the value (\d+) in the text above", prompt)[-1]
        names = re.findall(rf"VAR (\w+) = {value}\b", prompt)
        while more := [new for new, old in re.findall(r"VAR (\w+) = VAR (\w+)", prompt) if old == names[-1]]:
            names += more
        return names
    if name == "cwe":
        text = prompt[prompt[: prompt.rindex("Question:")].rindex("\n1. ") :]
        asked = int(re.findall(r"What are the (\d+) most common", prompt)[-1])
        return [word for word, _ in Counter(re.findall(r"\d+\. (\S+)", text)).most_common(asked)]
    coded = Counter(re.search(r"coded words\.\n(.*)\nQuestion", prompt)[1].split())
    del coded["..."]
    return [word for word, _ in coded.most_common(3)]


@pytest.fixture(scope="module")
def sampler():
    return Sampler(words_and_marks, RulerOptions(PROSE), seed=0)


@pytest.mark.parametrize("length", [1024, 4500])
@pytest.mark.parametrize("name", RULER_TASKS)
def test_a_reader_of_the_prompt_answers_everything(sampler, name, length):
    drawn = [sampler.sample(name, length, 0.5, number) for number in range(4)]
    for sample in drawn:
        prompt = f"{sample.said_by_user} {sample.prefix}"
        answer = solve(name, prompt)
        assert sorted(answer) == sorted(sample.answers)
        assert matched(" ".join(answer), sample.answers) == 1
        assert matched("", sample.answers) == matched_any("", sample.answers) == 0
        assert not any(value in sample.prefix for value in sample.answers)
    assert len({sample.answers for sample in drawn}) == 4
    again = Sampler(words_and_marks, RulerOptions(PROSE), seed=0)
    assert again.sample(name, length, 0.5, 3) == drawn[3]  # whatever was drawn before
    assert Sampler(words_and_marks, RulerOptions(PROSE), seed=1).sample(name, length, 0.5, 3) != drawn[3]


@pytest.mark.parametrize("name", RULER_TASKS)
def test_prompt_and_answer_fill_the_length(sampler, name):
    for length in (1024, 2000, 6000):
        total = words_and_marks(sampler.sample(name, length, 0.3, 0)) + sampler.answer_tokens(name)
        # A line of haystack, or one more word of a list as often as it is repeated.
        assert length - max(30, length // 100) <= total <= length


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", NEEDLE_TASKS)
def test_the_needle_is_at_its_depth(sampler, name, depth):
    for number in range(3):
        sample = sampler.sample(name, 2000, depth, number)
        assert all(sample.context.count(f"is: {value}.") == 1 for value in sample.answers)
        needle = next(n for n in re.findall(r"One of [^.]*\.", sample.context) if sample.answers[0] in n)
        others = (
            0 if NEEDLE_TASKS[name].haystack == "needles" else len(re.findall("One of the special", sample.context))
        )
        before = len(sample.context[: sample.context.index(needle)]) / (len(sample.context) - len(needle))
        # Half a unit of the haystack, and the other needles.
        assert abs(before - depth) <= (0.5 * max(len(NOISE), 140) + others * len(needle)) / len(sample.context)


def test_depths_share_their_needles(sampler):
    first, last = (sampler.sample("niah_multivalue", 1024, depth, 0) for depth in (0.0, 1.0))
    assert first.answers == last.answers and first.question == last.question and first.context != last.context
    assert first.context.startswith("One of the special magic numbers")
    assert last.context.endswith(f"is: {last.answers[0]}.")


def test_ruler_defaults(sampler):
    single, uuids = (sampler.sample(name, 1024, 0.5, 0) for name in ("niah_single_1", "niah_multikey_3"))
    assert re.fullmatch(r"\d{7}", single.answers[0])
    assert re.fullmatch(r"\w{8}-\w{4}-4\w{3}-\w{4}-\w{12}", uuids.answers[0])
    assert single.context.replace(NOISE, "").split("\n").count("") == single.context.count(NOISE)
    tracked = sampler.sample("vt", 1024, None, 0)
    assert len(tracked.answers) == 5 and all(re.fullmatch("[A-Z]{5}", name) for name in tracked.answers)
    places = [tracked.context.index(f"VAR {name} =") for name in tracked.answers]
    assert all(earlier < later for earlier, later in pairwise(places))
    for length, common, rare in ((1024, 6, 1), (4500, 30, 3)):
        listed = sampler.sample("cwe", length, None, 0)
        counts = Counter(re.findall(r"\d+\. (\S+)", listed.context))
        assert {counts[word] for word in listed.answers} == {common} and len(listed.answers) == 10
        assert {count for word, count in counts.items() if word not in listed.answers} == {rare}
        assert listed.example.count("Answer:") == 1
    coded = Counter(sampler.sample("fwe", 4500, None, 0).context.split())
    assert coded.most_common(1)[0][0] == "..." and coded.most_common(2)[1][1] * 4 <= coded["..."] < 4.1 * (
        coded.most_common(2)[1][1] + 1
    )


def test_scores_are_those_of_ruler():
    assert matched("It is 12 and\x0034.", ("12", "34", "56")) == pytest.approx(2 / 3)
    assert matched("abc", ("ABC",)) == matched_any("x ABC", ("abc", "d")) == 1
    assert matched_any("nothing", ("12", "34")) == 0


def test_prose_has_sentences_only():
    text = "Heading\n*****\n\nA first sentence\nof prose. And then a second one!\n\n   code = here(is, code, too).\n"
    assert prose([text], "x") == ["A first sentence of prose.", "And then a second one!"]
    with pytest.raises(ValueError, match="x has no sentence"):
        prose(["Heading"], "x")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny"), max_position_embeddings=1024) / "model"


@pytest.fixture(scope="module")
def loaded(tiny):
    return LongCatLiteForCausalLM.from_pretrained(tiny).eval(), AutoTokenizer.from_pretrained(tiny)


def run(tiny, output, *more):
    documents = output / "book.txt"
    documents.write_text("".join(f"Line {n} of a book. " for n in range(100)))
    arguments = ["--model", str(tiny), "--output", str(output / "results"), "--documents", str(documents)]
    arguments += ["--lengths", "640", "768", "--depths", "0", "1", "--samples", "2", "--loss-length", "100", *SMALL]
    arguments += ["--tasks", "niah_single_1", "vt", "fwe", *more]
    long_context.main(long_context.make_parser().parse_args(arguments))
    return json.loads((output / "results" / "long_context.json").read_text())


def test_the_command_resumes_and_repeats(tiny, tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    measured = []

    def interrupted(model, tokenizer, sampler, cell, *more):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(cell)
        return original(model, tokenizer, sampler, cell, *more)

    original = long_context.measure_cell
    monkeypatch.setattr(long_context, "measure_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path, "--lengths", "640")
    partial = tmp_path / "results" / "long_context.partial.jsonl"
    with partial.open("a") as file:
        file.write('{"key": "cut o')  # as a power cut leaves it
    with pytest.raises(ValueError, match="unfinished run with another seed"):
        run(tiny, tmp_path, "--lengths", "640", "--seed", "1")
    counted = []
    monkeypatch.setattr(long_context, "measure_cell", lambda *a: counted.append(a[3]) or original(*a))
    resumed = run(tiny, tmp_path, "--lengths", "640")
    cells = cells_of(["niah_single_1", "vt", "fwe"], [640], [0.0, 1.0])
    assert measured + counted == cells and len(cells) == 4
    assert not partial.exists()
    with drawn_figures() as figures:
        again = run(tiny, tmp_path, "--lengths", "640", "--batch-size", "4")
    for content in (resumed, again):
        assert content["machine"].pop("date")
    assert resumed == again
    markdown = (tmp_path / "results" / "long_context.md").read_text()
    assert "| `niah_single_1` |" in markdown and f"{again['loss_by_position']['mean']:.3f}" in markdown
    assert "Not RULER's defaults: digits 2" in markdown
    check_figure(figures["long_context.png"], again)
    of_task = [r for r in again["results"] if r["task"] == "niah_single_1" and r["metric"] == "string_match_all"]
    assert [(r["config"], r["samples"]) for r in of_task] == [("640 tokens", 4)]


def check_figure(figure, content):
    """Percentages by task and by depth, and the loss in the middle of each bin of positions."""
    by_task, by_depth, loss = figure.panels
    assert (by_task.title, by_task.x_ticks, by_task.y_ticks) == (
        "all depths, %",
        ["640"],
        ["niah_single_1", "vt", "fwe"],
    )
    assert (by_depth.y_label, by_depth.y_ticks) == ("depth of the needle", ["0%", "100%"])
    means = {
        task: fmean(cell["string_match_all"] for cell in content["cells"] if cell["task"] == task)
        for task in by_task.y_ticks
    }
    ((tasks,), (depths,)) = by_task.of_kind("image"), by_depth.of_kind("image")
    assert tasks.values == [[pytest.approx(mean)] for mean in means.values()]
    assert by_task.texts == [f"{100 * mean:.0f}" for mean in means.values()]
    assert [row[0] for row in depths.values] == [cell["string_match_all"] for cell in content["cells"][:2]]
    (line,) = loss.all_series
    edges = content["loss_by_position"]["edges"]
    assert line.y == pytest.approx(content["loss_by_position"]["losses"])
    assert line.x == [(begin + end) / 2 for begin, end in pairwise(edges)]
    assert (loss.x_scale, loss.x_label, loss.y_label) == ("log", "tokens read before", "loss, nats a token")


def test_a_model_that_answers_is_scored(tiny, tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()

    def reads(model, tokenizer, prompts, new_tokens, batch_size):
        texts = tokenizer.batch_decode(prompts)
        name = "niah_single_1" if "magic" in texts[0] else "vt" if "VAR" in texts[0] else "fwe"
        answers = [solve(name, text) for text in texts]
        return ["" if name == "fwe" else answer[0] if name == "vt" else f" {answer[0]}." for answer in answers]

    monkeypatch.setattr("eval.long_context.cells.written", reads)
    results = run(tiny, tmp_path)["results"]
    assert {r["config"] for r in results if r["task"] == "vt"} == {"640 tokens", "768 tokens"}
    values = {(r["task"], r["metric"]): r["value"] for r in results}
    assert values["niah_single_1", "string_match_all"] == 1
    assert values["vt", "string_match_all"] == 0.5 and values["vt", "string_match_part"] == 1  # one of two variables
    assert values["fwe", "string_match_all"] == values["fwe", "string_match_part"] == 0
    assert "| `vt` | 50% | 50% |" in (tmp_path / "results" / "long_context.md").read_text()


def test_batches_write_what_single_prompts_write(loaded):
    model, tokenizer = loaded
    prompts = [tokenizer("Join the strings. " * n)["input_ids"] for n in (5, 1, 3, 2, 4)]
    alone = written(model, tokenizer, prompts, 8, 1)
    assert written(model, tokenizer, prompts, 8, 4) == alone
    for prompt, text in zip(prompts, alone, strict=True):
        output = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=8)
        assert tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True) == text
    assert len(set(alone)) > 1


def test_batches_without_a_padding_token(tiny):
    """A model with several ends of a sequence pads with one of them."""
    model = LongCatLiteForCausalLM.from_pretrained(tiny, eos_token_id=[2, 7]).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    prompts = [tokenizer("Join the strings. " * n)["input_ids"] for n in (5, 1)]
    expected = written(model, tokenizer, prompts, 8, 1)
    tokenizer.pad_token = None
    assert written(model, tokenizer, prompts, 8, 2) == expected


def test_chat_prompts_end_in_the_assistant_turn(loaded, sampler):
    tokenizer = loaded[1]
    sample = sampler.sample("niah_single_1", 1024, 0.5, 0)
    text = tokenizer.decode(prompt_tokens(tokenizer, sample, chat=True))
    assert text.count("<longcat_user>") == 1
    assert text.endswith(f"{sample.question} <longcat_assistant>{sample.prefix}")
    assert tokenizer.decode(prompt_tokens(tokenizer, sample, chat=False)).endswith(
        f"{sample.question} {sample.prefix}"
    )


def test_loss_by_position_is_that_of_a_plain_loop(loaded, tmp_path):
    model, tokenizer = loaded
    for name in "ab":
        (tmp_path / name).write_text("".join(f"{name} says {n * n}. " for n in range(30)))
    (tmp_path / "short").write_text("Too short.")
    files = [tmp_path / name for name in ("a", "short", "b")]
    found = loss_by_position(model, tokenizer, files, 60, 5, 1)
    assert found["rows"] == 2 and sorted(found["documents"]) == ["a", "b"]
    nats = torch.zeros(59)
    for file in (files[0], files[2]):
        ids = torch.tensor([tokenizer(file.read_text())["input_ids"][:60]])
        with torch.no_grad():
            chances = model(ids).logits.log_softmax(-1)
        nats -= torch.tensor([chances[0, t, ids[0, t + 1]] for t in range(59)]) / 2
    assert found["edges"] == bin_edges(59) == [0, 16, 23, 32, 45, 59]
    expected = [nats[begin:end].mean().item() for begin, end in pairwise(found["edges"])]
    assert found["losses"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="`--loss-length` is 5000, but the longest of the documents has"):
        document_rows(tokenizer, files, 5000, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lengths", "2048"], r"`--lengths` has 2048, above `max_position_embeddings` of the model \(1024\)"),
        (["--tasks", "niah"], "`--tasks` has niah, but there are niah_single_1, "),
        (["--lengths", "64"], "`--lengths` has 64, too short for niah_single_1: its shortest prompt takes"),
        (["--depths", "1.5"], "`--depths` is 1.5, but must be from 0 to 1"),
        (["--samples", "0"], "`--samples` is 0, but must be at least 1"),
        (["--digits", "1", "--tasks", "niah_multikey_2"], "`--digits` 1 gives 9 numbers, too few"),
        (["--loss-length", "1"], "`--loss-length` is 1, but"),
        (["--shots", "2"], "`--shots` is 2"),
        (["--variable-letters", "1"], "`--variable-letters` is 1, but must be at least 2"),
        (["--lm-eval-ruler"], "lm-eval's ruler knows only 4096, 8192"),
    ],
)
def test_what_cannot_be_measured_is_named(tiny, tmp_path, options, message):
    (tmp_path / "results").mkdir()
    with pytest.raises(ValueError, match=message):
        run(tiny, tmp_path, *options)


def test_lengths_end_where_attention_would_be_sparse(tiny, tmp_path):
    sparse = write_tiny_chat(tmp_path, max_position_embeddings=1024, attention_method="LSA", index_topk=600) / "model"
    (tmp_path / "results").mkdir()
    with pytest.raises(ValueError, match=r"`--lengths` has 768, above `index_topk` of the model \(600\)"):
        run(sparse, tmp_path)
    arguments = long_context.make_parser().parse_args(["--model", str(sparse)])
    long_context.complete(arguments, LongCatLiteConfig.from_pretrained(sparse))
    assert arguments.lengths == [256, 512]


def test_lm_eval_without_its_data_stops_with_a_message(tiny, monkeypatch, capsys):
    drawn = []

    class Manager:
        there = ("ruler_vt", "ruler_cwe")

        def __init__(self, metadata):
            assert metadata == {"max_seq_lengths": [4096], "tokenizer": str(tiny)}

        def load(self, names):
            if names[0] not in self.there:
                raise ConnectionError("no route\nto the Hub")
            outputs = ["word"] if names[0] == "ruler_vt" else []
            documents = [{"max_length": length, "outputs": outputs} for length in (4096, 8192) for _ in range(3)]
            task = SimpleNamespace(config=SimpleNamespace(task=names[0]), eval_docs=documents)
            drawn.append((random.random(), float(np.random.random())))
            return {"tasks": {names[0]: task}}

    monkeypatch.setitem(sys.modules, "lm_eval.tasks", SimpleNamespace(TaskManager=Manager))
    loaded = lm_eval_ruler.load_ruler(tiny, [4096], seed=0)
    assert len(loaded.tasks) == 1 and len(loaded.missing) == len(lm_eval_ruler.THEIR_TASKS) - 1 == 12
    assert "niah_single_2 is left out. ConnectionError: no route to the Hub" in capsys.readouterr().err
    assert loaded.missing["ruler_cwe"] == "ValueError: no room in 4096 tokens of this tokenizer"
    assert lm_eval_ruler.chosen(loaded.tasks, 2) == {"ruler_vt": [0, 1, 3, 4]}
    lm_eval_ruler.load_ruler(tiny, [4096], seed=0)
    assert len(drawn) == 4 and len(set(drawn)) == 1  # the same seed, the same samples
    lm_eval_ruler.load_ruler(tiny, [4096], seed=1)
    assert drawn[-1] != drawn[0]
    Manager.there = ()
    with pytest.raises(ValueError, match="`--lm-eval-ruler` finds the data of no task"):
        lm_eval_ruler.load_ruler(tiny, [4096], seed=0)
