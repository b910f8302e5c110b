# SPDX-License-Identifier: Apache-2.0
"""Ablated tables against models whose tables were changed in place, in every placement; the command."""

import copy
import json
import math

import pytest
import torch
from conftest import CONFORMANCE, randomize, tiny_config
from drawn_figures import drawn_figures
from quantized_tables import convert
from tiny_chat import write_tiny_chat
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from eval.ngrams.ablation import __main__ as ngram_ablation
from eval.ngrams.ablation.ablated import ABLATIONS, ablated, permutations
from eval.reports.results import model_identity, read_results
from modeling_longcat_lite import LongCatLiteForCausalLM

TOKENS = torch.tensor([[5, 9, 5, 9, 2, 7, 5, 9, 11, 40, 41, 3], [8, 8, 8, 60, 61, 62, 2, 2, 8, 8, 8, 60]])
PLACEMENTS = ["resident", "host", "disk"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    # Rows of an even width, which 4 bits need.
    randomize(LongCatLiteForCausalLM(tiny_config(emb_split_num=2))).save_pretrained(path)
    return path


def load(folder, placement="resident", **options) -> LongCatLiteForCausalLM:
    return LongCatLiteForCausalLM.from_pretrained(folder, ngram_tables=placement, **options).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS, use_cache=False).logits


def changed_in_place(folder, change) -> LongCatLiteForCausalLM:
    """A resident model with `change(table number, weight)` in place of each table."""
    model = load(folder)
    for number, table in enumerate(model.model.ngram_embeddings.embedders):
        table.weight.data = change(number, table.weight.data)
    return model


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_zeroed_is_a_model_of_zero_tables(folder, placement):
    expected = changed_in_place(folder, lambda _, weight: torch.zeros_like(weight))
    model = load(folder, placement)
    before = logits(model)
    with ablated(model, "zeroed") as same:
        assert same is model
        assert torch.equal(logits(model), logits(expected))
        generated = model.generate(TOKENS, max_new_tokens=6, do_sample=False)
    assert torch.equal(generated, expected.generate(TOKENS, max_new_tokens=6, do_sample=False))
    assert torch.equal(logits(model), before) and not torch.equal(logits(expected), before)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_shuffled_is_a_permutation_of_each_table(folder, placement):
    model = load(folder, placement)
    sizes = model.config.subtable_sizes
    drawn = permutations(sizes, 3)
    moved = [
        (factor * torch.arange(rows) + summand) % rows for rows, (factor, summand) in zip(sizes, drawn, strict=True)
    ]
    for ids, rows in zip(moved, sizes, strict=True):
        assert torch.equal(ids.sort().values, torch.arange(rows))
        assert (ids != torch.arange(rows)).float().mean() > 0.9
    expected = changed_in_place(folder, lambda number, weight: weight[moved[number]])
    before = logits(model)
    with ablated(model, "shuffled", seed=3):
        assert torch.equal(logits(model), logits(expected))
        generated = model.generate(TOKENS, max_new_tokens=6, do_sample=False)
    assert torch.equal(generated, expected.generate(TOKENS, max_new_tokens=6, do_sample=False))
    with ablated(model, "shuffled", seed=4):
        assert not torch.equal(logits(model), logits(expected))
    assert torch.equal(logits(model), before)


def test_permutations_of_a_seed_are_the_same():
    sizes = [2, 3, 210, 10_223_617]
    assert permutations(sizes, 0) == permutations(sizes, 0) != permutations(sizes, 1)
    for rows, (factor, summand) in zip(sizes, permutations(sizes, 0), strict=True):
        assert math.gcd(factor, rows) == 1 and 0 <= summand < rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_few_bits_are_those_of_converted_tables(folder, name, dtype, tmp_path):
    source = tmp_path / "source"
    load(folder, dtype=getattr(torch, dtype)).save_pretrained(source)
    convert(source, tmp_path / "few", "--bits", name.removeprefix("int"))
    expected = logits(load(tmp_path / "few", dtype=getattr(torch, dtype)))
    for placement in PLACEMENTS:
        model = load(source, placement, dtype=getattr(torch, dtype))
        before = logits(model)
        with ablated(model, name):
            assert torch.equal(logits(model), expected), placement
        assert torch.equal(logits(model), before) and not torch.equal(before, expected)


@pytest.mark.parametrize("name", ["zeroed", "shuffled", "int4"])
def test_orders_are_ablated_one_by_one(folder, name):
    model = load(folder)
    with ablated(model, name):
        all_orders = logits(model)
    with ablated(model, name, orders=[2, 3, 4]):
        assert torch.equal(logits(model), all_orders)
    with ablated(model, name, orders=[3]):
        one = logits(model)
    assert not torch.equal(one, all_orders) and not torch.equal(one, logits(model))
    if name == "zeroed":
        third = changed_in_place(folder, lambda number, weight: weight * (number not in (2, 3)))
        assert torch.equal(one, logits(third))


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_model_is_itself_again_after_an_error(folder, name):
    model = load(folder)
    before, state = logits(model), copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="inside"), ablated(model, name):
        assert torch.equal(logits(model), before) is (name == "on")
        raise RuntimeError("inside")
    assert torch.equal(logits(model), before)
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["zeroed", "shuffled", "int8"])
def test_drafts_from_ablated_ngrams_change_no_token(name):
    model = randomize(LongCatLiteForCausalLM(tiny_config(num_nextn_predict_layers=1, mtp_use_ngram_embedding=True)))
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    before = model.eval().generate(TOKENS[:1], **options)
    with ablated(model, name):
        expected = model.generate(TOKENS[:1], **options)
        assert torch.equal(model.generate(TOKENS[:1], use_mtp=True, **options), expected)
        assert model.draft_statistics.cycles > 0
    assert name == "int8" or not torch.equal(expected, before)


def test_what_cannot_be_ablated_is_named(folder, tmp_path):
    model = load(folder)
    with pytest.raises(ValueError, match="'halved'; known are on, zeroed"), ablated(model, "halved"):
        pass
    with pytest.raises(ValueError, match=r"`orders` has 5, but .* 2 to 4"), ablated(model, "zeroed", orders=[5]):
        pass
    with ablated(model, "zeroed"), pytest.raises(ValueError, match="changed already"), ablated(model, "int8"):
        pass
    vanilla = LongCatLiteForCausalLM(tiny_config(use_ngram_embedding=False))
    with pytest.raises(ValueError, match="no n-gram tables"), ablated(vanilla, "zeroed"):
        pass
    with ablated(vanilla, "on"):
        assert logits(vanilla).isfinite().all()
    convert(CONFORMANCE / "released", tmp_path / "few", "--bits", 8)
    with pytest.raises(ValueError, match="have 8 bits already"), ablated(load(tmp_path / "few"), "int4"):
        pass


def run(*arguments) -> None:
    ngram_ablation.main(ngram_ablation.make_parser().parse_args([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    path = write_tiny_chat(tmp_path_factory.mktemp("chat"))
    randomize(load(path / "model")).save_pretrained(path / "model")
    return path


def plain_summary(losses: list[torch.Tensor], num_bytes: int) -> tuple[float, float, list[float]]:
    """Mean, bits a byte, and means at positions 0, 1, 2 to 3, ..., token by token."""
    total = sum(loss for part in losses for loss in part.tolist())
    buckets: dict[int, list[float]] = {}
    for part in losses:
        for position, loss in enumerate(part.tolist()):
            buckets.setdefault(position.bit_length(), []).append(loss)
    means = [sum(bucket) / len(bucket) for _, bucket in sorted(buckets.items())]
    return total / sum(map(len, losses)), total / math.log(2) / num_bytes, means


def check_summary(found: dict, losses: list[torch.Tensor], num_bytes: int) -> None:
    loss, bits, means = plain_summary(losses, num_bytes)
    assert found["loss"] == pytest.approx(loss) and found["bits_per_byte"] == pytest.approx(bits)
    assert [bucket["loss"] for bucket in found["by_position"]] == pytest.approx(means)


def test_the_command_scores_answers(chat, tmp_path):
    options = ["--model", chat / "model", "--rows", chat / "data" / "test.jsonl", "--by-order", "--name", "mine"]
    with drawn_figures() as figures:
        run(*options, "--output", tmp_path / "once")
    results = read_results(tmp_path / "once" / "mine.json", model_identity(chat / "model"))
    labels = ["on", "zeroed", "shuffled", "int8", "int4", "2-grams zeroed", "3-grams zeroed", "4-grams zeroed"]
    assert list(results["ablations"]) == labels

    model, tokenizer = load(chat / "model"), AutoTokenizer.from_pretrained(chat / "model")
    rows = [json.loads(line)["messages"] for line in (chat / "data" / "test.jsonl").read_text().splitlines()]
    num_bytes = sum(len(messages[1]["content"].encode()) for messages in rows)
    assert results["scored"]["bytes"] == num_bytes and results["scored"]["parts"] == len(rows)

    @torch.no_grad()
    def losses() -> list[torch.Tensor]:
        parts = []
        for messages in rows:
            ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
            prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)
            each = cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
            parts.append(each[len(prompt["input_ids"]) - 1 :])
        return parts

    unchanged = losses()
    check_summary(results["ablations"]["on"], unchanged, num_bytes)
    for table in model.model.ngram_embeddings.embedders:
        table.weight.data.zero_()
    zeroed = losses()
    check_summary(results["ablations"]["zeroed"], zeroed, num_bytes)
    differences = torch.cat(zeroed).double() - torch.cat(unchanged).double()
    assert results["ablations"]["zeroed"]["added_loss"] == pytest.approx(differences.mean().item())
    assert results["ablations"]["on"]["added_loss"] == 0

    text = (tmp_path / "once" / "mine.md").read_text()
    assert f"{results['ablations']['shuffled']['loss']:.4f}" in text and "mine.png" in text
    added, positions = figures["mine.png"].panels
    assert added.of_kind("bars")[0].named == pytest.approx(
        {label: one["added_loss"] for label, one in results["ablations"].items() if label != "on"}
    )
    assert (positions.x_label, set(positions.labels)) == ("position in the answer", set(labels))
    for label, one in results["ablations"].items():
        assert positions.series(label).y == [bucket["loss"] for bucket in one["by_position"]]
    assert str(tmp_path) not in text and str(chat) not in text + json.dumps(results)
    run(*options, "--output", tmp_path / "twice", "--ngram-tables", "disk")
    again = json.loads((tmp_path / "twice" / "mine.json").read_text())
    assert again["ablations"] == results["ablations"] and again["table_bytes"] == results["table_bytes"]


def test_the_command_scores_every_token_of_a_text_once(chat, tmp_path):
    books = []
    for number, words in enumerate(("sort the list", "join the strings – in place")):
        books.append(tmp_path / f"book{number}.txt")
        books[-1].write_text(" ".join([words] * 150), encoding="utf-8")
    options = ["--model", chat / "model", "--text", *books, "--ablations", "on", "--window", 48]
    run(*options, "--output", tmp_path)
    results = json.loads((tmp_path / "ngram_ablation.json").read_text())
    model, tokenizer = load(chat / "model"), AutoTokenizer.from_pretrained(chat / "model")
    losses, tokens = [], 0
    with torch.no_grad():
        for book in books:
            ids = [2, *tokenizer(book.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]]
            tokens += len(ids) - 1
            for begin in range(0, len(ids) - 1, 48):
                window = torch.tensor([ids[begin : begin + 49]])
                losses.append(cross_entropy(model(window[:, :-1]).logits[0], window[0, 1:], reduction="none"))
    assert results["scored"]["tokens"] == tokens == sum(map(len, losses))
    num_bytes = sum(book.stat().st_size for book in books)
    assert results["scored"]["bytes"] == num_bytes
    check_summary(results["ablations"]["on"], losses, num_bytes)


def test_windows_end_where_attention_would_be_sparse(chat, tmp_path):
    model = load(chat / "model")
    model.config.attention_method, model.config.index_topk = "LSA", 40
    model.save_pretrained(tmp_path / "sparse")
    book = tmp_path / "book.txt"
    book.write_text(" ".join(["sort the list"] * 300), encoding="utf-8")
    options = ["--tokenizer", chat / "model", "--text", book, "--ablations", "on", "--output", tmp_path]
    run("--model", tmp_path / "sparse", *options)
    assert json.loads((tmp_path / "ngram_ablation.json").read_text())["scored"]["window"] == 40


def test_what_cannot_be_scored_is_named(chat, tmp_path, capsys):
    short = tmp_path / "short.txt"
    short.write_text("too short")
    LongCatLiteForCausalLM(tiny_config()).save_pretrained(tmp_path / "small")
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text("")
    vanilla = write_tiny_chat(tmp_path / "vanilla", use_ngram_embedding=False) / "model"
    convert(chat / "model", tmp_path / "few", "--bits", 8)
    few = ("--model", tmp_path / "few", "--tokenizer", chat / "model", "--rows", chat / "data" / "test.jsonl")
    model = ("--model", chat / "model")
    for options, message in (
        ((*model, "--text", short), r"short\.txt: .*too short"),
        ((*model, "--rows", tmp_path / "none.jsonl"), r"`--rows` .*none\.jsonl: no such file"),
        ((*model, "--rows", nothing), r"nothing\.jsonl has no conversation"),
        (("--model", vanilla, "--ablations", "on"), "vanilla/model: `use_ngram_embedding` is false"),
        (few, r"`ablation` 'int8': the tables have 8 bits already"),
        ((*model, "--window", 0), "`--window`"),
        (("--model", tmp_path / "nowhere"), "nowhere is not a folder"),
        (("--model", tmp_path / "small", "--tokenizer", chat / "model", "--text", short), "`vocab_size`"),
    ):
        with pytest.raises(ValueError, match=message):
            run(*options, "--output", tmp_path / "results")
    assert "nats per token" not in capsys.readouterr().out  # said before anything is scored
    assert not (tmp_path / "results").exists()
