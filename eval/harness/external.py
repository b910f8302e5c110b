# SPDX-License-Identifier: Apache-2.0
"""Benchmarks that have harnesses of their own: where those are, what they need, and the commands that run them.

Agents and code are measured in containers, by other programs, mostly against a server that speaks OpenAI's protocol.
Nothing of it is run from here; the commands follow the manuals of those programs as of 2026.
"""

from dataclasses import dataclass

SERVE = (
    "python -m sglang.launch_server --model-path {model} --served-model-name {name} --trust-remote-code --tp 2 --ep 2 "
    "--port 30000"
)
USER = "a model that plays the user, with its key (OPENAI_API_KEY)"


@dataclass(frozen=True)
class ExternalBenchmark:
    """A benchmark of another program.

    Args:
        name (`str`): As on the command line and in `published_results.yaml`.
        repository (`str`): Where the program is.
        program (`str`): Its command, by which one sees whether it is installed; empty if it runs in a checkout.
        commands (`tuple[str, ...]`): What to run, with `{model}`, `{name}` and `{server}` to be filled in.
        docker (`bool`): Whether it runs containers.
        server (`bool`): Whether it asks a server of the model.
        also (`str`): What it needs besides, in words.
    """

    name: str
    repository: str
    program: str
    commands: tuple[str, ...]
    docker: bool = True
    server: bool = True
    also: str = ""

    def filled_commands(self, model: str, name: str, server: str) -> list[str]:
        """The commands for one model, with that of its server where one is asked."""
        templates = (SERVE, *self.commands) if self.server else self.commands
        # Braces of JSON and of shells stay: only these three names are replaced.
        values = {"{model}": model, "{name}": name, "{server}": server}
        filled = []
        for template in templates:
            for key, value in values.items():
                template = template.replace(key, value)
            filled.append(template)
        return filled


def tau2(domain: str) -> ExternalBenchmark:
    """A domain of tau2-bench; the published numbers are taken as means over trials."""
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
    """A subset of SWE-bench: patches by mini-SWE-agent, scored by the benchmark's own program."""
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
EXTERNAL: dict[str, tuple[ExternalBenchmark, ...]] = {
    "base": (MULTIPL_E, BIGCODEBENCH),
    "chat": (
        tau2("airline"),
        tau2("retail"),
        tau2("telecom"),
        VITABENCH,
        swe_bench("swe_bench", "verified", "princeton-nlp/SWE-bench_Verified"),
        TERMINAL_BENCH,
        swe_bench("swe_bench_multilingual", "multilingual", "SWE-bench/SWE-bench_Multilingual"),
        PRDBENCH,
    ),
}

__all__ = ["EXTERNAL", "ExternalBenchmark"]
