# SPDX-License-Identifier: Apache-2.0
"""Questions to a model that was trained for two tools: are the calls the right ones, and the answers?

Every question is put to the model through `tokenization.tool_loop.run_tools`, so that the tools run with what the
model wrote. A call is right if its name and all its arguments are, and no other call stands beside it.
"""

import json
import platform
import random
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from transformers import AutoTokenizer

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.whole_files import write_whole
from tokenization.tool_loop import run_tools
from training.data.tool_conversations import PLAIN_QUESTIONS, TOOLS, Exchange, add_exchange, lookup_exchange

DRAWN, FEWEST_RIGHT = 10, 8  # questions that decide, and the calls that have to be right
QUESTIONS = 100  # half of them for each tool; the ten are drawn from them
MAX_NEW_TOKENS = 96
LIBRARIES = ("torch", "transformers", "trl")


def held_out_questions(seed: int) -> list[Exchange]:
    """Questions about names and sums that no conversation to train on has, the same for the same seed."""
    draw = random.Random(f"questions {seed}")
    exchanges = [
        exchange("held-out", draw) for exchange in (lookup_exchange, add_exchange) for _ in range(QUESTIONS // 2)
    ]
    draw.shuffle(exchanges)
    return exchanges


def ask(folder: Path, seed: int) -> dict[str, Any]:
    """Put all questions to the model in `folder`; returns what it called and answered, question by question."""
    model = LongCatLiteForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = [Exchange(question, None, None, answer) for question, answer in PLAIN_QUESTIONS]
    asked = [
        judged(exchange, run_tools(model, tokenizer, exchange.messages()[:1], TOOLS, 2, **generation()))
        for exchange in track([*held_out_questions(seed), *plain], description="questions")
    ]
    return {"held_out": asked[:QUESTIONS], "plain": asked[QUESTIONS:]}


def generation() -> dict[str, Any]:
    """Options of `generate`: greedy."""
    return {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}


def judged(exchange: Exchange, conversation: list[dict[str, Any]]) -> dict[str, Any]:
    """One question beside what was called and answered."""
    expected = [exchange.call["function"]] if exchange.call else []
    called = [call["function"] for call in conversation[1].get("tool_calls", [])]
    last = conversation[-1]
    answer = last["content"] if last["role"] == "assistant" else ""
    return {
        "question": exchange.question,
        "expected": expected,
        "called": called,
        # A call that could not be read is no call, but it is no answer either.
        "call_right": called == expected and (bool(called) or len(conversation) == 2),
        "result": next((message["content"] for message in conversation if message["role"] == "tool"), None),
        "answer": answer,
        "answer_right": answer == exchange.answer,
    }


def write_report(
    output: Path, trained: list[str], results: Path, asked: dict[str, Any], seed: int, seconds: dict[str, float]
) -> dict[str, Any]:
    """Write `report.json` into `output`, and `tool_demo.json` and `.md` into `results`; returns the report.

    Args:
        output (`Path`): The demo's folder.
        trained (`list[str]`): Folders in it that trainings wrote, in order.
        results (`Path`): Folder of result files.
        asked (`dict`): What [`ask`] returned.
        seed (`int`): The seed of everything drawn.
        seconds (`dict`): Wall-clock seconds of each stage.
    """
    states = [json.loads((output / name / "trainer_state.json").read_text(encoding="utf-8")) for name in trained]
    tokens = [max(int(entry.get("num_tokens", 0)) for entry in state["log_history"]) for state in states]
    losses = [entry["eval_loss"] for state in states for entry in state["log_history"] if "eval_loss" in entry]
    held_out, plain = asked["held_out"], asked["plain"]
    report = {
        "date": datetime.now().isoformat(timespec="minutes"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "seed": seed,
        "seconds": seconds,
        "training_steps": sum(state["global_step"] for state in states),
        "training_tokens": sum(tokens),
        "heldout_loss_before": losses[0],
        "heldout_loss_after": losses[-1],
        "drawn": DRAWN,
        "drawn_right_calls": count(held_out[:DRAWN], "call_right"),
        "drawn_right_answers": count(held_out[:DRAWN], "answer_right"),
        "questions": len(held_out),
        "right_calls": count(held_out, "call_right"),
        "right_answers": count(held_out, "answer_right"),
        "right_calls_by_tool": by_tool(held_out),
        "plain_questions": len(plain),
        "plain_without_call": count(plain, "call_right"),
        "passed": count(held_out[:DRAWN], "call_right") >= FEWEST_RIGHT,
        "answers": asked,
    }
    results.mkdir(parents=True, exist_ok=True)
    text = (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode()
    write_whole(output / "report.json", text)
    write_whole(results / "tool_demo.json", text)
    write_whole(results / "tool_demo.md", as_markdown(report).encode())
    return report


def count(answers: list[dict[str, Any]], key: str) -> int:
    """How many answers have `key`."""
    return sum(answer[key] for answer in answers)


def by_tool(answers: list[dict[str, Any]]) -> dict[str, str]:
    """Right calls of all, for each tool that was due."""
    of_tool: dict[str, list[dict[str, Any]]] = {}
    for answer in answers:
        of_tool.setdefault(answer["expected"][0]["name"], []).append(answer)
    return {name: f"{count(part, 'call_right')} of {len(part)}" for name, part in sorted(of_tool.items())}


def spoken_calls(calls: list[dict[str, Any]]) -> str:
    """Calls as Python would write them."""
    spoken = []
    for call in calls:
        arguments = ", ".join(f"{key}={value!r}" for key, value in call["arguments"].items())
        spoken.append(f"{call['name']}({arguments})")
    return "; ".join(spoken)


def as_markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = ["| question | called | answer | right |", "|---|---|---|---|"]
    for answer in report["answers"]["held_out"][: report["drawn"]]:
        right = {(True, True): "yes", (True, False): "call"}.get((answer["call_right"], answer["answer_right"]), "no")
        cells = [answer["question"], f"`{spoken_calls(answer['called'])}`", " ".join(answer["answer"].split()), right]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    tools = ", ".join(f"`{name}` {right}" for name, right in report["right_calls_by_tool"].items())
    return f"""# A small model trained for two tools

`python -m eval.studies.tools`, {report["date"]}: {report["training_steps"]} steps,
{report["training_tokens"]:,} tokens, {report["seconds"]["fine-tuning"]:.0f} s of training. No name and no sum in
these questions stands in a conversation to train on.

| | |
|---|---:|
| right calls, ten questions drawn by seed | {report["drawn_right_calls"]} of {report["drawn"]} |
| right answers to them | {report["drawn_right_answers"]} of {report["drawn"]} |
| right calls, all questions | {report["right_calls"]} of {report["questions"]} |
| right answers, all questions | {report["right_answers"]} of {report["questions"]} |
| questions that need no tool, no call made | {report["plain_without_call"]} of {report["plain_questions"]} |

By tool: {tools}. At least {FEWEST_RIGHT} of the {report["drawn"]} calls must be right:
{"they are" if report["passed"] else "they are not"}. The ten:

{chr(10).join(lines)}
"""


def print_report(report: dict[str, Any]) -> None:
    """Print the ten questions and the counts."""
    table = Table(title=f"{report['drawn']} questions with unseen arguments", show_lines=True)
    for column in ("question", "called", "answer", ""):
        table.add_column(column)
    for answer in report["answers"]["held_out"][: report["drawn"]]:
        mark = "[green]right" if answer["call_right"] else "[red]wrong"
        table.add_row(*map(escape, (answer["question"], spoken_calls(answer["called"]), answer["answer"])), mark)
    Console().print(table)
    Console().print(
        f"right calls: {report['drawn_right_calls']} of {report['drawn']}, {report['right_calls']} of all "
        f"{report['questions']}; training took {report['seconds']['fine-tuning']:.0f} s"
    )
    if not report["passed"]:
        Console().print(f"[red]Short of the mark: at least {FEWEST_RIGHT} of {report['drawn']} calls right.")


__all__ = ["ask", "held_out_questions", "print_report", "write_report"]
