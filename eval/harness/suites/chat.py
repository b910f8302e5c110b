# SPDX-License-Identifier: Apache-2.0
"""Table 2 of the paper (arXiv 2601.21204, section 6): the model after fine-tuning, asked through its chat template.

The paper does not give its prompts. Shots are the usual ones of each benchmark. Agents are measured by other programs,
whose commands follow their manuals of 2026.
"""

from pathlib import Path

from eval.harness.charts import draw_published
from eval.harness.suite import Benchmark, ExternalBenchmark, Suite, read_published

USER = "a model that plays the user, with its key (OPENAI_API_KEY)"
PUBLISHED = read_published(Path(__file__).with_name("published.yaml"))["chat"]


def tau2(domain: str) -> ExternalBenchmark:
    """A domain of tau2-bench, whose score is a mean over trials."""
    return ExternalBenchmark(
        f"tau2_{domain}",
        "https://github.com/sierra-research/tau2-bench",
        "tau2",
        (
            f"tau2 run --domain {domain} --agent-llm openai/{{name}} --agent-llm-args "
            """'{"api_base": "{server}", "api_key": "none"}' --user-llm gpt-4.1 --num-trials 4""",
        ),
        docker=False,
        also=USER,
    )


def swe_bench(name: str, subset: str, dataset: str) -> ExternalBenchmark:
    """A subset of SWE-bench: mini-SWE-agent writes the patches, the benchmark's own program scores them."""
    return ExternalBenchmark(
        name,
        "https://github.com/SWE-bench/SWE-bench, https://github.com/SWE-agent/mini-swe-agent",
        "mini-extra",
        (
            f"MSWEA_COST_TRACKING=ignore_errors mini-extra swebench --subset {subset} --split test "
            f"--model openai/{{name}} -c swebench.yaml -c model.model_kwargs.api_base={{server}} --output {name}",
            f"python -m swebench.harness.run_evaluation --dataset_name {dataset} "
            f"--predictions_path {name}/preds.json --max_workers 8 --run_id {{name}}",
        ),
    )


VITABENCH = ExternalBenchmark(
    "vitabench",
    "https://github.com/meituan-longcat/vitabench",
    "vita",
    tuple(
        f"vita run --domain {domain} --agent-llm {{name}} --user-llm USER_MODEL --evaluator-llm JUDGE_MODEL"
        for domain in ("delivery,instore,ota", "delivery", "instore", "ota")
    ),
    docker=False,
    also="a models.yaml (VITA_MODEL_CONFIG_PATH) with {server}/chat/completions as the base_url of {name}, and models "
    "that play the user and the judge",
)
TERMINAL_BENCH = ExternalBenchmark(
    "terminal_bench",
    "https://github.com/laude-institute/terminal-bench",
    "tb",
    (
        "tb run --dataset terminal-bench-core==0.1.1 --agent terminus-2 --model openai/{name} "
        "--agent-kwarg api_base={server}",
    ),
)
PRDBENCH = ExternalBenchmark(
    "prdbench",
    "https://github.com/fulingyue/PRDBench",
    "",
    ("bash Evaluation/Evaluation_infer.sh {name} ROOT_PATH PORT PYTHON_PORT FILE_PORT SYSTEM_PORT SOURCE_DIR",),
    docker=False,
    also="{server} as the api_base of {name} in its agent's config.py, conda, and a model that judges",
)
BENCHMARKS = (
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
    tau2("airline"),
    tau2("retail"),
    tau2("telecom"),
    VITABENCH,
    swe_bench("swe_bench", "verified", "princeton-nlp/SWE-bench_Verified"),
    TERMINAL_BENCH,
    swe_bench("swe_bench_multilingual", "multilingual", "SWE-bench/SWE-bench_Multilingual"),
    PRDBENCH,
)
SUITE = Suite("chat", "Chat benchmarks", PUBLISHED.about, BENCHMARKS, draw=draw_published, published=PUBLISHED)

__all__ = ["SUITE"]
