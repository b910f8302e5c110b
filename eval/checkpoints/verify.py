# SPDX-License-Identifier: Apache-2.0
"""Checks whether a checkpoint fits this package and other runtimes, and reports what is in it.

    python -m eval.checkpoints.verify meituan-longcat/LongCat-Flash-Lite
    python -m eval.checkpoints.verify path/to/checkpoint --runtime vLLM --runtime SGLang

Reads config, tokenizer, index, the headers of the weight files and a few rows, never a whole table; from the Hub, it
fetches ranges of files. It prints what does not fit, with file, tensor or field, the expected value and the fix, and
ends with status 1. It also prints facts that only the weights can tell: whitespace of the chat template, the draft
head's word table, blank or broken rows. A sample can miss a broken row.
"""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.checkpoints.facts import config_facts, file_facts, runtime_findings, value_facts
from eval.checkpoints.files import CheckpointFiles, StoredRows
from eval.checkpoints.problems import Headers, Problem, grouped, read_headers, tensor_problems
from eval.checkpoints.runtime_differences import differences
from eval.checkpoints.runtimes import RUNTIMES
from eval.checkpoints.tokenizer import check_tokenizer, template_facts
from eval.reports.files import portable_path, write_report
from eval.reports.units import format_size
from modeling_longcat_lite import LongCatLiteConfig
from modeling_longcat_lite.whole_files import check_finished
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_counts

NAME = "verify_checkpoint"
COLUMNS = ("file", "where", "expected", "found", "fix", "count")


def read_config(fields: dict[str, Any]) -> tuple[LongCatLiteConfig | None, list[Problem]]:
    """The config, or the problem for which this package refuses it."""
    try:
        return LongCatLiteConfig.from_dict(dict(fields)), []
    except (ValueError, TypeError) as error:
        return None, [Problem("config.json", "a field", "a config that loads", str(error), "Correct the field.")]


def verify(files: CheckpointFiles, rows: int) -> dict[str, Any]:
    """Problems, findings of the runtimes and facts of a checkpoint.

    Args:
        files (`CheckpointFiles`): The checkpoint.
        rows (`int`): Rows to sample of each table.

    Raises:
        `ValueError`: naming what is missing, if there is no config or no weight file.
    """
    fields = files.read_json("config.json")
    config, problems = read_config(fields)
    headers = read_headers(files)
    problems += headers.problems
    facts: dict[str, Any] = {"files": file_facts(files, headers), "config": config_facts(fields)}
    if config is not None:
        problems += tensor_problems(config, headers)
        tokenizer, of_tokenizer = check_tokenizer(files, config)
        facts |= {"tokenizer": tokenizer, "chat template": template_facts(files)}
        values, of_values = value_facts(StoredRows(files, headers.places), config, rows)
        facts |= values
        facts["computed otherwise by"] = {name: "; ".join(differences(name, fields)) for name in RUNTIMES}
        problems += of_tokenizer + of_values
    if "generation_config.json" in files:
        facts["generation_config"] = files.read_json("generation_config.json")
    return {
        "problems": [asdict(problem) for problem in grouped(problems)],
        # A config that is refused may have any sizes.
        "runtimes": {runtime: ["not asked: config.json does not load"] for runtime in RUNTIMES}
        if config is None
        else runtime_findings(fields, tensors_of(headers)),
        "facts": facts,
        "bytes_read": files.bytes_read,
        "bytes_in_all": files.total_bytes,
    }


def tensors_of(headers: Headers) -> dict:
    return {name: tensor for name, (_, tensor) in headers.places.items()}


def lines_of(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Facts as name and value; each entry of a list gives a line."""
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from lines_of(value, f"{name}: ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for entry in value:
                yield name, ", ".join(f"{field} {spoken(one)}" for field, one in entry.items())
        else:
            yield name, spoken(value)


def spoken(value: Any) -> str:
    """A value as a cell shows it; a text with white space that would be lost is quoted."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) and value.isprintable() and value == value.strip() else repr(value)


def as_markdown(results: dict[str, Any]) -> str:
    """The report. Cells hold text of the checkpoint, so line breaks and pipes are escaped."""

    def table(header: tuple[str, ...], rows: list[tuple]) -> str:
        cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
        lines = [header, ("---",) * len(header), *cells]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

    problems = [tuple(problem[column] for column in COLUMNS) for problem in results["problems"]]
    findings = [(runtime, text) for runtime, texts in results["runtimes"].items() for text in texts]
    return "\n".join(
        [
            f"# {results['checkpoint']}\n",
            f"{results['date']}. {read_line(results)}\n",
            "## What does not fit\n",
            table(COLUMNS, problems) if problems else "Nothing: names, shapes, dtypes, config and samples fit.\n",
            "## Other runtimes\n",
            table(("runtime", "finding"), findings) if findings else f"{', '.join(RUNTIMES)}: nothing.\n",
            "## What is in it\n",
            table(("fact", "value"), list(lines_of(results["facts"]))),
        ]
    )


def read_line(results: dict[str, Any]) -> str:
    read, whole = results["bytes_read"], results["bytes_in_all"]
    return f"Read {format_size(read)} of {format_size(whole)} ({100 * read / max(whole, 1):.3g} %)."


def show(results: dict[str, Any], console: Console):
    """Tables on the screen. Text of the checkpoint is not interpreted as markup."""
    facts = Table("fact", "value", title="What is in it")
    for name, value in lines_of(results["facts"]):
        facts.add_row(*(text.replace("[", "\\[") for text in (name, value)))
    findings = Table("runtime", "finding", title="Other runtimes")
    for runtime, texts in results["runtimes"].items():
        for text in texts or ["nothing"]:
            findings.add_row(runtime, text.replace("[", "\\["))
    problems = Table(*COLUMNS, title="What does not fit")
    for problem in results["problems"]:
        problems.add_row(*(str(problem[column]).replace("[", "\\[") for column in COLUMNS))
    for table in (facts, findings, problems) if results["problems"] else (facts, findings):
        console.print(table)
    console.print(read_line(results))
    console.print(f"{results['checkpoint']}: " + ("does not fit" if results["status"] else "fits"))


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser(
        "eval.checkpoints.verify", "Checks whether a checkpoint fits this package and other runtimes."
    )
    parser.add_argument("checkpoint", metavar="DIR", help="folder of the checkpoint, or its name on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--sampled-rows", type=int, default=64, help="rows of each table that are read")
    parser.add_argument(
        "--runtime",
        action="append",
        default=[],
        choices=RUNTIMES,
        help="a runtime whose findings count as failures; may be repeated",
    )
    parser.add_shared("--output", default=Path("outputs/verify_checkpoint"))
    parser.add_renamed("--rows", "--sampled-rows")
    return parser


def main(arguments) -> int:
    """Checks, prints, writes; returns the exit status."""
    check_counts(arguments, "sampled_rows")
    check_finished(arguments.checkpoint)
    console = Console()
    with console.status("reading headers and a few rows"):
        results = verify(CheckpointFiles(arguments.checkpoint, arguments.revision), arguments.sampled_rows)
    status = int(bool(results["problems"]) or any(results["runtimes"][runtime] for runtime in arguments.runtime))
    results |= {
        "date": date.today().isoformat(),
        "checkpoint": portable_path(arguments.checkpoint),
        "revision": arguments.revision,
        "status": status,
    }
    show(results, console)
    paths = write_report(arguments.output, NAME, results, as_markdown(results))
    console.print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)
    return status


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
