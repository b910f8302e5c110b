# SPDX-License-Identifier: Apache-2.0
"""The published numbers are those of the paper's tables, as printed."""

from eval.harness.suite import suites

# Vanilla, Lite. Source: arXiv 2601.21204v2, Table 1.
TABLE_1 = """
MMLU 64.81 64.01 | MMLU-Pro 34.43 35.89 | C-Eval 64.09 67.21 | CMMLU 67.08 69.55 | BBH 38.54 43.67 | GPQA 25.37 29.66
DROP 47.92 52.43 | GSM8K 50.00 50.50 | HumanEval+ 28.66 31.10 | MultiPL-E 30.20 30.03 | BigCodeBench 33.42 36.05
"""
# Kimi-Linear, Qwen3-Next, Gemini, Lite; * = publicly reported, - = none. Source: the same, Table 2.
TABLE_2 = """
Tau2 Airline 44.00 45.50* 35.00 58.00 | Tau2 Retail 18.86 57.30* 37.50 73.10 | Tau2 Telecom 15.68 13.20* 21.93 72.80
VitaBench - 5.80 4.50 7.00 | SWE-Bench 32.80 37.60 41.30* 54.40 | TerminalBench 20.00 15.19 20.00 33.75
SWE-Bench Multilingual 37.20 31.30 - 38.10 | PRDBench - 15.36 - 39.63 | GPQA-Diamond 69.89 74.33 70.20* 66.78
MMLU 79.91 89.28 84.68 85.52 | MMLU-Pro 67.22 82.93 78.95 78.29 | C-Eval 78.48 90.91 75.16 86.55
CMMLU 76.26 86.50 72.06 82.48 | MATH500 94.20 98.00 95.20 96.80 | AIME24 70.52 81.35 63.33 72.19
AIME25 59.58 68.44 50.10* 63.23
"""
MODELS = {
    "base": ("Vanilla", "LongCat-Flash-Lite"),
    "chat": ("Kimi-Linear-48B-A3B", "Qwen3-Next-80B-A3B", "Gemini 2.5 Flash-Lite", "LongCat-Flash-Lite"),
}


def printed(suite: str) -> dict[str, tuple[str, ...]]:
    """The table of `suite`, as `published.yaml` has it, in the words of the paper."""
    published = suites()[suite].published
    return {
        published.names[benchmark]: tuple(scores.get(model, "-") for model in MODELS[suite])
        for benchmark, scores in published.scores.items()
    }


def expected(table: str, columns: int) -> dict[str, tuple[str, ...]]:
    rows = [entry.split() for line in table.strip().splitlines() for entry in line.split("|")]
    return {" ".join(row[:-columns]): tuple(row[-columns:]) for row in rows}


def test_table_1():
    assert printed("base") == expected(TABLE_1, 2)


def test_table_2():
    assert printed("chat") == expected(TABLE_2, 4)


def test_every_number_has_its_source_and_every_benchmark_a_way_to_be_measured():
    tables = [(suite, suite.published) for suite in suites().values() if suite.published]
    for suite, published in tables:
        assert {benchmark.name for benchmark in suite.benchmarks} == set(published.scores)
        assert all(published.models[0] in scores for scores in published.scores.values())
        assert published.source in suite.about
    assert [published.source[-7:] for _, published in tables] == ["Table 1", "Table 2"]
