# SPDX-License-Identifier: Apache-2.0
"""Table 1 of the paper (arXiv 2601.21204, section 6): the model after 1.3 trillion tokens, before fine-tuning.

The paper does not give its prompts. Shots are the usual ones of each benchmark. Two benchmarks of code are measured by
other programs, whose commands follow their manuals of 2026.
"""

from pathlib import Path

from eval.harness.charts import draw_published
from eval.harness.suite import Benchmark, ExternalBenchmark, Suite, read_published

PUBLISHED = read_published(Path(__file__).with_name("published.yaml"))["base"]
MULTIPL_E = ExternalBenchmark(
    "multipl_e",
    "https://github.com/bigcode-project/bigcode-evaluation-harness",
    "",
    (
        "accelerate launch main.py --model {model} --trust_remote_code --precision bf16 --tasks multiple-py "
        "--max_length_generation 1024 --do_sample False --n_samples 1 --generation_only --save_generations "
        "--save_generations_path generations.json",
        "docker run -v $PWD/generations_multiple-py.json:/app/generations.json:ro "
        "ghcr.io/bigcode-project/evaluation-harness-multiple python3 main.py --model {name} --tasks multiple-py "
        "--load_generations_path /app/generations.json --allow_code_execution --n_samples 1",
    ),
    server=False,
    also="the same for each of its languages: multiple-js, multiple-java, ...",
)
BIGCODEBENCH = ExternalBenchmark(
    "bigcodebench",
    "https://github.com/bigcode-project/bigcodebench",
    "bigcodebench.generate",
    (
        "bigcodebench.generate --model {model} --split complete --subset full --greedy --backend hf "
        "--trust_remote_code",
        "docker run -v $PWD:/app bigcodebench/bigcodebench-evaluate:latest --split complete --subset full "
        "--samples SAMPLES.jsonl",
    ),
    server=False,
)
BENCHMARKS = (
    Benchmark("mmlu", "mmlu", "acc", "cais/mmlu", num_fewshot=5, chance=0.25),
    Benchmark("mmlu_pro", "mmlu_pro", "exact_match", "TIGER-Lab/MMLU-Pro", "custom-extract", 5),
    Benchmark("ceval", "ceval-valid", "acc", "ceval/ceval-exam", num_fewshot=5, chance=0.25),
    Benchmark("cmmlu", "cmmlu", "acc", "haonan-li/cmmlu", num_fewshot=5, chance=0.25),
    Benchmark("bbh", "bbh_cot_fewshot", "exact_match", "SaylorTwift/bbh", "get-answer", 3),
    Benchmark("gpqa", "gpqa_main_n_shot", "acc", "Idavidrein/gpqa", num_fewshot=5, chance=0.25, gated=True),
    Benchmark("drop", "drop", "f1", "EleutherAI/drop", num_fewshot=3),
    Benchmark("gsm8k", "gsm8k", "exact_match", "openai/gsm8k", "flexible-extract", 5),
    Benchmark("humaneval_plus", "humaneval_plus", "pass@1", "evalplus/humanevalplus", "create_test", runs_code=True),
    MULTIPL_E,
    BIGCODEBENCH,
)
SUITE = Suite("base", "Base benchmarks", PUBLISHED.about, BENCHMARKS, draw=draw_published, published=PUBLISHED)

__all__ = ["SUITE"]
