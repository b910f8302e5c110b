# SPDX-License-Identifier: Apache-2.0
"""What a model loses without its n-gram tables: zeroed, shuffled, or in 8 or 4 bits.

    python -m eval.ngrams.ablation --model outputs/demo/model --rows outputs/demo/data/test.jsonl --by-order
    python -m eval.ngrams.ablation --model CHECKPOINT --text book.txt --ablations on zeroed --ngram-tables disk

Scores the answers of held-out conversations, given the questions, or whole documents: given files, or the standard
library of the running Python. Every ablation scores the same tokens, so differences are paired, token by token; the
position of a token is that in its answer, or in its window. `ablated.py` defines the ablations; they need no second
copy of the tables, wherever these are.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from eval.checkpoints.load import ModelFolder
from eval.losses.answers import losses_by_answer, read_rows
from eval.losses.text import longest_window, losses_by_window, tokenize_documents
from eval.ngrams.ablation.ablated import ABLATIONS, ablated, check_ablation
from eval.ngrams.presentation import TOTAL_COLOUR
from eval.reports.files import format_table, markdown_table, portable_path, write_report
from eval.reports.machine import describe_machine
from eval.reports.units import format_size
from modeling_longcat_lite import LongCatLiteForCausalLM
from tokenization.command_line import SHARED, CommandParser, run_command
from tokenization.number_options import check_counts
from training.data.local_text import documents

NAME = "ngram_ablation"
WHAT = """\
*zeroed*: every row is 0. *shuffled*: every row is another row of its table. *int8*, *int4*: rows as
`eval.checkpoints.quantize` would store them. *Added* is the paired difference from *on*, token by token, with its
standard error, which takes the tokens as independent.
"""
Score = Callable[[LongCatLiteForCausalLM], list[torch.Tensor]]


def variants(names: list[str], by_order: bool, config) -> dict[str, dict]:
    """Label of each run, and its arguments of [`ablated`]; `"on"`, the baseline, comes first."""
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
    """Loss in nats per token and bits per byte, and its difference from that of the unchanged model."""
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
    """The function that scores a model, and a description of what it scores: `source`, `unit`, `parts`, `bytes`."""
    if arguments.rows:
        rows = read_rows(arguments.rows, arguments.count)
        if not rows:
            raise ValueError(f"{arguments.rows} has no conversation")
        num_bytes = sum(len(messages[1]["content"].encode()) for messages in rows)
        about = {
            "source": portable_path(str(arguments.rows)),
            "unit": "answers",
            "parts": len(rows),
            "bytes": num_bytes,
        }
        return lambda model: losses_by_answer(model, tokenizer, rows), about
    read = tokenize_documents(tokenizer, documents(arguments.text), arguments.tokens)
    window = min(arguments.window, longest)
    source = "given files" if arguments.text else f"Python's standard library, {read.names[0]} to {read.names[-1]}"
    about = {"source": source, "unit": "documents", "parts": len(read.names), "bytes": read.num_bytes}
    return lambda model: losses_by_window(model, read, window), {**about, "window": window}


def measure(arguments: argparse.Namespace) -> dict:
    """Loads the model once and scores it under each ablation."""
    folder = ModelFolder(arguments.model, arguments.tokenizer)
    options = {"dtype": getattr(torch, arguments.dtype), "ngram_tables": arguments.ngram_tables}
    model = folder.load(device_map=arguments.device_map, **options)
    score, scored = prepare(arguments, folder.tokenizer, longest_window(model.config))
    measured: dict[str, list[torch.Tensor]] = {}
    for label, run in variants(arguments.ablations, arguments.by_order, model.config).items():
        with ablated(model, seed=arguments.seed, **run):
            measured[label] = score(model)
        print(f"{label}: {torch.cat(measured[label]).mean():.4f} nats per token")
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
    return folder.result_file(
        NAME,
        results,
        path=portable_path(arguments.model),
        machine=describe_machine(),
        dtype=arguments.dtype,
        placement=arguments.ngram_tables,
        table_bytes=table_bytes(model),
        seed=arguments.seed,
        scored=scored,
        ablations=found,
    )


def table_bytes(model: LongCatLiteForCausalLM) -> int:
    """Bytes of the n-gram tables, wherever they are."""
    embedding = model.model.ngram_embeddings
    if embedding.tables is not None:
        return embedding.tables.num_bytes
    return sum(tensor.nbytes for tensor in embedding.embedders.state_dict().values())


def places(bucket: dict) -> str:
    """The positions of a bucket as text."""
    return str(bucket["first"]) if bucket["first"] == bucket["last"] else f"{bucket['first']} to {bucket['last']}"


def as_markdown(results: dict, name: str) -> str:
    """The whole report; its chart is `{name}.png`."""
    machine, scored, ablations = results["machine"], results["scored"], results["ablations"]
    columns = (
        ("n-gram tables", "{label}"),
        ("nats per token", "{loss:.4f}"),
        ("bits per byte", "{bits_per_byte:.4f}"),
        ("added, nats per token", "{added}"),
    )
    rows = [{"label": label, "added": "", **one} for label, one in ablations.items()]
    for row in rows[1:]:  # all but "on"
        row["added"] = f"{row['added_loss']:+.4f} ± {row['added_loss_standard_error']:.4f}"
    buckets = ablations["on"]["by_position"]
    by_position = [
        [
            places(bucket),
            f"{bucket['tokens']:,}",
            *(f"{one['by_position'][i]['loss']:.3f}" for one in ablations.values()),
        ]
        for i, bucket in enumerate(buckets)
    ]
    where = "its answer" if scored["unit"] == "answers" else f"a window of {scored['window']:,} tokens"
    return "\n".join(
        [
            "# What the n-gram tables are worth\n",
            f"{machine['date']}, torch {machine['torch']}, transformers {machine['transformers']}, {machine['cpu']}.",
            f"Model `{results['path']}` in {results['dtype']}, tables {results['placement']}, "
            f"{format_size(results['table_bytes'])}. Scored: {scored['parts']:,} {scored['unit']} of "
            f"{scored['source']}, {scored['tokens']:,} tokens, {scored['bytes']:,} bytes. Seed {results['seed']}.\n",
            WHAT,
            format_table(columns, rows),
            f"![Loss added, and by position]({name}.png)\n",
            f"## By position\n\nNats per token by the position of the token in {where}, counted from 0.\n",
            markdown_table(["position", "tokens", *ablations], by_position),
        ]
    )


def draw(results: dict) -> Figure:
    """Loss added by each ablation, and loss by position."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    added, positions = figure.subplots(1, 2)
    ablations = results["ablations"]
    labels = [label for label in ablations if label != "on"]
    palette = colormaps["tab10"]
    colours: dict = {label: palette(i % palette.N) for i, label in enumerate(labels)} | {"on": TOTAL_COLOUR}
    bars = added.barh(
        labels,
        [ablations[label]["added_loss"] for label in labels],
        xerr=[ablations[label]["added_loss_standard_error"] for label in labels],
        color=[colours[label] for label in labels],
    )
    added.bar_label(bars, fmt="%+.4f", padding=4)
    added.margins(x=0.2)
    added.invert_yaxis()
    added.set(xlabel="nats per token", title=f"Loss added to {ablations['on']['loss']:.3f}")
    for label in (*labels, "on"):  # the baseline is drawn last, on top of the others
        losses = [bucket["loss"] for bucket in ablations[label]["by_position"]]
        positions.plot(losses, "o--" if "-grams" in label else "o-", ms=3, color=colours[label], label=label)
    buckets = ablations["on"]["by_position"]
    positions.set_xticks(range(len(buckets)), [places(bucket) for bucket in buckets], rotation=30)
    where = "answer" if results["scored"]["unit"] == "answers" else "window"
    positions.set(xlabel=f"position in the {where}", ylabel="nats per token", title="By position")
    positions.grid(alpha=0.3)
    figure.legend(*positions.get_legend_handles_labels(), loc="outside right center", fontsize=9)
    return figure


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.ngrams.ablation", __doc__.split("\n")[0])
    parser.add_shared("--model", required=True, help="folder of a model")
    parser.add_shared("--tokenizer", help="folder or Hub name of the tokenizer; the model's own if left out")
    scored = parser.add_mutually_exclusive_group()
    scored.add_argument(
        "--rows", **SHARED["--rows"] | {"help": "JSON Lines with `messages`, whose answers are scored"}
    )
    scored.add_argument(
        "--text", **SHARED["--text"] | {"help": "text files, UTF-8; Python's standard library if left out"}
    )
    parser.add_argument("--count", type=int, help="conversations of --rows to score; all if left out")
    parser.add_argument("--tokens", type=int, default=50_000, help="read whole documents up to this many tokens")
    parser.add_argument("--window", type=int, default=1024, help="tokens of a document that are read at once")
    parser.add_argument(
        "--ablations", nargs="+", choices=ABLATIONS, default=list(ABLATIONS), help="what is done to the tables"
    )
    parser.add_argument("--by-order", action="store_true", help="also zero the tables of each n-gram order alone")
    parser.add_shared("--seed", help="seed of the permutations of `shuffled`")
    parser.add_shared("--ngram-tables")
    parser.add_renamed("--placement", "--ngram-tables")
    parser.add_shared("--dtype", default="float32", choices=("bfloat16", "float32"), help="dtype of the computation")
    parser.add_argument("--device-map", help="as in `from_pretrained`, for example `auto`; the CPU if left out")
    parser.add_shared("--name", default=NAME)
    parser.add_shared("--output", default=Path("eval/results"))
    return parser


def check_arguments(arguments: argparse.Namespace):
    """Raises a `ValueError` that names the option."""
    check_counts(arguments, "tokens", "window", "count")
    if not Path(arguments.model).is_dir():
        raise ValueError(f"`--model` {arguments.model} is not a folder")
    if arguments.rows and not arguments.rows.is_file():
        raise ValueError(f"`--rows` {arguments.rows}: no such file")
    config = ModelFolder(arguments.model).ngram_config
    for name in arguments.ablations:
        check_ablation(name, config)


def main(arguments: argparse.Namespace):
    """Measures, writes."""
    check_arguments(arguments)
    results = measure(arguments)
    markdown = as_markdown(results, arguments.name)
    paths = write_report(arguments.output, arguments.name, results, markdown, draw(results))
    print("Written: " + ", ".join(map(str, paths)))


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
