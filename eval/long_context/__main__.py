# SPDX-License-Identifier: Apache-2.0
"""How much of its context a model uses: RULER's synthetic tasks by length and depth, and loss by position.

    python -m eval.long_context --model outputs/demo/model --lengths 256 512 1024 2048 --depths 0 0.5 1 --samples 2 \
        --new-tokens 24 --digits 3 --key-type numbers --value-type numbers --shots 0 --hops 2 --common-words 2 \
        --batch-size 4 --loss-rows 16 --name long_context_demo
    python -m eval.long_context --model LongCat-Flash-Lite --ngram-tables host --device auto --dtype bfloat16 --chat
    python -m eval.long_context --model LongCat-Flash-Lite --lengths 4096 --chat --lm-eval-ruler

Everything is generated here, without a download, from a seed. Writes JSON, Markdown and PNG; an interrupted run goes
on where it stopped when the same command is given again.

What equals RULER (arXiv 2404.06654, github.com/NVIDIA/RULER): the names of the tasks, what each hides and asks for,
its counts (needles, hops, repeats), the tokens of an answer, a length that counts prompt and answer, needle sentences,
noise, questions and answer prefixes (but for a misspelt word in `vt`), greedy decoding, a worked example in front of
`vt` and `cwe`, and the score, `string_match_all`: the share of the expected strings that the answer holds, upper and
lower case alike.
What does not: the sentence in front of the text is in other words; prose is Python's documentation, over again where
it is too short, or `--haystack`, not Paul Graham's essays; the needle asked for first stands at each of `--depths` in
turn, where RULER draws its depth; the worked example of `vt` is shorter; samples are fewer than 500. The two
question-answering tasks need data sets and are left to `--lm-eval-ruler`, which runs lm-eval's own port of RULER as
far as its data can be had. So numbers compare with each other at any length, and with published ones at a first look.
"""

import argparse
import hashlib
from functools import partial
from itertools import product
from pathlib import Path
from pydoc_data.topics import topics
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from eval.checkpoints.load import load_tokenizer
from eval.long_context.cells import RunFile, cells_of, measure_cell, prompt_tokens
from eval.long_context.report import as_markdown, draw, scores_by_length
from eval.long_context.ruler.lm_eval_tasks import LENGTHS, load_ruler, run_ruler
from eval.long_context.ruler.needles import prose
from eval.long_context.ruler.sample import KINDS, RulerOptions
from eval.long_context.ruler.tasks import RULER_TASKS, Sampler
from eval.losses.positions import loss_by_position
from eval.losses.text import longest_window
from eval.reports.files import write_report
from eval.reports.machine import describe_machine
from eval.reports.results import model_identity, result_file
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from tokenization.number_options import check_counts
from training.data.local_text import documents

DEPTHS = [0.0, 0.25, 0.5, 0.75, 1.0]
LONGEST_LOSS = 16384  # tokens of a row to measure loss on, unless told otherwise


def checked(arguments: argparse.Namespace, config: LongCatLiteConfig) -> None:
    """Fill in what depends on the model, and refuse what cannot be measured.

    Raises:
        `ValueError`: naming the option.
    """
    longest = longest_window(config)
    limit = "max_position_embeddings" if longest == config.max_position_embeddings else "index_topk"
    if arguments.lengths is None:
        shorter = [2**power for power in range(8, 12)]
        fitting = [length for length in LENGTHS if length <= longest]
        arguments.lengths = fitting or [length for length in shorter if length <= longest] or [longest]
    arguments.lengths, arguments.depths = sorted(set(arguments.lengths)), sorted(set(arguments.depths))
    if max(arguments.lengths) > longest:
        raise ValueError(
            f"`--lengths` has {max(arguments.lengths)}, above `{limit}` of the model ({longest}). Give shorter ones"
            + (", or extend its context with training.extend_context." if limit != "index_topk" else ".")
        )
    unknown = [task for task in arguments.tasks if task not in RULER_TASKS]
    if unknown:
        raise ValueError(f"`--tasks` has {unknown[0]}, but there are {', '.join(RULER_TASKS)}")
    for name in ("samples", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"`--{name.replace('_', '-')}` is {getattr(arguments, name)}, below 1")
    check_counts(arguments, "new_tokens", "loss_rows")
    if not all(0 <= depth <= 1 for depth in arguments.depths):
        raise ValueError(f"`--depths` are from 0 (the beginning) to 1 (the end), not {arguments.depths}")
    if arguments.loss_length is None:
        arguments.loss_length = min(max(arguments.lengths), LONGEST_LOSS)
    if arguments.loss_length != 0 and not 2 <= arguments.loss_length <= longest:
        raise ValueError(f"`--loss-length` is {arguments.loss_length}, but a row has 2 to {longest} tokens")
    unknown_to_lm_eval = [length for length in arguments.lengths if length not in LENGTHS]
    if arguments.lm_eval_ruler and unknown_to_lm_eval:
        raise ValueError(
            f"`--lengths` has {unknown_to_lm_eval[0]}, but lm-eval's ruler knows {', '.join(map(str, LENGTHS))} only"
        )


def ruler_options(arguments: argparse.Namespace) -> RulerOptions:
    """The prose haystack and what is chosen about the tasks."""
    if arguments.haystack:
        texts, source = [text for _, text in documents(arguments.haystack)], "`--haystack`"
    else:
        texts, source = [topics[name] for name in sorted(topics)], "Python's documentation"
    names = ("digits", "key_type", "value_type", "shots", "hops", "variable_letters", "common_words", "coded_letters")
    return RulerOptions(prose(texts, source), **{name: getattr(arguments, name) for name in names})


def digest(texts: list[str]) -> str:
    """What tells one haystack from another."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def measure_cells(arguments: argparse.Namespace, model, tokenizer, sampler: Sampler, run_file: RunFile) -> list[dict]:
    """All cells; those that `run_file` has are not measured again."""
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


def make_parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(prog="python -m eval.long_context", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder with model and tokenizer")
    add("--lengths", type=int, nargs="+", help="in tokens; default: RULER's, 4096 to 131072, that the model has")
    add("--depths", type=float, nargs="+", default=DEPTHS, help="of the needle, 0 to 1, default: %(default)s")
    add("--tasks", nargs="+", default=list(RULER_TASKS), help="default: all of %(default)s")
    add("--samples", type=int, default=20, help="of each task, length and depth, default: %(default)s")
    add("--chat", action="store_true", help="ask through the chat template; for chat models")
    add("--batch-size", type=int, default=1, help="prompts at once, default: %(default)s")
    add(
        "--dtype", default="auto", choices=("auto", "bfloat16", "float16", "float32"), help="default: the checkpoint's"
    )
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="auto spreads; default: %(default)s")
    add("--ngram-tables", default="resident", choices=("resident", "host", "disk"), help="default: %(default)s")
    add("--seed", type=int, default=0, help="of the samples, default: %(default)s")
    add("--haystack", type=Path, nargs="+", help="UTF-8 files of prose; Python's documentation by default")
    add("--documents", type=Path, nargs="+", help="UTF-8 files to measure loss on; Python's library by default")
    add("--loss-length", type=int, help=f"tokens of a document; 0: no loss; default: the longest, to {LONGEST_LOSS}")
    add("--loss-rows", type=int, default=8, help="documents to measure loss on, at most, default: %(default)s")
    add("--lm-eval-ruler", action="store_true", help="also run lm-eval's ruler, as far as its data can be had")
    add("--output", type=Path, default=Path("eval/results"), help="folder for JSON, Markdown and PNG")
    add("--name", default="long_context", help="of the files, default: %(default)s")
    easier = parser.add_argument_group("for small models", "defaults are RULER's")
    easier.add_argument("--new-tokens", type=int, help="of an answer; default: the task's, 30 to 128")
    easier.add_argument("--digits", type=int, default=7, help="of a magic number, default: %(default)s")
    easier.add_argument("--key-type", choices=KINDS, help="of all needles; default: the task's")
    easier.add_argument("--value-type", choices=KINDS, help="of all needles; default: the task's")
    easier.add_argument("--shots", type=int, default=1, help="worked examples of vt and cwe, 0 or 1, default: 1")
    easier.add_argument("--hops", type=int, default=4, help="of a chain of vt, default: %(default)s")
    easier.add_argument("--variable-letters", type=int, default=5, help="of vt, default: %(default)s")
    easier.add_argument("--common-words", type=int, default=10, help="that cwe asks for, default: %(default)s")
    easier.add_argument("--coded-letters", type=int, default=6, help="of fwe, default: %(default)s")
    return parser


def main(arguments: argparse.Namespace):
    """Checks, measures, writes, prints."""
    config = LongCatLiteConfig.from_pretrained(arguments.model)
    checked(arguments, config)
    tokenizer = load_tokenizer(str(arguments.model), config)
    options = ruler_options(arguments)
    sampler = Sampler(
        lambda sample: len(prompt_tokens(tokenizer, sample, arguments.chat)),
        options,
        arguments.seed,
        arguments.new_tokens,
    )
    for length, task in product(arguments.lengths, arguments.tasks):
        sampler.check(task, length, arguments.samples)
    lm_eval = load_ruler(arguments.model, arguments.lengths, arguments.seed) if arguments.lm_eval_ruler else None
    settings: dict[str, Any] = {
        "model": model_identity(arguments.model),
        "seed": arguments.seed,
        "samples": arguments.samples,
        "chat": arguments.chat,
        "dtype": arguments.dtype,
        "new_tokens": arguments.new_tokens,
        **options.described(),
        "haystack": {"source": "files" if arguments.haystack else "documentation", "sha256": digest(options.prose)},
    }
    run_file = RunFile(arguments.output / f"{arguments.name}.partial.jsonl", settings)
    model = LongCatLiteForCausalLM.from_pretrained(
        arguments.model, dtype=arguments.dtype, device_map=arguments.device, ngram_tables=arguments.ngram_tables
    ).eval()
    cells = measure_cells(arguments, model, tokenizer, sampler, run_file)
    loss = None
    if arguments.loss_length:
        loss = run_file.measured(
            f"loss {arguments.loss_length} {arguments.loss_rows} {arguments.documents}",
            lambda: loss_by_position(
                model, tokenizer, arguments.documents, arguments.loss_length, arguments.loss_rows, arguments.batch_size
            ),
        )
    theirs = run_ruler(lm_eval, model, tokenizer, arguments) if lm_eval else None
    settings["dtype"] = str(model.dtype).removeprefix("torch.")
    settings["device"] = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu"
    write_all(arguments, settings, cells, loss, theirs)
    run_file.path.unlink()


def write_all(
    arguments: argparse.Namespace, settings: dict[str, Any], cells: list[dict], loss: dict | None, theirs: dict | None
) -> None:
    """The result file, the report for people and the plot."""
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
    content = result_file(
        arguments.model,
        "long_context",
        results,
        machine=describe_machine(),
        settings={key: value for key, value in settings.items() if key != "model"},
        cells=[without_samples(cell) for cell in cells],
        first_answers={cell["task"]: cell["first"] for cell in reversed(cells)},
        loss_by_position=loss,
        lm_eval_ruler=theirs and {key: theirs[key] for key in ("version", "missing")},
    )
    paths = write_report(arguments.output, arguments.name, content, as_markdown(content, arguments.name))
    paths.append(arguments.output / f"{arguments.name}.png")
    draw(content, paths[-1])
    Console().print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)


def without_samples(cell: dict) -> dict:
    """A cell with means in place of the figures of its samples."""
    means = {key: fmean(value) for key, value in cell.items() if isinstance(value, list)}
    return {key: means.get(key, value) for key, value in cell.items() if key != "first"}


if __name__ == "__main__":
    main(make_parser().parse_args())
