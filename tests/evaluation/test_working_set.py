# SPDX-License-Identifier: Apache-2.0
"""The working set of the n-gram tables: counts and hit rates against plain loops, hot rows, the command."""

import json
import random
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from conftest import tiny_config
from drawn_figures import drawn_figures
from naive_ngram import naive_ngram_ids
from safetensors.torch import load_file
from tiny_chat import write_tiny_chat

from eval.ngrams import working_set
from eval.ngrams.cache_hits import NEVER, lru_hit_rates, previous_reads, stack_distances, static_hit_rates
from eval.ngrams.token_rows import row_bytes, token_rows
from modeling_longcat_lite import LongCatLiteConfig, ngram_row_ids, read_hot_rows
from training.data.local_text import documents, standard_library_files

EOS = 2
SIZES = [1, 2, 3, 7, 20, 500]


def stream(length: int, seed: int = 0) -> list[int]:
    """Tokens of a small vocabulary with ends of documents, in phrases that come back."""
    draw = random.Random(seed)
    phrases = [[draw.randrange(3, 40) for _ in range(draw.randrange(1, 6))] for _ in range(30)] + [[EOS]]
    tokens: list[int] = []
    while len(tokens) < length:
        tokens += draw.choice(phrases)
    return tokens[:length]


def plain_lru(keys: list, size: int) -> list[bool]:
    """Whether each read hits a least-recently-used cache."""
    cache: OrderedDict = OrderedDict()
    hits = []
    for key in keys:
        hits.append(key in cache)
        cache[key] = None
        cache.move_to_end(key)
        if len(cache) > size:
            cache.popitem(last=False)
    return hits


def plain_static(first: list[int], second: list[int], size: int) -> float:
    """Share of `second` among the `size` most frequent of `first`."""
    kept = sorted(Counter(first).items(), key=lambda item: (-item[1], item[0]))[:size]
    return sum(key in dict(kept) for key in second) / len(second)


def naive_rows(config: LongCatLiteConfig, tokens: list[int]) -> list[list[int]]:
    """Rows `[token][table]` by the definition."""
    columns = naive_ngram_ids(
        tokens, config.subtable_sizes, config.ngram_base_vocab_size, config.max_ngram_order, {EOS}
    )
    return [list(row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("config", [tiny_config(), LongCatLiteConfig()], ids=["tiny", "released"])
def test_rows_of_the_definition(config):
    tokens = stream(300)
    assert token_rows(config, np.array(tokens)).tolist() == naive_rows(config, tokens)
    batch = ngram_row_ids(config, torch.tensor([tokens[:100], tokens[100:200]]))
    assert batch.shape == (12, 2, 100) and batch.dtype == torch.int64
    assert batch[:, 1].T.tolist() == naive_rows(config, tokens[100:200])


def test_counts_against_plain_python():
    config, tokens = tiny_config(), stream(2300)
    measured = working_set.measure(config, np.array(naive_rows(config, tokens)), SIZES)
    assert list(measured) == ["2-grams", "3-grams", "4-grams", "all"]
    rows = naive_rows(config, tokens)
    for name, tables in {
        "2-grams": range(4),
        "3-grams": range(4, 8),
        "4-grams": range(8, 12),
        "all": range(12),
    }.items():
        part = measured[name]
        reads = [[(table, row[table]) for table in tables] for row in rows]

        def distinct(begin, end, reads=reads):
            return len({read for row in reads[begin:end] for read in row})

        flat = [read for row in reads for read in row]
        assert part["tables"] == len(tables) and part["reads"] == len(flat)
        assert part["distinct_rows"] == distinct(0, 2300)
        assert part["repeated_share"] == pytest.approx(1 - distinct(0, 2300) / len(flat))
        assert part["distinct_rows_by_tokens"] == [distinct(0, n) for n in (100, 200, 500, 1000, 2000, 2300)]
        assert part["distinct_rows_per_thousand_tokens"] == (distinct(0, 1000) + distinct(1000, 2000)) / 2
        assert part["new_rows_of_last_thousand_tokens"] == distinct(0, 2300) - distinct(0, 1300)
        half = 1150 * len(tables)
        hits = [plain_lru(flat, size) for size in SIZES]
        assert part["lru_hit_rate"] == pytest.approx([sum(h) / len(h) for h in hits])
        assert part["lru_hit_rate_second_half"] == pytest.approx([sum(h[half:]) / len(h[half:]) for h in hits])
        static = [plain_static(flat[:half], flat[half:], size) for size in SIZES]
        assert part["static_hit_rate_second_half"] == pytest.approx(static)
        seen = set(flat[:half])
        assert part["second_half_seen_in_first"] == pytest.approx(
            sum(r in seen for r in flat[half:]) / (len(flat) - half)
        )


@pytest.mark.parametrize(("length", "distinct"), [(1, 1), (2, 1), (7, 3), (64, 10), (65, 65), (1000, 60), (1025, 400)])
def test_hit_rates_against_plain_caches(length, distinct):
    draw = random.Random(length)
    keys = [draw.randrange(distinct) ** 2 for _ in range(length)]
    previous = previous_reads(np.array(keys))
    seen: dict[int, int] = {}
    for i, key in enumerate(keys):
        assert previous[i] == seen.get(key, NEVER)
        seen[key] = i
    distances = stack_distances(previous)
    for size, rate in zip(SIZES, lru_hit_rates(distances, SIZES), strict=True):
        assert rate == pytest.approx(sum(plain_lru(keys, size)) / length)
    if length > 1:
        first, second = keys[: length // 2], keys[length // 2 :]
        expected = [plain_static(first, second, size) for size in SIZES]
        assert static_hit_rates(np.array(first), np.array(second), SIZES) == pytest.approx(expected)


def run(*arguments) -> None:
    working_set.main(working_set.make_parser().parse_args([str(argument) for argument in arguments]))


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


def test_the_command_writes_its_report(tmp_path, chat_model, book):
    options = ["--model", chat_model, "--tokenizer", chat_model, "--text", book, "--tokens", 1500]
    options += ["--cache-sizes", 100, 10, "--hot-row-count", 7]
    with drawn_figures() as figures:
        run(*options, "--output", tmp_path / "once", "--hot-rows", tmp_path / "hot.safetensors")
    written = (tmp_path / "once" / "working_set.json").read_text()
    results = json.loads(written)
    config = LongCatLiteConfig.from_pretrained(chat_model)
    assert results["text"]["tokens"] == 1500 and results["text"]["first"] == "book.txt"
    assert results["cache_rows"] == [10, 100]
    assert results["model"]["row_bytes"] == row_bytes(config) == 4 * config.subtable_width
    text = (tmp_path / "once" / "working_set.md").read_text()
    assert f"{results['orders']['all']['distinct_rows']:,}" in text
    assert f"{100 * results['orders']['3-grams']['lru_hit_rate'][1]:.1f} %" in text
    assert "smaller vocabulary" not in text
    growth, caches = figures["working_set.png"].panels
    assert (growth.x_label, growth.x_scale, caches.y_label) == ("tokens read", "log", "hit rate, %")
    for name, part in results["orders"].items():
        assert growth.series(name).x == results["curve_tokens"]
        assert growth.series(name).y == part["distinct_rows_by_tokens"]
        for label, key in (("LRU", "lru_hit_rate_second_half"), ("frequent", "static_hit_rate_second_half")):
            assert caches.series(f"{name}, {label}").x == [10, 100]
            assert caches.series(f"{name}, {label}").y == pytest.approx([100 * rate for rate in part[key]])
    assert str(tmp_path) not in written + text and str(chat_model) not in written + text
    assert [len(table) for table in read_hot_rows(tmp_path / "hot.safetensors", config)] == [7] * 12

    run(*options, "--output", tmp_path / "twice", "--hot-rows", tmp_path / "hot again.safetensors")
    again = json.loads((tmp_path / "twice" / "working_set.json").read_text())
    assert {**again, "date": ""} == {**results, "date": ""}
    hot, hot_again = load_file(tmp_path / "hot.safetensors"), load_file(tmp_path / "hot again.safetensors")
    assert all(torch.equal(hot[name], hot_again[name]) for name in hot)


def test_the_released_model_without_weights_on_the_default_text(tmp_path, chat_model):
    run("--tokenizer", chat_model, "--tokens", 3000, "--output", tmp_path)
    results = json.loads((tmp_path / "working_set.json").read_text())
    assert results["model"]["row_bytes"] == 512
    assert results["text"]["tokens"] == 3000
    assert results["text"]["first"] == "__future__.py"
    assert "smaller vocabulary" in (tmp_path / "working_set.md").read_text()


def test_the_default_text_is_sorted_and_whole():
    files = standard_library_files()
    assert len(files) > 200
    assert not any("site-packages" in path.parts for path in files)
    for (name, text), (again, same) in zip(documents(), documents(), strict=False):
        assert (name, text) == (again, same)
        if name > "abc.py":
            break
    else:
        pytest.fail("the standard library was read to its end before `abc.py`")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"short", "too short"), (b" \n", "no text"), (b"\xff\xfe", "UTF-8"), (None, "no such file")],
)
def test_a_text_that_cannot_be_measured_is_named(tmp_path, chat_model, content, message):
    path = tmp_path / "note.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"note\.txt: .*{message}"):
        run("--model", chat_model, "--tokenizer", chat_model, "--text", path, "--output", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_what_does_not_fit_is_named(tmp_path, chat_model, book):
    for folder, overrides in (("small", {}), ("vanilla", {"use_ngram_embedding": False, "vocab_size": 512})):
        tiny_config(**overrides).save_pretrained(tmp_path / folder)
    with pytest.raises(ValueError, match="`vocab_size`"):
        run("--model", tmp_path / "small", "--tokenizer", chat_model, "--text", book)
    with pytest.raises(ValueError, match="`use_ngram_embedding`"):
        run("--model", tmp_path / "vanilla", "--tokenizer", chat_model, "--text", book)
    with pytest.raises(ValueError, match="--cache-sizes"):
        run("--tokenizer", chat_model, "--text", book, "--cache-sizes", 100, 0)
