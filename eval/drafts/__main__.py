# SPDX-License-Identifier: Apache-2.0
"""How many drafts of the checkpoint's own head are accepted, and how much time that saves.

    python -m training.sft --config training/recipes/demo.yaml --draft_loss_weight 0.5 \
        --model_init_kwargs '{"mtp_use_ngram_embedding": true}' --output_dir outputs/demo-draft
    python -m eval.drafts --model outputs/demo-draft --rows outputs/demo/data/test.jsonl

`make draft` does both after `make demo`, for drafts from n-grams and from words. There are two counts. Free: the model
writes its own answers to held-out questions. Teacher-forced: at places inside held-out answers, after the true text,
one cycle is drafted and verified; there, a model that gives everyone the same answer gains nothing. Both decode
eagerly at batch 1. Free answers are decoded twice, with drafts and plainly, which must give the same tokens.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.progress import track
from transformers import AutoTokenizer

from eval.losses.answers import prompt_ids, read_rows
from eval.reports.files import markdown_table, write_report
from eval.reports.machine import describe_machine, load_average, machine_sentence
from modeling_longcat_lite import LongCatLiteForCausalLM
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_counts

PLACES_PER_ANSWER = 4


def seconds_of(function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall-clock seconds of a call, and what it returned."""
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def measure_free(model, tokenizer, rows: list[list[dict]], new_tokens: int) -> dict:
    """Accepted drafts per cycle and paired seconds, over answers that the model writes itself."""
    accepted, inside_answers, speedups, per_token, drafting = [], [], [], [], []
    for index, messages in enumerate(track(rows, description="answers", transient=True)):
        ids = prompt_ids(tokenizer, messages[:1], add_generation_prompt=True)
        # No end token: answers of one length, so that the prompt weighs the same in every pair.
        options = {"do_sample": False, "max_new_tokens": new_tokens, "eos_token_id": None}
        runs = {
            "plain": partial(model.generate, ids, **options),
            "drafted": partial(timed_drafting, model, ids, options),
        }
        order = list(runs) if index % 2 else list(runs)[::-1]
        results = {name: seconds_of(runs[name]) for name in order}
        tokens, draft_seconds = results["drafted"][1]
        assert torch.equal(results["plain"][1], tokens), "drafting changed a token"
        per_cycle = model.draft_statistics.accepted_per_cycle
        accepted += per_cycle
        inside_answers += before_the_end(per_cycle, tokens[0, ids.shape[1] :], tokenizer.eos_token_id)
        speedups.append(results["plain"][0] / results["drafted"][0])
        per_token.append(results["plain"][0] / new_tokens)
        cycles = model.draft_statistics.cycles
        drafting.append((draft_seconds / cycles, (results["drafted"][0] - draft_seconds) / cycles))
    return {
        "answers": len(rows),
        "cycles": len(accepted),
        "accepted_per_cycle": mean(accepted),
        "accepted_per_cycle_inside_answers": mean(inside_answers),
        "cycles_with_accepted": counts(accepted),
        "tokens_per_cycle": 1 + mean(accepted),
        "speedup": median(speedups),
        "plain_ms_per_token": 1000 * median(per_token),
        "draft_ms_per_cycle": 1000 * median(draft for draft, _ in drafting),
        "verify_ms_per_cycle": 1000 * median(verify for _, verify in drafting),
    }


def counts(accepted: list[int]) -> dict[str, int]:
    """How many cycles had 0, 1, 2, ... drafts accepted."""
    return {str(number): accepted.count(number) for number in range(max(accepted) + 1)}


def before_the_end(accepted: list[int], tokens: torch.Tensor, eos_token_id: int) -> list[int]:
    """Accepted drafts of the cycles that begin before the first end-of-sequence token among `tokens`."""
    ends = (tokens == eos_token_id).nonzero()
    end = int(ends[0]) if len(ends) else len(tokens)
    begins = accumulate(accepted, lambda begin, drafts: begin + drafts + 1, initial=1)  # the prompt gives a token
    return [drafts for drafts, begin in zip(accepted, begins, strict=False) if begin < end]


def timed_drafting(model, ids: torch.Tensor, options: dict) -> tuple[torch.Tensor, float]:
    """Tokens of decoding with drafts, and the seconds that drafting took of it."""
    spent = 0.0
    make = model._get_candidate_generator

    def with_clock(**kwargs):
        generator = make(**kwargs)
        draft = generator.get_candidates

        def timed(*args, **named):
            nonlocal spent
            seconds, result = seconds_of(lambda: draft(*args, **named))
            spent += seconds
            return result

        generator.get_candidates = timed
        return generator

    model._get_candidate_generator = with_clock
    try:
        return model.generate(ids, use_mtp=True, **options), spent
    finally:
        del model._get_candidate_generator


def measure_forced(model, tokenizer, rows: list[list[dict]]) -> dict:
    """Accepted drafts of one cycle after the true text, at evenly spaced places inside held-out answers."""
    drafts = model.config.num_draft_tokens
    accepted, answers = [], set()
    for messages in track(rows, description="places", transient=True):
        start = prompt_ids(tokenizer, messages[:1], add_generation_prompt=True).shape[1]
        whole = prompt_ids(tokenizer, messages)
        answers.add(tokenizer.decode(whole[0, start:]))
        places = range(start, whole.shape[1] - drafts - 1)
        for place in places[:: max(1, len(places) // PLACES_PER_ANSWER)]:
            # One token from the prompt's forward, then one cycle: its drafts and the token that follows them.
            options = {"do_sample": False, "max_new_tokens": drafts + 2, "eos_token_id": None}
            model.generate(whole[:, :place], use_mtp=True, **options)
            accepted.append(model.draft_statistics.accepted_per_cycle[0])
    return {
        "places": len(accepted),
        "distinct_answers": len(answers),
        "accepted_per_cycle": mean(accepted),
        "cycles_with_accepted": counts(accepted),
    }


def as_markdown(results: dict) -> str:
    """The report for people."""
    free, forced = results["free"], results["teacher_forced"]
    rows = [
        ("drafts accepted per cycle, own answers", free["accepted_per_cycle"]),
        ("the same, up to the end of the answer", free["accepted_per_cycle_inside_answers"]),
        ("drafts accepted per cycle, after true text", forced["accepted_per_cycle"]),
        ("plain decoding time / time with drafts", free["speedup"]),
        ("plain decoding, ms per token", free["plain_ms_per_token"]),
        ("drafting, ms per cycle", free["draft_ms_per_cycle"]),
        ("verifying and the rest, ms per cycle", free["verify_ms_per_cycle"]),
        ("tokens per cycle", free["tokens_per_cycle"]),
    ]
    return "\n".join(
        [
            f"# Drafts accepted\n\n{machine_sentence(results['machine'], results['load_average'])}\n",
            f"{free['answers']} held-out questions, {free['cycles']} cycles; {forced['places']} places in "
            f"{forced['distinct_answers']} distinct held-out answers. Eager, batch 1, {results['num_draft_tokens']} "
            f"drafts a cycle from {results['drafts_from']}. Answers go on after their end, so that all have the same "
            "length.\n",
            markdown_table(["", "measured"], [(name, f"{value:.2f}") for name, value in rows]),
            f"![Accepted drafts]({results['name']}.png)\n",
        ]
    )


def draw(results: dict) -> Figure:
    """Share of cycles by accepted drafts, for both counts."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    panel = figure.subplots()
    for place, (section, label) in enumerate((("free", "own answers"), ("teacher_forced", "after true text"))):
        cycles = results[section]["cycles_with_accepted"]
        shares = [100 * number / sum(cycles.values()) for number in cycles.values()]
        places = [int(accepted) + 0.4 * place - 0.2 for accepted in cycles]
        panel.bar_label(panel.bar(places, shares, width=0.38, label=label), fmt="%.0f %%", fontsize=7)
    panel.set(xlabel="drafts accepted", ylabel="share of cycles, %", title=f"Drafts from {results['drafts_from']}")
    panel.set_xticks(range(results["num_draft_tokens"] + 1))
    panel.legend()
    return figure


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.drafts", __doc__.split("\n")[0])
    parser.add_shared("--model", required=True, help="folder of a model with a trained draft head")
    parser.add_shared("--rows", required=True, help="held-out conversations: JSON Lines with `messages`")
    parser.add_argument("--count", type=int, default=60, help="conversations to use")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of each answer")
    parser.add_shared("--threads", default=1)
    parser.add_shared("--name", default="draft_acceptance")
    parser.add_shared("--output", default=Path("eval/results"))
    return parser


@torch.no_grad()
def main(arguments: argparse.Namespace) -> None:
    """Measures, prints, writes."""
    check_counts(arguments, "count", "new_tokens", "threads")
    torch.set_num_threads(arguments.threads)
    model = LongCatLiteForCausalLM.from_pretrained(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows = read_rows(arguments.rows, arguments.count)
    results = {
        "name": arguments.name,
        "drafts_from": "n-grams" if model.config.mtp_use_ngram_embedding else "words",
        "machine": describe_machine(),
        "load_average": load_average(),
        "num_draft_tokens": model.config.num_draft_tokens,
        "free": measure_free(model, tokenizer, rows, arguments.new_tokens),
        "teacher_forced": measure_forced(model, tokenizer, rows),
    }
    markdown = as_markdown(results)
    paths = write_report(arguments.output, arguments.name, results, markdown, draw(results))
    print(markdown, *(f"Written: {path}" for path in paths), sep="\n")


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
