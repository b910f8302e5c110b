# SPDX-License-Identifier: Apache-2.0
"""Cells of a long-context run, (task, length, depth): prompts, answers in batches, scores, and a file to resume from.

Shapes: B batch rows, T tokens.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from eval.long_context.ruler.sample import Sample, matched, matched_any
from eval.long_context.ruler.tasks import RULER_TASKS, Sampler
from eval.losses.positions import batched
from eval.losses.text import plain_tokens
from modeling_longcat_lite.whole_files import write_whole

SHOWN = 160  # characters of an answer that the report quotes


@dataclass(frozen=True)
class Cell:
    """What is measured together; `depth` is `None` for tasks without a needle."""

    task: str
    length: int
    depth: float | None = None


def cells_of(tasks: list[str], lengths: list[int], depths: list[float]) -> list[Cell]:
    """All cells, short lengths first."""
    cells = []
    for length in lengths:
        for task in tasks:
            cells += [Cell(task, length, depth) for depth in (depths if RULER_TASKS[task].by_depth else [None])]
    return cells


def prompt_tokens(tokenizer, sample: Sample, chat: bool) -> list[int]:
    """Tokens of a prompt that ends with the beginning of the answer.

    With `chat`, the user's turn is rendered with the chat template and the answer begins the assistant's. Without,
    both are plain text, to which no special token is added.
    """
    if not chat:
        return plain_tokens(tokenizer, f"{sample.said_by_user} {sample.prefix}")
    messages = [{"role": "user", "content": sample.said_by_user}]
    turns = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return plain_tokens(tokenizer, turns + sample.prefix)


@torch.no_grad()
def written(model, tokenizer, prompts: list[list[int]], new_tokens: int, batch_size: int) -> list[str]:
    """The greedy continuation of each prompt. Batches hold prompts of similar length."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    ends = model.config.eos_token_id
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if isinstance(ends, list) else ends
    answers = [""] * len(prompts)
    for rows in batched(order, batch_size):
        width = max(len(prompts[row]) for row in rows)
        ids = torch.tensor([[pad] * (width - len(prompts[row])) + prompts[row] for row in rows])  # [B, T]
        mask = torch.tensor([[0] * (width - len(prompts[row])) + [1] * len(prompts[row]) for row in rows])
        output = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            max_new_tokens=new_tokens,
            pad_token_id=pad,
        )
        texts = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            answers[row] = text
    return answers


def measure_cell(
    model, tokenizer, sampler: Sampler, cell: Cell, samples: int, chat: bool, batch_size: int
) -> dict[str, Any]:
    """Scores of one cell, in the order of its samples, and the answer to the first sample."""
    drawn = [sampler.sample(cell.task, cell.length, cell.depth, number) for number in range(samples)]
    prompts = [prompt_tokens(tokenizer, sample, chat) for sample in drawn]
    answers = written(model, tokenizer, prompts, sampler.answer_tokens(cell.task), batch_size)
    return {
        **asdict(cell),
        "prompt_tokens": [len(prompt) for prompt in prompts],
        "string_match_all": [matched(text, sample.answers) for text, sample in zip(answers, drawn, strict=True)],
        "string_match_part": [matched_any(text, sample.answers) for text, sample in zip(answers, drawn, strict=True)],
        "first": {"wanted": list(drawn[0].answers), "written": answers[0][:SHOWN]},
    }


class RunFile:
    """What a run has measured so far, one line of JSON for each value, so that an interrupted run can go on.

    Args:
        path (`Path`): The file, which is removed at the end of the run.
        settings (`dict`): Everything that a number depends on; the first line of the file.

    Raises:
        `ValueError`: naming the settings that differ, if the file belongs to another run.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.done = path, {}
        lines = list(whole_lines(path))
        settings = json.loads(json.dumps(settings))
        if lines:
            differ = [name for name in settings if lines[0].get(name) != settings[name]]
            if differ:
                raise ValueError(
                    f"{path} belongs to an unfinished run with another {', '.join(differ)}: delete it, or give "
                    "another --name."
                )
            self.done = {line["key"]: line["value"] for line in lines[1:]}
        kept = [settings, *({"key": key, "value": value} for key, value in self.done.items())]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))

    def measured(self, key: str, measure: Callable[[], Any]) -> Any:
        """The value of `key`, measured now unless the file has it."""
        if key not in self.done:
            self.done[key] = json.loads(json.dumps(measure()))
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "value": self.done[key]}) + "\n")
        return self.done[key]


def whole_lines(path: Path) -> Iterator[dict]:
    """The lines of a file, up to one that an interruption cut off."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return


__all__ = ["Cell", "RunFile", "cells_of", "measure_cell", "prompt_tokens", "written"]
