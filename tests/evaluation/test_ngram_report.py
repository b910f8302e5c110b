# SPDX-License-Identifier: Apache-2.0
"""The n-gram report: counts against a plain dictionary, rules, norms, rows as text, collisions by table size."""

import json
import math
import random
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import randomize, tiny_config
from drawn_figures import drawn_figures
from naive_ngram import naive_lookback
from test_working_set import EOS, naive_rows, stream
from tiny_chat import write_tiny_chat

from eval.ngrams.collisions import distinct_ngrams, expected_collisions, expected_sharing
from eval.ngrams.report import __main__ as ngram_report
from eval.ngrams.report.measures import branch_norms, ngram_texts, order_figures, table_figures
from eval.ngrams.report.rules import norm_rule, occupied_rule, share_rule, size_rule
from eval.ngrams.report.size_ratios import documentation_tokenizer, parse_ratios
from eval.ngrams.token_rows import token_rows
from eval.reports.results import model_identity, read_results
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.ngram_embedding import ngram_tokens
from training.data.local_text import documents


def plain_ngrams(tokens: list[int], order: int) -> list[tuple[int, ...]]:
    """The n-gram that ends with each token, 0 where nothing may be seen."""
    found = []
    for t in range(len(tokens)):
        reach = min(order - 1, len(naive_lookback(tokens, t, {EOS})))
        found.append((0,) * (order - 1 - reach) + tuple(tokens[t - reach : t + 1]))
    return found


def measured(config: LongCatLiteConfig, tokens: list[int]) -> tuple[np.ndarray, list, list[dict]]:
    array = np.array(tokens)
    orders = distinct_ngrams(ngram_tokens(config, torch.tensor([tokens]))[0].numpy())
    rows = token_rows(config, array)
    return rows, orders, table_figures(config, rows, orders)


@pytest.mark.parametrize(
    "changes", [{}, {"emb_neighbor_num": 3, "emb_split_num": 2, "ngram_vocab_size_ratio": 2}], ids=["N4K4", "N3K2"]
)
def test_counts_of_a_plain_dictionary(changes):
    config, tokens = tiny_config(**changes), stream(2300)
    _, orders, tables = measured(config, tokens)
    assert len(tables) == config.num_subtables
    naive = naive_rows(config, tokens)
    for table in tables:
        order = 2 + table["table"] // config.num_subtables_per_order
        ngrams = plain_ngrams(tokens, order)
        readers: dict[int, set] = defaultdict(set)
        for t, ngram in enumerate(ngrams):
            readers[naive[t][table["table"]]].add(ngram)
        size = config.subtable_sizes[table["table"]]
        assert table["order"] == order and table["rows"] == size
        assert table["ngrams"] == len(set(ngrams))
        assert table["occupied"] == len(readers)
        assert table["hit_rate"] == len(readers) / size
        assert table["collisions"] == sum(len(one) - 1 for one in readers.values())
        assert table["sharing"] == sum(len(one) for one in readers.values() if len(one) > 1)
        seen = [
            len({row[table["table"]] for row in naive[:point]}) / size for point in (100, 200, 500, 1000, 2000, 2300)
        ]
        assert table["hit_rate_by_tokens"] == seen
        counts = Counter(ngrams)
        kept = orders[order - 2]
        assert {tuple(ngram): reads for ngram, reads in zip(kept.tokens.tolist(), kept.reads, strict=True)} == counts
    sums = order_figures(tables)
    parts = [table for table in tables if table["order"] == 3]
    assert sums["3-grams"]["hit_rate"] == pytest.approx(
        sum(part["occupied"] for part in parts) / sum(part["rows"] for part in parts)
    )
    assert sums["3-grams"]["collisions"] == sum(part["collisions"] for part in parts) / len(parts)


@pytest.mark.parametrize(("ngrams", "rows"), [(500, 300), (60, 1000)])
def test_expected_collisions_are_those_of_a_simulation(ngrams, rows):
    draw = np.random.default_rng(0)
    collisions, sharing = [], []
    for _ in range(2000):
        counts = np.bincount(draw.integers(rows, size=ngrams), minlength=rows)
        collisions.append(ngrams - np.count_nonzero(counts))
        sharing.append(counts[counts > 1].sum())
    for found, expected in ((collisions, expected_collisions), (sharing, expected_sharing)):
        error = np.std(found) / math.sqrt(len(found))
        assert abs(np.mean(found) - expected(ngrams, rows)) < 4 * error


def test_each_rule_is_kept_or_not():
    assert share_rule(0.5)["kept"] and not share_rule(0.51)["kept"]
    for ratio, kept in ((5.37, True), (5.5, True), (78.0001, False), (30.985, False), (31.03, True)):
        tables = [{"table": 0, "size_ratio": 5.5}, {"table": 1, "size_ratio": ratio}]
        assert size_rule(tables)["kept"] is kept, ratio
    assert "Table 1 has 78.0001" in size_rule([{"table": 1, "size_ratio": 78.0001}])["text"]
    assert norm_rule({"ratio": 0.2})["kept"] and not norm_rule({"ratio": 10.0})["kept"]


def test_a_table_with_a_factor_of_the_vocabulary_is_named():
    draw = random.Random(0)
    tokens = [draw.randrange(3, 40) for _ in range(3000)]
    found = {}
    for ratio in (4.41, 4.985):
        config = tiny_config(emb_neighbor_num=2, emb_split_num=1, ngram_vocab_size_ratio=ratio)
        _, _, tables = measured(config, tokens)
        found[tables[0]["rows"]] = occupied_rule(tables, config.ngram_base_vocab_size)
    assert found[283]["kept"] and "factor" not in found[283]["text"]
    # 64 tokens, 64 * 5 rows: of the token before, the id keeps what 5 leaves of it.
    assert (
        not found[320]["kept"]
        and "320 rows and the base vocabulary, 64, have the common factor 64" in found[320]["text"]
    )


@pytest.mark.parametrize(
    "changes",
    [
        *({"embedding_amplification": kind} for kind in ("none", "sqrt_d", "layer_norm")),
        {"scale_word_embedding": False},
    ],
    ids=str,
)
def test_norms_are_those_of_hooks_by_hand(changes):
    model = randomize(LongCatLiteForCausalLM(tiny_config(**changes))).eval()
    tokens = torch.tensor(stream(50)).clamp_max(63)
    embedding, attention, words, ngrams = [], [], [], []
    layer, trunk = model.model.layers[0], model.model
    hooks = [
        layer.self_attn[0].register_forward_hook(lambda _, inputs, output: attention.append(output[0][0])),
        layer.register_forward_pre_hook(lambda _, inputs: embedding.append(inputs[0][0])),
    ]
    with torch.no_grad():
        for part in (tokens[:20], tokens[20:40], tokens[40:]):
            model(part[None], use_cache=False)
            word = trunk.embed_tokens(part) / (13 if model.config.scale_word_embedding else 1)
            codes = torch.nn.functional.pad(part[None], (3, 0), value=-1)
            whole = trunk.ngram_embeddings(trunk.embed_tokens(part)[None], codes)[0]
            words.append(word)
            ngrams.append(whole - word)
    for hook in hooks:
        hook.remove()
    found = branch_norms(model, tokens, 20)
    for name, states in (
        ("embedding", embedding),
        ("attention", attention),
        ("word_term", words),
        ("ngram_terms", ngrams),
    ):
        assert found[name] == pytest.approx(torch.cat(states).norm(dim=-1).mean().item(), rel=1e-5), name
    assert found["ratio"] == pytest.approx(found["attention"] / found["embedding"])
    assert not layer._forward_pre_hooks and not layer.self_attn[0]._forward_hooks
    assert not trunk.ngram_embeddings._forward_hooks


def run(*arguments) -> None:
    ngram_report.main(ngram_report.make_parser().parse_args([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("chat")) / "model"


@pytest.fixture
def book(tmp_path):
    draw = random.Random(0)
    words = ["length", "strings", "sort", "the", "list", "join", "place", "stream"]
    path = tmp_path / "book.txt"
    path.write_text(" ".join(draw.choice(words) for _ in range(900)), encoding="utf-8")
    return path


def test_rows_come_back_from_their_text():
    tokenizer = documentation_tokenizer(512)
    text = "Return the length of the string, and sort the list in place. " * 30
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    config = tiny_config(vocab_size=512)
    rows, orders, _ = measured(config, tokens)
    used = ngram_texts(rows, orders, tokenizer, 5, 3)
    assert list(used) == ["2-grams", "3-grams", "4-grams"]
    for place, (name, entries) in enumerate(used.items()):
        column = Counter(rows[:, 4 * place].tolist())
        assert [entry["reads"] for entry in entries] == sorted(column.values(), reverse=True)[:5]
        for entry in entries:
            assert column[entry["row"]] == entry["reads"] and entry["table"] == 4 * place
            ngrams = Counter(ngram for ngram in plain_ngrams(tokens, place + 2) if hashed(config, ngram, entry))
            assert len(ngrams) == entry["distinct"] and sum(ngrams.values()) == entry["reads"]
            assert [ngram["reads"] for ngram in entry["ngrams"]] == sorted(ngrams.values(), reverse=True)[:3]
            for ngram in entry["ngrams"]:
                assert len(ngram["tokens"]) == int(name[0])
                assert ngrams[tuple(ngram["tokens"])] == ngram["reads"]
                assert ngram["text"] in text


def hashed(config: LongCatLiteConfig, ngram: tuple[int, ...], entry: dict) -> bool:
    """Whether the n-gram reads the row of the entry, by the definition."""
    value = sum(token * 512**distance for distance, token in enumerate(reversed(ngram)))
    return value % config.subtable_sizes[entry["table"]] == entry["row"]


def test_the_command_reports_a_config_without_weights(tmp_path, chat_model, book, capsys):
    config = LongCatLiteConfig.from_pretrained(chat_model)
    for folder, ratio in (("away", 2.4), ("near", 3)):
        config.ngram_vocab_size_ratio = ratio
        config.save_pretrained(tmp_path / folder)
    options = ["--tokenizer", chat_model, "--text", book, "--tokens", 1500]
    with drawn_figures() as figures:
        run("--config", tmp_path / "away" / "config.json", *options, "--output", tmp_path / "once")
    run("--config", tmp_path / "away", *options, "--output", tmp_path / "twice")
    once, again = (json.loads((tmp_path / name / "ngram_report.json").read_text()) for name in ("once", "twice"))
    for part in ("orders", "tables", "most_used", "rules", "ngram_share"):
        assert once[part] == again[part]
    assert once["text"]["tokens"] == 1500 and "norms" not in once
    rules = {rule["rule"]: rule["kept"] for rule in once["rules"]}
    assert rules["3.2.2, table size"] and rules["3.2.1, n-gram share"] == (once["ngram_share"] <= 0.5)
    text = (tmp_path / "once" / "ngram_report.md").read_text()
    assert f"{once['tables'][3]['collisions']:,}" in text and "ngram_report.png" in text
    figure = figures["ngram_report.png"]
    assert [panel.title for panel in figure.panels] == ["Hit rate", "Collisions of each table"]
    for order, part in once["orders"].items():
        drawn = figure.panel("Hit rate").series(order)
        assert drawn.x == once["curve_tokens"]
        assert drawn.y == pytest.approx([100 * rate for rate in part["hit_rate_by_tokens"]])
    collisions = figure.panel("Collisions of each table")
    assert collisions.series("measured").values == [table["collisions"] for table in once["tables"]]
    assert collisions.series("at random").y == [table["expected_collisions"] for table in once["tables"]]
    assert str(tmp_path) not in text + json.dumps(once)
    capsys.readouterr()
    run("--config", tmp_path / "near", *options, "--output", tmp_path / "near", "--name", "mine")
    assert "WARNING" in capsys.readouterr().out
    near = json.loads((tmp_path / "near" / "mine.json").read_text())
    assert not {rule["rule"]: rule["kept"] for rule in near["rules"]}["3.2.2, table size"]
    assert "| 3.2.2, table size | **warning** |" in (tmp_path / "near" / "mine.md").read_text()


def test_the_command_reports_a_model(tmp_path, chat_model, book):
    with drawn_figures() as figures:
        run("--model", chat_model, "--text", book, "--model-tokens", 600, "--window", 64, "--output", tmp_path)
    results = read_results(tmp_path / "ngram_report.json", model_identity(chat_model))
    assert results["norms"]["tokens"] == 600 and results["norms"]["window"] == 64
    assert results["results"][0]["value"] == results["norms"]["ratio"]
    assert results["evaluation"] == "ngram_report" and results["model"]["tables"] == 12
    assert f"{results['norms']['ratio']:.3f}" in (tmp_path / "ngram_report.md").read_text()
    panel = figures["ngram_report.png"].panels[2]
    keys = ("word_term", "ngram_terms", "embedding", "attention")
    assert panel.y_label == "mean L2 norm"
    assert panel.of_kind("bars")[0].values == pytest.approx([results["norms"][key] for key in keys])


def test_collisions_spike_at_integers_and_are_those_of_a_dictionary(tmp_path):
    with drawn_figures() as figures:
        run("--ratios", "30.9:31.1:0.1", "--tokens", 30_000, "--output", tmp_path)
    results = json.loads((tmp_path / "collision_ratios.json").read_text())
    assert [point["ratio"] for point in results["points"]] == [30.9, 31.0, 31.1]
    assert results["smallest_spike"] >= 1.2
    assert {spike["ratio"] for spike in results["spikes"]} == {31.0} and len(results["spikes"]) == 4

    tokenizer = documentation_tokenizer(4096)
    tokens: list[int] = []
    for _, text in documents():
        tokens += [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], EOS]
        if len(tokens) >= 30_000:
            break
    del tokens[30_000:]
    bigrams = {(0 if far == EOS else far, near) for far, near in pairwise([0, *tokens])}
    assert results["ngrams"] == len(bigrams)
    for point in results["points"]:
        assert point["rows"] == [int(point["ratio"] * 4096 + 2 * i + 1) for i in range(4)]
        for rows, collisions in zip(
            [*point["rows"], point["rows_without_offset"]],
            [*point["collisions"], point["collisions_without_offset"]],
            strict=True,
        ):
            assert collisions == len(bigrams) - len({(near + far * 4096) % rows for far, near in bigrams})
    whole = results["points"][1]["collisions"][2]
    adjacent = [results["points"][place]["collisions"][2] for place in (0, 2)]
    assert results["spikes"][2]["factor"] == pytest.approx(whole / (sum(adjacent) / 2))
    (panel,) = figures["collision_ratios.png"].panels
    assert panel.labels == [*(f"ratio * V + {2 * i + 1} rows" for i in range(4)), "ratio * V rows", "at random"]
    for i in range(4):
        line = panel.series(f"ratio * V + {2 * i + 1} rows")
        assert line.x == [30.9, 31.0, 31.1]
        assert line.y == [point["collisions"][i] for point in results["points"]]
    assert f"**{results['smallest_spike']:.2f}**" in (tmp_path / "collision_ratios.md").read_text()


def test_ratios_are_read_as_written():
    assert parse_ratios("30.0:30.4:0.1") == [30.0, 30.1, 30.2, 30.3, 30.4]
    assert len(parse_ratios("30:33:0.1")) == 31
    for text in ("30:33", "30:33:x", "33:30:0.1", "30:33:0", "nan:33:1", "0:3:1"):
        with pytest.raises(ValueError, match="`--ratios`"):
            parse_ratios(text)


def test_what_cannot_be_measured_is_named(tmp_path, chat_model, book):
    short = tmp_path / "short.txt"
    short.write_text("too short")
    tiny_config().save_pretrained(tmp_path / "small")
    tiny_config(use_ngram_embedding=False, vocab_size=512).save_pretrained(tmp_path / "vanilla")
    out = ("--output", tmp_path / "results")
    for options, message in (
        (("--config", chat_model, "--text", short), r"short\.txt: .*too short"),
        (("--config", tmp_path / "small", "--tokenizer", chat_model, "--text", book), "`vocab_size`"),
        (("--config", tmp_path / "vanilla", "--tokenizer", chat_model), "`use_ngram_embedding`"),
        (("--config", tmp_path / "small", "--model", chat_model), "`--config` .*small has other tables"),
        (("--model", tmp_path / "nowhere"), "`--model` .*nowhere is not a folder"),
        (("--text", book), "Give `--config`"),
        (("--config", chat_model, "--ratios", "30:33:0.1"), "leave out `--config`"),
        (("--config", chat_model, "--tokens", 0), "`--tokens`"),
        (("--ratios", "30.2:30.4:0.1"), "no integer"),
        (("--ratios", "30.9:31.1:0.1", "--tokenizer", chat_model, "--text", short), r"short\.txt: .*too short"),
    ):
        with pytest.raises(ValueError, match=message):
            run(*options, *out)
    assert not (tmp_path / "results").exists()
