# SPDX-License-Identifier: Apache-2.0
"""2-gram collisions against the size of a table: the spike at integer multiples of the vocabulary.

    python -m eval.ngrams.report --ratios 30.0:33.0:0.1

This repeats figure 3b of arXiv 2601.21204 (section 3.2.2), where 100 training sequences were hashed into tables of 30
to 33 vocabularies of 128k tokens. A collision is defined as in `eval/ngrams/collisions.py`. The 2-gram (a, b) has the
id `b + a V mod rows`. With `rows = m V + d` and a small d,

    b + a V   and   (b + d) + (a + m) V     are the same row,

so all tokens a, a + m, a + 2 m, ... share the rows of almost the same b. With d = 0 only `a mod m` remains of a.

Shapes: T tokens, V vocabulary, G distinct n-grams of an order, here of order 2.
"""

import math
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track

from eval.checkpoints.load import ModelFolder
from eval.ngrams.collisions import DistinctNgrams, count_collisions, distinct_ngrams
from eval.ngrams.presentation import COLOURS
from eval.ngrams.token_rows import describe, read_tokens, token_rows
from eval.reports.files import format_table, markdown_table
from eval.reports.machine import describe_machine
from modeling_longcat_lite import LongCatLiteConfig
from modeling_longcat_lite.configuration_longcat_lite import segment_ends
from modeling_longcat_lite.ngram_embedding import ngram_tokens
from tokenization.train_tokenizer import train_tokenizer
from training.data.documentation import documentation_conversations
from training.data.local_text import documents

NAME = "collision_ratios"
VOCABULARY = 4096
DISTANCES = [0.0, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1]  # from the first integer, in vocabularies


def parse_ratios(text: str) -> list[float]:
    """`30.0:33.0:0.1` to 30.0, 30.1, ... 33.0.

    Raises:
        `ValueError`: naming `--ratios`.
    """
    try:
        first, last, step = map(float, text.split(":"))
    except ValueError as error:
        raise ValueError(f"`--ratios` is {text!r}; write FIRST:LAST:STEP, as in `30.0:33.0:0.1`") from error
    if not (math.isfinite(first + last + step) and 0 < first <= last and step > 0):
        raise ValueError(f"`--ratios` is {text!r}; ratios must be above zero and increase")
    return [round(first + number * step, 10) for number in range(round((last - first) / step) + 1)]


def documentation_tokenizer(size: int):
    """A tokenizer of `size` tokens trained on the documentation of the running Python."""
    texts = (text for conversation in documentation_conversations() for turn in conversation.turns for text in turn)
    return train_tokenizer(texts, size)


def bigram_config(ratio: float, vocab_size: int, end: int) -> LongCatLiteConfig:
    """A config with 2-gram tables only, each with about `ratio` times `vocab_size` rows."""
    return LongCatLiteConfig(
        vocab_size=vocab_size, ngram_vocab_size_ratio=ratio, emb_neighbor_num=2, eos_token_id=end, pad_token_id=None
    )


def collisions_at(config: LongCatLiteConfig, tokens: np.ndarray, ngrams: DistinctNgrams) -> dict:
    """Collisions in each table of `config`, and in a table of exactly ratio times vocabulary rows."""
    rows, sizes = token_rows(config, tokens), config.subtable_sizes
    tables = [count_collisions(rows[ngrams.first, table], size) for table, size in enumerate(sizes)]
    vocabulary = config.ngram_base_vocab_size
    bare = int(config.ngram_vocab_size_ratio * vocabulary)
    far, near = ngrams.tokens.T  # [G] each
    return {
        "ratio": config.ngram_vocab_size_ratio,
        "rows": sizes,
        "collisions": [table["collisions"] for table in tables],
        "expected": [table["expected_collisions"] for table in tables],
        "rows_without_offset": bare,
        "collisions_without_offset": count_collisions((near + far * vocabulary) % bare, bare)["collisions"],
    }


def spikes(points: list[dict]) -> list[dict]:
    """Each table at each integer ratio, compared with the mean of the adjacent ratios that are not integers."""
    found = []
    for place, point in enumerate(points):
        adjacent = [points[other] for other in (place - 1, place + 1) if 0 <= other < len(points)]
        adjacent = [other for other in adjacent if other["ratio"] % 1]
        if point["ratio"] % 1 or not adjacent:
            continue
        for table, count in enumerate(point["collisions"]):
            neighbours = mean(other["collisions"][table] for other in adjacent)
            spike = {"ratio": point["ratio"], "table": table, "collisions": count}
            found.append({**spike, "neighbours": neighbours, "factor": count / neighbours})
    return found


def measure(ratios: str, tokenizer_name: str | None, text: list[Path] | None, tokens: int) -> dict:
    """Reads the text once and hashes it at every ratio.

    Raises:
        `ValueError`: naming the option or the file; `ratios` has no integer with an adjacent ratio.
    """
    sweep = parse_ratios(ratios)
    if all(ratio % 1 for ratio in sweep) or len(sweep) < 2:
        raise ValueError(f"`--ratios` is {ratios!r}, which has no integer with an adjacent ratio to compare")
    given = ModelFolder(None, tokenizer_name)  # of the released configuration, whose vocabulary is large
    tokenizer = given.tokenizer if tokenizer_name else documentation_tokenizer(VOCABULARY)
    size, end = len(tokenizer), tokenizer.eos_token_id
    config = bigram_config(sweep[0], size, end)
    stream = read_tokens(tokenizer, documents(text), segment_ends(config), tokens)
    (ngrams,) = distinct_ngrams(ngram_tokens(config, torch.from_numpy(stream.tokens)[None])[0].numpy())
    points = [
        collisions_at(bigram_config(ratio, size, end), stream.tokens, ngrams)
        for ratio in track(sweep, description="ratios", transient=True)
    ]
    whole = next(ratio for ratio in sweep if not ratio % 1)
    near = [collisions_at(bigram_config(whole + away, size, end), stream.tokens, ngrams) for away in DISTANCES]
    found = spikes(points)
    shown_name = tokenizer_name or "trained on Python's documentation"
    about = describe(config, tokenizer, stream, None, shown_name, bool(text))
    return {
        "machine": describe_machine(),
        "ratios": ratios,
        "tokenizer": about["tokenizer"],
        "text": about["text"],
        "vocab_size": size,
        "ngrams": len(ngrams.first),
        "points": points,
        "distances": [{"distance": away, **point} for away, point in zip(DISTANCES, near, strict=True)],
        "spikes": found,
        "smallest_spike": min(spike["factor"] for spike in found),
    }


def as_markdown(results: dict, name: str) -> str:
    """Spikes, their width, and every ratio; the chart is `{name}.png`."""
    machine, text, tokenizer = results["machine"], results["text"], results["tokenizer"]
    tables = range(len(results["points"][0]["rows"]))
    spiked = (
        ("ratio", "{ratio:g}, table {table}"),
        ("collisions", "{collisions:,}"),
        ("at adjacent ratios", "{neighbours:,.0f}"),
        ("factor", "{factor:.2f}"),
    )

    def line(label: str, point: dict) -> list[str]:
        counts = [*point["collisions"], point["collisions_without_offset"]]
        return [label, *(f"{count:,}" for count in counts), f"{mean(point['expected']):,.0f}"]

    header = [*(f"table {table}" for table in tables), "ratio * V rows", "at random"]
    return "\n".join(
        [
            "# 2-gram collisions by table size\n",
            f"{machine['date']}, Python {machine['python']}. These are counts, not timings, of",
            f"`python -m eval.ngrams.report --ratios {results['ratios']}`.\n",
            f"Text: {text['source']}, {text['tokens']:,} tokens, {results['ngrams']:,} distinct 2-grams. Tokenizer: "
            f"{tokenizer['name']}, V = {results['vocab_size']:,} tokens (vocabulary {tokenizer['digest']}).\n",
            "A collision is a distinct 2-gram beyond the first in its row: the number of distinct 2-grams in the text",
            "minus the number of rows that they occupy. Table i has `int(ratio * V + 2 i + 1)` rows, as in the model;",
            "the column `ratio * V rows` has no such offset. The paper (arXiv 2601.21204, section 3.2.2, figure 3b)",
            "counts over 100 sequences, and does not say whether it adds an offset.\n",
            f"![Collisions by ratio]({name}.png)\n",
            f"At an integer ratio there are at least **{results['smallest_spike']:.2f}** times as many collisions as",
            "at the adjacent ratios.\n",
            format_table(spiked, results["spikes"]),
            f"How wide the spike is: collisions by the distance from ratio {results['distances'][0]['ratio']:g}, in "
            "vocabularies:\n",
            markdown_table(
                ["distance", *header], [line(f"{near['distance']:g}", near) for near in results["distances"]]
            ),
            "All ratios. Other simple fractions, above all halves, also have more collisions: with",
            "`rows = (m + 1/2) V + d`, tokens that are 2 m + 1 apart share almost the same rows.\n",
            markdown_table(["ratio", *header], [line(f"{point['ratio']:g}", point) for point in results["points"]]),
        ]
    )


def draw(results: dict) -> Figure:
    """Collisions against the ratio, one line per table, integers marked."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    points = results["points"]
    ratios = [point["ratio"] for point in points]
    for table, size in enumerate(points[0]["rows"]):
        offset = size - points[0]["rows_without_offset"]
        counts = [point["collisions"][table] for point in points]
        axes.plot(ratios, counts, "o-", ms=3, color=COLOURS[table % len(COLOURS)], label=f"ratio * V + {offset} rows")
    bare = [point["collisions_without_offset"] for point in points]
    axes.plot(ratios, bare, "x:", ms=4, color="#999999", label="ratio * V rows")
    axes.plot(ratios, [mean(point["expected"]) for point in points], "k--", lw=1, label="at random")
    for ratio in sorted({spike["ratio"] for spike in results["spikes"]}):
        axes.axvspan(ratio - 0.02, ratio + 0.02, color="#cc3311", alpha=0.12)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel=f"table size / vocabulary of {results['vocab_size']:,}", ylabel="collisions")
    axes.set_title(
        f"2-gram collisions, {results['text']['tokens']:,} tokens: at least {results['smallest_spike']:.2f} times the "
        "neighbours at an integer"
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(axes.lines))
    return figure


__all__ = ["NAME", "as_markdown", "documentation_tokenizer", "draw", "measure", "parse_ratios"]
