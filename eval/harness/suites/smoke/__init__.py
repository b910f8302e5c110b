# SPDX-License-Identifier: Apache-2.0
"""The smoke suite: what a model learned of Python's documentation, without a download."""

from pathlib import Path

from eval.checkpoints.load import ModelFolder
from eval.harness.charts import draw_scores
from eval.harness.suite import Benchmark, Suite, write_tasks
from eval.harness.suites.smoke.rows import smoke_rows

SOURCE = "Python's documentation"


def prepare(folder: Path, model: ModelFolder, seed: int) -> str:
    """Write the tasks; the prompts of the tool tasks are rendered with the model's chat template."""
    model.check_chat_template()
    return write_tasks(folder, Path(__file__).parent, smoke_rows(model.tokenizer, seed))


SUITE = Suite(
    name="smoke",
    title="Smoke suite",
    about=(
        "Made from Python's documentation: `core` are builtins, which the demo repeats in training; `held_out` it "
        "never sees. `text`: bits per byte of answers. `choice`: the documented answer or one of three others, by "
        "log-likelihood. `answer`: written, word for word. `tool_choice`: the right call or one of three wrong ones, "
        "after the declared tools. `tool_call`: written, and read with `parse_tool_calls`."
    ),
    benchmarks=(
        Benchmark("pydoc_text_core", "pydoc_text_core", "bits_per_byte", SOURCE),
        Benchmark("pydoc_text_held_out", "pydoc_text_held_out", "bits_per_byte", SOURCE),
        Benchmark("pydoc_choice_core", "pydoc_choice_core", "acc", SOURCE, as_chat=True, chance=0.25),
        Benchmark("pydoc_choice_held_out", "pydoc_choice_held_out", "acc", SOURCE, as_chat=True, chance=0.25),
        Benchmark("pydoc_answer_core", "pydoc_answer_core", "exact_match", SOURCE, as_chat=True),
        Benchmark("pydoc_tool_choice", "pydoc_tool_choice", "acc", SOURCE, chance=0.25),
        Benchmark("pydoc_tool_call", "pydoc_tool_call", "right_call", SOURCE),
    ),
    draw=draw_scores,
    prepare=prepare,
)

__all__ = ["SUITE", "prepare"]
