# SPDX-License-Identifier: Apache-2.0
"""How much of its context a model uses: RULER's synthetic tasks by length and depth, and loss by position.

    python -m eval.long_context --model outputs/demo/model --lengths 256 512 1024 2048 --depths 0 0.5 1 --samples 2 \
        --new-tokens 24 --digits 3 --key-type numbers --value-type numbers --shots 0 --hops 2 --common-words 2 \
        --batch-size 4 --loss-rows 16 --name long_context_demo
    python -m eval.long_context --model LongCat-Flash-Lite --ngram-tables host --device auto --dtype bfloat16 --chat
    python -m eval.long_context --model LongCat-Flash-Lite --lengths 4096 --chat --lm-eval-ruler

Everything is generated from a seed, without a download. An interrupted run goes on where it stopped when the same
command is given again.

Equal to RULER (arXiv 2404.06654, github.com/NVIDIA/RULER) are the names of the tasks, what each hides and asks for,
its counts (needles, hops, repeats), the tokens of an answer, a length that counts prompt and answer, needle sentences,
noise, questions and answer prefixes (except for a misspelt word in `vt`), greedy decoding, a worked example before
`vt` and `cwe`, and the score, `string_match_all`: the share of the expected strings in the answer, regardless of case.

Different are the wording of the sentence before the text; the prose, which is Python's documentation, repeated as
needed, or `--haystack`, instead of Paul Graham's essays; the depth of the first needle, which goes through `--depths`
instead of being drawn; the worked example of `vt`, which is shorter; and the number of samples, which is below 500.
The two question-answering tasks need data sets and are left to `--lm-eval-ruler`, which runs lm-eval's own port of
RULER as far as its data is available. So numbers compare with each other at any length, and only roughly with
published ones.
"""

import argparse
import hashlib
from dataclasses import fields
from functools import partial
from itertools import product
from pathlib import Path
from pydoc_data.topics import topics
from statistics import fmean
from typing import Any

import torch
from rich.progress import Progress

from eval.checkpoints.load import ModelFolder
from eval.long_context.cells import RunFile, cells_of, measure_cell, prompt_tokens
from eval.long_context.report import as_markdown, draw, scores_by_length
from eval.long_context.ruler.lm_eval_tasks import LENGTHS, load_ruler, run_ruler
from eval.long_context.ruler.needles import prose
from eval.long_context.ruler.sample import RulerOptions
from eval.long_context.ruler.tasks import RULER_TASKS, Sampler
from eval.losses.positions import loss_by_position
from eval.losses.text import longest_window
from eval.reports.files import write_report
from eval.reports.machine import describe_machine
from modeling_longcat_lite import LongCatLiteConfig
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_counts, check_number
from training.data.local_text import documents

DEPTHS = [0.0, 0.25, 0.5, 0.75, 1.0]
LONGEST_LOSS = 16384  # tokens of a row to measure loss on, unless `--loss-length` says otherwise


def complete(arguments: argparse.Namespace, config: LongCatLiteConfig) -> None:
    """Fill in defaults that depend on the model, and refuse what cannot be measured.

    Raises:
        `ValueError`: naming the option.
    """
    check_counts(arguments, "lengths", "samples", "batch_size", "new_tokens", "loss_rows")
    check_number("--depths", arguments.depths, least=0, most=1)
    longest = longest_window(config)
    if arguments.lengths is None:
        fitting = [length for length in LENGTHS if length <= longest]
        shorter = [length for length in (256, 512, 1024, 2048) if length <= longest]
        arguments.lengths = fitting or shorter or [longest]
    arguments.lengths, arguments.depths = sorted(set(arguments.lengths)), sorted(set(arguments.depths))
    if max(arguments.lengths) > longest:
        limit, mend = "index_topk", ""
        if longest == config.max_position_embeddings:
            limit, mend = "max_position_embeddings", ", or extend its context with training.extend_context"
        raise ValueError(
            f"`--lengths` has {max(arguments.lengths)}, above `{limit}` of the model ({longest}). Give shorter ones"
            f"{mend}."
        )
    for task in arguments.tasks:
        if task not in RULER_TASKS:
            raise ValueError(f"`--tasks` has {task}, but there are {', '.join(RULER_TASKS)}")
    if arguments.loss_length is None:
        arguments.loss_length = min(max(arguments.lengths), LONGEST_LOSS)
    if arguments.loss_length != 0:
        check_number("--loss-length", arguments.loss_length, least=2, most=longest)
    for length in arguments.lengths if arguments.lm_eval_ruler else ():
        if length not in LENGTHS:
            known = ", ".join(map(str, LENGTHS))
            raise ValueError(f"`--lengths` has {length}, but lm-eval's ruler knows only {known}")


def ruler_options(arguments: argparse.Namespace) -> RulerOptions:
    """The prose haystack, and what is chosen about the tasks."""
    if arguments.haystack:
        texts, source = [text for _, text in documents(arguments.haystack)], "`--haystack`"
    else:
        texts, source = [topics[name] for name in sorted(topics)], "Python's documentation"
    chosen = {field.name: getattr(arguments, field.name) for field in fields(RulerOptions) if field.name != "prose"}
    return RulerOptions(prose(texts, source), **chosen)


def run_settings(arguments: argparse.Namespace, folder: ModelFolder, options: RulerOptions) -> dict[str, Any]:
    """Everything that a number depends on."""
    return {
        "model": folder.identity,
        "seed": arguments.seed,
        "samples": arguments.samples,
        "chat": arguments.chat,
        "dtype": arguments.dtype,
        "new_tokens": arguments.new_tokens,
        **options.described(),
        "haystack": {
            "source": "files" if arguments.haystack else "documentation",
            "sha256": hashlib.sha256("\n".join(options.prose).encode()).hexdigest()[:16],
        },
    }


def measure_cells(arguments: argparse.Namespace, model, tokenizer, sampler: Sampler, run_file: RunFile) -> list[dict]:
    """All cells; those in `run_file` are not measured again."""
    cells = cells_of(arguments.tasks, arguments.lengths, arguments.depths)
    measured = []
    with Progress(transient=True) as bar:
        task = bar.add_task("cells", total=len(cells))
        for cell in cells:
            bar.update(task, description=f"{cell.task}, {cell.length} tokens")
            how = (arguments.samples, arguments.chat, arguments.batch_size)
            measure = partial(measure_cell, model, tokenizer, sampler, cell, *how)
            measured.append(run_file.measured(f"{cell.task} {cell.length} {cell.depth}", measure))
            bar.advance(task)
    return measured


def result_content(
    folder: ModelFolder, settings: dict[str, Any], cells: list[dict], loss: dict | None, theirs: dict | None
) -> dict[str, Any]:
    """The result file."""
    results = scores_by_length(cells)
    if loss:
        results.append(
            {
                "task": "loss on long documents",
                "metric": "nats a token",
                "value": loss["mean"],
                "samples": loss["rows"],
                "higher_is_better": False,
                "config": f"{loss['length']} tokens",
            }
        )
    results += theirs["results"] if theirs else []
    return folder.result_file(
        "long_context",
        results,
        machine=describe_machine(),
        settings={key: value for key, value in settings.items() if key != "model"},
        # Means in place of the figures of each sample.
        cells=[
            {key: fmean(value) if isinstance(value, list) else value for key, value in cell.items() if key != "first"}
            for cell in cells
        ],
        first_answers={cell["task"]: cell["first"] for cell in reversed(cells)},
        loss_by_position=loss,
        lm_eval_ruler=theirs and {key: theirs[key] for key in ("version", "missing")},
    )


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.long_context", __doc__.split("\n")[0])
    add = parser.add_argument
    parser.add_shared("--model", type=Path, required=True, help="folder of a saved model with its tokenizer")
    add("--lengths", type=int, nargs="+", help="tokens; RULER's, 4096 to 131072, as far as the model has them")
    add("--depths", type=float, nargs="+", default=DEPTHS, help="depths of the needle, from 0 to 1")
    add("--tasks", nargs="+", default=list(RULER_TASKS), help="tasks to run")
    add("--samples", type=int, default=20, help="samples of each task, length and depth")
    add("--chat", action="store_true", help="ask through the chat template; for chat models")
    parser.add_shared("--batch-size", help="prompts in a batch")
    parser.add_shared("--dtype", choices=("auto", "bfloat16", "float16", "float32"))
    parser.add_shared("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_shared("--ngram-tables")
    parser.add_shared("--seed", help="seed of the samples")
    add("--haystack", type=Path, nargs="+", help="UTF-8 files of prose; Python's documentation if left out")
    add("--documents", type=Path, nargs="+", help="UTF-8 files to measure loss on; Python's library if left out")
    add("--loss-length", type=int, help=f"tokens of a document, 0 for no loss; the longest length to {LONGEST_LOSS}")
    add("--loss-rows", type=int, default=8, help="documents to measure loss on, at most")
    add("--lm-eval-ruler", action="store_true", help="also run lm-eval's ruler, as far as its data is available")
    parser.add_shared("--output", default=Path("eval/results"), help="folder for JSON, Markdown and PNG")
    parser.add_shared("--name", default="long_context")
    easier = parser.add_argument_group("for small models", "defaults are RULER's")
    easier.add_argument("--new-tokens", type=int, help="tokens of an answer; the task's, 30 to 128, if left out")
    for field in fields(RulerOptions):
        if field.name != "prose":
            kind = {"choices": field.metadata["choices"]} if "choices" in field.metadata else {"type": int}
            option = f"--{field.name.replace('_', '-')}"
            easier.add_argument(option, default=field.default, help=field.metadata["help"], **kind)
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Checks, measures and writes."""
    folder = ModelFolder(arguments.model)
    folder.check()
    complete(arguments, folder.config)
    tokenizer, options = folder.tokenizer, ruler_options(arguments)
    sampler = Sampler(
        lambda sample: len(prompt_tokens(tokenizer, sample, arguments.chat)),
        options,
        arguments.seed,
        arguments.new_tokens,
    )
    for length, task in product(arguments.lengths, arguments.tasks):
        sampler.check(task, length, arguments.samples)
    lm_eval = load_ruler(arguments.model, arguments.lengths, arguments.seed) if arguments.lm_eval_ruler else None
    settings = run_settings(arguments, folder, options)
    run_file = RunFile(arguments.output / f"{arguments.name}.partial.jsonl", settings)
    model = folder.load(dtype=arguments.dtype, device_map=arguments.device, ngram_tables=arguments.ngram_tables)
    cells = measure_cells(arguments, model, tokenizer, sampler, run_file)
    loss = None
    if arguments.loss_length:
        how = (arguments.documents, arguments.loss_length, arguments.loss_rows)
        key = f"loss {arguments.loss_length} {arguments.loss_rows} {arguments.documents}"
        loss = run_file.measured(key, lambda: loss_by_position(model, tokenizer, *how, arguments.batch_size))
    theirs = run_ruler(lm_eval, model, tokenizer, arguments) if lm_eval else None
    settings["dtype"] = str(model.dtype).removeprefix("torch.")
    settings["device"] = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu"
    content = result_content(folder, settings, cells, loss, theirs)
    markdown = as_markdown(content, arguments.name)
    paths = write_report(arguments.output, arguments.name, content, markdown, draw(content))
    print(f"Written: {', '.join(map(str, paths))}")
    run_file.path.unlink()


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
