# SPDX-License-Identifier: Apache-2.0
"""What a model loses without its n-gram tables: zeroed, shuffled, or in few bits.

    python -m eval.ngrams.ablation --model outputs/demo/model --rows outputs/demo/data/test.jsonl --by-order
    python -m eval.ngrams.ablation --model CHECKPOINT --text book.txt --ablations on zeroed --placement disk

Scores held-out conversations (answers, the questions given), or whole documents: given files, or the standard library
of the running Python. Every ablation scores the same tokens, so that differences are paired, token by token; a token's
position is that in its answer, or in its window. `ablated_tables.py` says what the ablations are; they need no second
copy of the tables, wherever these lie.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from eval.checkpoints.load import load_config, load_tokenizer
from eval.losses.answers import losses_by_answer, read_rows
from eval.losses.text import longest_window, losses_by_window, tokenize_documents
from eval.ngrams.ablation.ablated import ABLATIONS, ablated, check_ablation
from eval.ngrams.ablation.report import as_markdown, draw
from eval.reports.files import spoken_path, write_report
from eval.reports.machine import describe_machine
from eval.reports.results import result_file
from modeling_longcat_lite import LongCatLiteForCausalLM
from tokenization.number_options import check_counts
from training.data.local_text import documents

NAME = "ngram_ablation"
Score = Callable[[LongCatLiteForCausalLM], list[torch.Tensor]]


def variants(names: list[str], by_order: bool, config) -> dict[str, dict]:
    """Label of each run, and the arguments of [`ablated`]; `"on"` comes first, to compare with."""
    runs: dict[str, dict] = {name: {"name": name} for name in ("on", *names)}
    if by_order:
        for order in range(2, config.max_ngram_order + 1):
            runs[f"{order}-grams zeroed"] = {"name": "zeroed", "orders": [order]}
    return runs


def means_by_position(losses: list[torch.Tensor]) -> list[dict]:
    """Mean loss of the tokens at positions 0, 1, 2 to 3, 4 to 7, and so on."""
    values = torch.cat(losses).double()
    positions = torch.cat([torch.arange(len(part)) for part in losses])
    found = []
    for power in range(int(positions.max()).bit_length() + 1):
        first, last = 2**power // 2, 2**power - 1
        inside = (positions >= first) & (positions <= last)
        if inside.any():
            found.append(
                {"first": first, "last": last, "tokens": int(inside.sum()), "loss": values[inside].mean().item()}
            )
    return found


def summary(losses: list[torch.Tensor], unchanged: list[torch.Tensor], num_bytes: int) -> dict:
    """Loss in nats a token and bits a byte, and what was added to that of the model as it is."""
    values = torch.cat(losses).double()
    differences = values - torch.cat(unchanged).double()
    return {
        "loss": values.mean().item(),
        "bits_per_byte": values.sum().item() / math.log(2) / num_bytes,
        "added_loss": differences.mean().item(),
        "added_loss_standard_error": (differences.std() / len(differences) ** 0.5).item(),
        "by_position": means_by_position(losses),
    }


def prepare(arguments: argparse.Namespace, tokenizer, longest: int) -> tuple[Score, dict]:
    """What scores a model, and what it scores: `source`, `unit`, `parts`, `bytes`."""
    if arguments.rows:
        rows = read_rows(arguments.rows, arguments.count)
        if not rows:
            raise ValueError(f"{arguments.rows} has no conversation")
        num_bytes = sum(len(messages[1]["content"].encode()) for messages in rows)
        about = {"source": spoken_path(str(arguments.rows)), "unit": "answers", "parts": len(rows), "bytes": num_bytes}
        return lambda model: losses_by_answer(model, tokenizer, rows), about
    read = tokenize_documents(tokenizer, documents(arguments.text), arguments.tokens)
    window = min(arguments.window, longest)
    source = "given files" if arguments.text else f"Python's standard library, {read.names[0]} to {read.names[-1]}"
    about = {"source": source, "unit": "documents", "parts": len(read.names), "bytes": read.num_bytes}
    return lambda model: losses_by_window(model, read, window), {**about, "window": window}


def measure(arguments: argparse.Namespace) -> dict:
    """Loads the model once and scores it under each ablation."""
    folder = Path(arguments.model)
    options = {"dtype": getattr(torch, arguments.dtype), "ngram_tables": arguments.placement}
    model = LongCatLiteForCausalLM.from_pretrained(folder, device_map=arguments.device_map, **options).eval()
    tokenizer = load_tokenizer(arguments.tokenizer or arguments.model, model.config)
    score, scored = prepare(arguments, tokenizer, longest_window(model.config))
    measured: dict[str, list[torch.Tensor]] = {}
    for label, run in variants(arguments.ablations, arguments.by_order, model.config).items():
        with ablated(model, seed=arguments.seed, **run):
            measured[label] = score(model)
        Console().print(f"{label}: {torch.cat(measured[label]).mean():.4f} nats a token")
    found = {label: summary(losses, measured["on"], scored["bytes"]) for label, losses in measured.items()}
    scored["tokens"] = sum(map(len, measured["on"]))
    results = [
        {
            "task": f"{scored['unit']} of {scored['source']}, n-gram tables {label}",
            "metric": metric,
            "value": one[key],
            "samples": scored["tokens"],
            "higher_is_better": False,
        }
        for label, one in found.items()
        for metric, key in (("nats a token", "loss"), ("bits a byte", "bits_per_byte"))
    ]
    return result_file(
        folder,
        NAME,
        results,
        path=spoken_path(arguments.model),
        machine=describe_machine(),
        dtype=arguments.dtype,
        placement=arguments.placement,
        table_bytes=table_bytes(model),
        seed=arguments.seed,
        scored=scored,
        ablations=found,
    )


def table_bytes(model: LongCatLiteForCausalLM) -> int:
    """What the n-gram tables take where they lie."""
    embedding = model.model.ngram_embeddings
    if embedding.tables is not None:
        return embedding.tables.num_bytes
    return sum(tensor.nbytes for tensor in embedding.embedders.state_dict().values())


def make_parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="Folder of a model.")
    parser.add_argument("--tokenizer", help="Folder or Hub name; by default that of the model.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--rows", type=Path, help="JSON Lines of conversations, whose answers are scored.")
    what.add_argument("--text", type=Path, nargs="+", help="UTF-8 files; the standard library by default.")
    parser.add_argument("--count", type=int, help="Of --rows, only so many.")
    parser.add_argument("--tokens", type=int, default=50_000, help="Of text, whole documents up to so many.")
    parser.add_argument("--window", type=int, default=1024, help="Tokens of a document that are read together.")
    parser.add_argument("--ablations", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--by-order", action="store_true", help="Also zero the tables of each n-gram order alone.")
    parser.add_argument("--seed", type=int, default=0, help="Draws the permutations of `shuffled`.")
    parser.add_argument("--placement", default="resident", choices=("resident", "host", "disk"), help="Of the tables.")
    parser.add_argument("--dtype", default="float32", choices=("bfloat16", "float32"), help="Of the computation.")
    parser.add_argument("--device-map", help="As in `from_pretrained`, such as `auto`; CPU by default.")
    parser.add_argument("--name", default=NAME, help="Of the files.")
    parser.add_argument("--output", type=Path, default=Path("eval/results"), help="Folder for JSON, Markdown and PNG.")
    return parser


def check_arguments(arguments: argparse.Namespace):
    """Raises a `ValueError` that names the option."""
    check_counts(arguments, "tokens", "window", "count")
    if not Path(arguments.model).is_dir():
        raise ValueError(f"`--model` {arguments.model} is no folder")
    if arguments.rows and not arguments.rows.is_file():
        raise ValueError(f"`--rows` {arguments.rows}: no such file")
    config = load_config(arguments.model)
    for name in arguments.ablations:
        check_ablation(name, config)


def main(arguments: argparse.Namespace):
    """Measures, writes."""
    check_arguments(arguments)
    results = measure(arguments)
    paths = write_report(arguments.output, arguments.name, results, as_markdown(results, arguments.name))
    paths.append(arguments.output / f"{arguments.name}.png")
    draw(results, paths[-1])
    Console().print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)


if __name__ == "__main__":
    main(make_parser().parse_args())
