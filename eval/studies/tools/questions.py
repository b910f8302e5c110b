# SPDX-License-Identifier: Apache-2.0
"""Questions to a model that was trained for two tools: are its calls and answers right?

Every question goes through `tokenization.tool_loop.run_tools`, so that the tools run with the arguments that the model
wrote. A call is right if its name and all its arguments are, and there is no other call.
"""

import json
import random
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track
from transformers import AutoTokenizer

from eval.reports.files import markdown_table, write_report
from eval.reports.machine import describe_machine
from modeling_longcat_lite import LongCatLiteForCausalLM
from tokenization.tool_loop import run_tools
from training.data.tool_conversations import PLAIN_QUESTIONS, TOOLS, Exchange, add_exchange, lookup_exchange

DRAWN = 10  # questions that the report shows
QUESTIONS = 100  # half of them for each tool; the ten are drawn from them
GREEDY: dict[str, Any] = {"max_new_tokens": 96, "do_sample": False}


def held_out_questions(seed: int) -> list[Exchange]:
    """Questions about names and sums that no training conversation contains; the same seed gives the same ones."""
    draw = random.Random(f"questions {seed}")
    exchanges = [
        exchange("held-out", draw) for exchange in (lookup_exchange, add_exchange) for _ in range(QUESTIONS // 2)
    ]
    draw.shuffle(exchanges)
    return exchanges


def ask(folder: Path, seed: int) -> dict[str, Any]:
    """Asks the model in `folder` all questions; returns its calls and answers, question by question."""
    model = LongCatLiteForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = [Exchange(question, None, None, answer) for question, answer in PLAIN_QUESTIONS]
    asked = [
        judged(exchange, run_tools(model, tokenizer, exchange.messages()[:1], TOOLS, 2, **GREEDY))
        for exchange in track([*held_out_questions(seed), *plain], description="questions")
    ]
    return {"held_out": asked[:QUESTIONS], "plain": asked[QUESTIONS:]}


def judged(exchange: Exchange, conversation: list[dict[str, Any]]) -> dict[str, Any]:
    """One question with the expected and the actual calls and answer."""
    expected = [exchange.call["function"]] if exchange.call else []
    called = [call["function"] for call in conversation[1].get("tool_calls", [])]
    last = conversation[-1]
    answer = last["content"] if last["role"] == "assistant" else ""
    return {
        "question": exchange.question,
        "expected": expected,
        "called": called,
        # A call that could not be parsed counts neither as a call nor as an answer.
        "call_right": called == expected and (bool(called) or len(conversation) == 2),
        "result": next((message["content"] for message in conversation if message["role"] == "tool"), None),
        "answer": answer,
        "answer_right": answer == exchange.answer,
    }


def training_figures(folders: list[Path]) -> dict[str, Any]:
    """Steps, tokens and held-out losses of consecutive trainings, from the `trainer_state.json` of each folder."""
    states = [json.loads((folder / "trainer_state.json").read_text(encoding="utf-8")) for folder in folders]
    tokens = [max(int(entry.get("num_tokens", 0)) for entry in state["log_history"]) for state in states]
    losses = [entry["eval_loss"] for state in states for entry in state["log_history"] if "eval_loss" in entry]
    return {
        "training_steps": sum(state["global_step"] for state in states),
        "training_tokens": sum(tokens),
        "heldout_loss_before": losses[0],
        "heldout_loss_after": losses[-1],
    }


def summarize(asked: dict[str, Any]) -> dict[str, Any]:
    """Counts of right calls and answers, and all that [`ask`] returned."""
    held_out, plain = asked["held_out"], asked["plain"]
    by_tool: dict[str, list[dict[str, Any]]] = {}
    for answer in held_out:
        by_tool.setdefault(answer["expected"][0]["name"], []).append(answer)
    return {
        "drawn": DRAWN,
        "drawn_right_calls": count(held_out[:DRAWN], "call_right"),
        "drawn_right_answers": count(held_out[:DRAWN], "answer_right"),
        "questions": len(held_out),
        "right_calls": count(held_out, "call_right"),
        "right_answers": count(held_out, "answer_right"),
        "right_calls_by_tool": {
            name: f"{count(part, 'call_right')} of {len(part)}" for name, part in sorted(by_tool.items())
        },
        "plain_questions": len(plain),
        "plain_without_call": count(plain, "call_right"),
        "answers": asked,
    }


def count(answers: list[dict[str, Any]], key: str) -> int:
    """How many answers have `key`."""
    return sum(answer[key] for answer in answers)


def write_results(output: Path, report: dict[str, Any]) -> None:
    """Writes `tool_demo.json` and `.md` into `output`, with date and versions, and prints the latter."""
    results = {"machine": {**describe_machine(), "trl": version("trl")}, **report}
    paths = write_report(output, "tool_demo", results, as_markdown(results))
    Console().print(Markdown(as_markdown(results)))
    print("Written: " + ", ".join(map(str, paths)))


def as_markdown(results: dict[str, Any]) -> str:
    """The report for people."""
    lines = ["| question | called | answer | right |", "|---|---|---|---|"]
    for answer in results["answers"]["held_out"][: results["drawn"]]:
        right = {(True, True): "yes", (True, False): "call"}.get((answer["call_right"], answer["answer_right"]), "no")
        cells = [answer["question"], f"`{as_code(answer['called'])}`", " ".join(answer["answer"].split()), right]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    tools = ", ".join(f"`{name}` {right}" for name, right in results["right_calls_by_tool"].items())
    counts = [
        [label, f"{results[right]} of {results[total]}"]
        for label, right, total in (
            ("right calls, ten questions drawn by seed", "drawn_right_calls", "drawn"),
            ("right answers to them", "drawn_right_answers", "drawn"),
            ("right calls, all questions", "right_calls", "questions"),
            ("right answers, all questions", "right_answers", "questions"),
            ("questions that need no tool, no call made", "plain_without_call", "plain_questions"),
        )
    ]
    return f"""# A small model trained for two tools

`python -m eval.studies.tools`, {results["machine"]["date"]}: {results["training_steps"]} steps,
{results["training_tokens"]:,} tokens, {results["seconds"]["fine-tuning"]:.0f} s of training. None of the names and
sums in these questions occurs in a training conversation.

{markdown_table(["", ""], counts)}
By tool: {tools}. The ten:

{chr(10).join(lines)}
"""


def as_code(calls: list[dict[str, Any]]) -> str:
    """Calls as Python would write them."""
    written = []
    for call in calls:
        arguments = ", ".join(f"{key}={value!r}" for key, value in call["arguments"].items())
        written.append(f"{call['name']}({arguments})")
    return "; ".join(written)


__all__ = ["ask", "held_out_questions", "summarize", "training_figures", "write_results"]
