# SPDX-License-Identifier: Apache-2.0
"""Which benchmarks make up which suite, and what of lm-eval measures each.

`base` and `chat` are Tables 1 and 2 of the paper (section 6, arXiv 2601.21204), under the keys of
`published_results.yaml`. The paper does not give its prompts; the shots below are those usual for the benchmark, so
scores are comparable with the published ones, not equal to them. `smoke` is made from Python's documentation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from eval.harness.external import EXTERNAL, ExternalBenchmark


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that lm-eval runs.

    Args:
        name (`str`): As on the command line and in `published_results.yaml`.
        task (`str`): Task or group of lm-eval.
        metric (`str`): The metric that stands for the benchmark in tables.
        dataset (`str`): Repository of its data on the Hub; what it is made from, in `smoke`.
        filter (`str`): The filter of lm-eval behind which that metric is taken.
        num_fewshot (`int`, *optional*): Examples before the question; those of the task if not given.
        as_chat (`bool`): Whether prompts are rendered with the chat template.
        chance (`float`, *optional*): The metric of guessing.
        gated (`bool`): Whether the data is given out only to those who ask for it on its page.
        runs_code (`bool`): Whether scoring executes what the model wrote.
    """

    name: str
    task: str
    metric: str
    dataset: str
    filter: str = "none"
    num_fewshot: int | None = None
    as_chat: bool = False
    chance: float | None = None
    gated: bool = False
    runs_code: bool = False


BASE = (
    Benchmark("mmlu", "mmlu", "acc", "cais/mmlu", num_fewshot=5, chance=0.25),
    Benchmark("mmlu_pro", "mmlu_pro", "exact_match", "TIGER-Lab/MMLU-Pro", "custom-extract", 5),
    Benchmark("ceval", "ceval-valid", "acc", "ceval/ceval-exam", num_fewshot=5, chance=0.25),
    Benchmark("cmmlu", "cmmlu", "acc", "haonan-li/cmmlu", num_fewshot=5, chance=0.25),
    Benchmark("bbh", "bbh_cot_fewshot", "exact_match", "SaylorTwift/bbh", "get-answer", 3),
    Benchmark("gpqa", "gpqa_main_n_shot", "acc", "Idavidrein/gpqa", num_fewshot=5, chance=0.25, gated=True),
    Benchmark("drop", "drop", "f1", "EleutherAI/drop", num_fewshot=3),
    Benchmark("gsm8k", "gsm8k", "exact_match", "openai/gsm8k", "flexible-extract", 5),
    Benchmark("humaneval_plus", "humaneval_plus", "pass@1", "evalplus/humanevalplus", "create_test", runs_code=True),
)
CHAT = (
    Benchmark("math500", "minerva_math500", "math_verify", "HuggingFaceH4/MATH-500", num_fewshot=4, as_chat=True),
    Benchmark("aime24", "aime24", "exact_match", "Maxwell-Jia/AIME_2024", as_chat=True),
    Benchmark("aime25", "aime25", "exact_match", "math-ai/aime25", as_chat=True),
    Benchmark(
        "gpqa_diamond",
        "gpqa_diamond_cot_zeroshot",
        "exact_match",
        "Idavidrein/gpqa",
        "flexible-extract",
        as_chat=True,
        chance=0.25,
        gated=True,
    ),
    Benchmark("mmlu", "mmlu_generative", "exact_match", "cais/mmlu", "get_response", 5, as_chat=True, chance=0.25),
    Benchmark("mmlu_pro", "mmlu_pro", "exact_match", "TIGER-Lab/MMLU-Pro", "custom-extract", 5, as_chat=True),
    Benchmark("ceval", "ceval-valid", "acc", "ceval/ceval-exam", num_fewshot=5, as_chat=True, chance=0.25),
    Benchmark("cmmlu", "cmmlu", "acc", "haonan-li/cmmlu", num_fewshot=5, as_chat=True, chance=0.25),
)
PYDOC = "Python's documentation"
SMOKE = (
    Benchmark("pydoc_text_core", "pydoc_text_core", "bits_per_byte", PYDOC),
    Benchmark("pydoc_text_held_out", "pydoc_text_held_out", "bits_per_byte", PYDOC),
    Benchmark("pydoc_choice_core", "pydoc_choice_core", "acc", PYDOC, as_chat=True, chance=0.25),
    Benchmark("pydoc_choice_held_out", "pydoc_choice_held_out", "acc", PYDOC, as_chat=True, chance=0.25),
    Benchmark("pydoc_answer_core", "pydoc_answer_core", "exact_match", PYDOC, as_chat=True),
    Benchmark("pydoc_tool_choice", "pydoc_tool_choice", "acc", PYDOC, chance=0.25),
    Benchmark("pydoc_tool_call", "pydoc_tool_call", "right_call", PYDOC),
)
SUITES: dict[str, tuple[Benchmark | ExternalBenchmark, ...]] = {
    "base": (*BASE, *EXTERNAL["base"]),
    "chat": (*CHAT, *EXTERNAL["chat"]),
    "smoke": SMOKE,
}


def chosen_benchmarks(suite: str, names: Sequence[str] | None = None) -> list[Benchmark | ExternalBenchmark]:
    """The benchmarks of `suite`, or those of them that `names` lists, in the order of the suite.

    Raises:
        `ValueError`: naming a suite or benchmark that there is not, and those that there are.
    """
    if suite not in SUITES:
        raise ValueError(f"`--suite` is {suite!r}: choose one of {', '.join(SUITES)}")
    known = [benchmark.name for benchmark in SUITES[suite]]
    for name in names or ():
        if name not in known:
            raise ValueError(f"`--tasks` has {name!r}, which is not in suite {suite}: choose from {', '.join(known)}")
    return [benchmark for benchmark in SUITES[suite] if not names or benchmark.name in names]


__all__ = ["SUITES", "Benchmark", "chosen_benchmarks"]
