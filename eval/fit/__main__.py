# SPDX-License-Identifier: Apache-2.0
"""Will it fit? What goes where on a machine, what to pass to `from_pretrained`, and how fast it can be at most.

    python -m eval.fit --gpu-memory 24GB --host-memory 64GB
    python -m eval.fit --gpus 2 --gpu-memory 80GB --host-memory 128GB --context 131072 --output outputs/fit
    python -m eval.fit --gpus 0 --host-memory 128GB --model path/to/checkpoint

Reads a config, and in a checkpoint folder the headers of its files; never a weight.
"""

import argparse
from dataclasses import asdict
from datetime import date

import transformers
from rich.console import Console

from eval.checkpoints.quantize import read_bits
from eval.fit.activations import Workload, stage_bytes
from eval.fit.changes import Change, Search, find_changes
from eval.fit.placement import PLACEMENTS, Machine, Model, Plan, plan
from eval.fit.report import as_markdown, draw, show
from eval.fit.speed import Speed, estimate
from eval.fit.weights import Checkpoint, read_checkpoint
from eval.reports.files import write_report
from eval.reports.units import parse_size
from modeling_longcat_lite.experts_quantization import EXPERT_FORMATS
from modeling_longcat_lite.ngram_quantization import ROW_FORMATS, row_format
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_number

TFLOPS = {True: 100.0, False: 1.0}  # with GPUs, and without
RATES = ("gpu_bandwidth", "host_bandwidth", "link_bandwidth", "disk_bandwidth")


def recommend(plans: dict[str, Plan], speeds: dict[str, Speed]) -> str | None:
    """The placement that fits and decodes fastest; `None` if none fits."""
    fitting = [name for name, plan in plans.items() if plan.fits]
    return max(fitting, key=lambda name: speeds[name].decode_tokens_per_second, default=None)


def arguments_to_paste(model: Model, run: Workload, plan: Plan) -> list[str]:
    """The calls of `from_pretrained` and `generate` that the plan stands for, and the commands that they need."""
    checkpoint = model.checkpoint
    name, dtype, config = checkpoint.source, str(checkpoint.dtype).removeprefix("torch."), checkpoint.config
    arguments = [f'"{name}"', f'dtype="{dtype}"']
    if plan.gpus:
        # A budget is rounded down, because it must not grow; the host's is rounded up to hold what it must.
        budgets = {device: size // 2**20 for device, size in plan.max_memory.items()}
        budgets["cpu"] += 1
        listed = ", ".join(f'{str(k) if isinstance(k, int) else f"{k!r}"}: "{v}MiB"' for k, v in budgets.items())
        arguments += ['device_map="auto"', f"max_memory={{{listed}}}".replace("'", '"')]
    arguments.append(f'ngram_tables="{plan.placement}"')
    lines = [f"model = LongCatLiteForCausalLM.from_pretrained({', '.join(arguments)})"]
    rows, stored = checkpoint.rows(None)
    if run.bits and row_format(run.bits).is_packed and model.row_bytes < rows.row_bytes(config.subtable_width, stored):
        lines.insert(0, f"# after: python -m eval.checkpoints.quantize --model {name} --output ... --bits {run.bits}")
    if checkpoint.experts.name != dtype:
        lines.insert(0, f"# with a checkpoint whose routed experts are stored in {checkpoint.experts.name}")
    if run.prefill_tokens < run.context:
        lines.append(f"model.generate(**inputs, prefill_chunk_size={run.chunk})")
    return lines


def described(checkpoint: Checkpoint, bits: int | str | None) -> dict:
    """The model as it goes into the JSON file; `bits` is what is asked of the tables, if anything."""
    tables, table_dtype = checkpoint.rows(bits)
    return {
        "name": checkpoint.name,
        "dtype": str(checkpoint.dtype).removeprefix("torch."),
        "tables": tables.describe(table_dtype),
        "experts": checkpoint.experts.name,
        "draft_head": checkpoint.draft_head,
    }


def report(model: Model, run: Workload, machine: Machine) -> dict:
    """Plans, speeds, recommendation and changes, as they go into the JSON file; sizes in bytes, times in seconds."""
    plans = {name: plan(model, run, machine, name) for name in PLACEMENTS}
    speeds = {name: estimate(model, run, machine, planned) for name, planned in plans.items()}
    best = recommend(plans, speeds)
    return {
        "date": date.today().isoformat(),
        "transformers": transformers.__version__,
        "model": described(model.checkpoint, run.bits),
        "machine": asdict(machine),
        "run": asdict(run) | {"chunk": run.prefill_tokens},
        "stages": stage_bytes(model.checkpoint.config, run, model.checkpoint.dtype),
        "placements": {name: plan_results(planned, speeds[name]) for name, planned in plans.items()},
        "recommended": best,
        "arguments": arguments_to_paste(model, run, plans[best]) if best else [],
        "changes": [asdict(change) for change in changes(model, run, machine, best)],
    }


def changes(model: Model, run: Workload, machine: Machine, best: str | None) -> list[Change]:
    """What would let each placement fit, and keep the link free for the best one."""
    found = [change for name in PLACEMENTS for change in find_changes(Search(model, run, machine, name))]
    return found + (find_changes(Search(model, run, machine, best, on_gpus=True)) if best else [])


def plan_results(plan: Plan, speed: Speed) -> dict:
    """A plan as plain dictionaries; `missing` is empty where it fits."""
    return {
        "gpus": [dict(gpu) for gpu in plan.gpus],
        "host": dict(plan.host),
        "disk": dict(plan.disk),
        "missing": plan.missing,
        "offloaded": plan.offloaded,
        "max_memory": {str(device): size for device, size in plan.max_memory.items()},
        "speed": asdict(speed),
    }


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser(
        "eval.fit", "What goes where on a machine, what to pass to `from_pretrained`, and how fast."
    )
    add = parser.add_argument
    parser.add_shared("--model", help="folder, config.json or name on the Hub; the released model if left out")
    parser.add_shared("--dtype", choices=("auto", "bfloat16", "float16", "float32"))
    add("--gpu-memory", metavar="SIZE", help="of each GPU: `24GB` is 24 * 10^9 bytes, `24GiB` 24 * 2^30")
    add("--host-memory", metavar="SIZE", required=True, help="of the host, in the same form")
    add("--gpus", type=int, default=1, help="number of GPUs; with 0 the host computes")
    add("--context", type=int, default=32768, help="tokens of prompt and answer together")
    parser.add_shared("--batch-size")
    parser.add_renamed("--batch", "--batch-size")
    add("--prefill-chunk", type=int, default=2048, help="tokens of a prompt in one forward; 0 for all")
    add("--bits", type=read_bits, choices=list(ROW_FORMATS), help="row format of the tables; the files' if left out")
    add("--experts", choices=list(EXPERT_FORMATS), help="format of the routed experts; the dtype if left out")
    add("--gpu-bandwidth", metavar="RATE", default="1000GB/s", help="of a GPU's memory")
    add("--host-bandwidth", metavar="RATE", default="50GB/s", help="of host memory")
    add("--link-bandwidth", metavar="RATE", default="25GB/s", help="from the host to a GPU")
    add("--disk-bandwidth", metavar="RATE", default="3GB/s", help="of random reads from disk")
    default = f"{TFLOPS[True]:g} with GPUs and {TFLOPS[False]:g} without if left out"
    add("--tflops", type=float, help=f"10^12 operations per second; {default}")
    parser.add_shared("--output", help="folder for JSON, Markdown and PNG; nothing is written if left out")
    return parser


def make_machine(arguments: argparse.Namespace) -> Machine:
    """The machine of the command line; a wrong option is a `ValueError` that names it."""
    check_number("--gpus", arguments.gpus, least=0, most=64)
    if arguments.gpus and arguments.gpu_memory is None:
        raise ValueError("`--gpu-memory` is missing: say what each GPU has, such as `24GB`, or pass `--gpus 0`.")
    rates = {
        name: float(parse_size(getattr(arguments, name), f"--{name.replace('_', '-')}", per_second=True))
        for name in RATES
    }
    tflops = TFLOPS[arguments.gpus > 0] if arguments.tflops is None else arguments.tflops
    check_number("--tflops", tflops, above=0)
    gpu_memory = parse_size(arguments.gpu_memory, "--gpu-memory") if arguments.gpus else 0
    host_memory = parse_size(arguments.host_memory, "--host-memory")
    return Machine(arguments.gpus, gpu_memory, host_memory, **rates, tflops=tflops)


def make_run(arguments: argparse.Namespace, longest: int) -> Workload:
    """The workload of the command line; a wrong option is a `ValueError` that names it."""
    context, chunk = arguments.context, arguments.prefill_chunk
    if not 1 <= context <= longest:
        raise ValueError(f"`--context` must be from 1 to `max_position_embeddings`, {longest}, got {context}")
    check_number("--batch-size", arguments.batch_size, least=1)
    check_number("--prefill-chunk", chunk, least=0)
    return Workload(context, arguments.batch_size, chunk or context, arguments.bits)


def main(arguments: argparse.Namespace) -> None:
    """Counts and prints; writes if asked."""
    machine = make_machine(arguments)
    dtype = None if arguments.dtype == "auto" else arguments.dtype
    checkpoint = read_checkpoint(arguments.model, dtype, arguments.experts)
    run = make_run(arguments, checkpoint.config.max_position_embeddings)
    results = report(Model.of(checkpoint, run.bits), run, machine)
    console = Console()
    show(results, console)
    # A pasted call needs the path; a kept report should not depend on the machine.
    source, name = checkpoint.source, checkpoint.name
    results["arguments"] = [line.replace(f'"{source}"', f'"{name}"') for line in results["arguments"]]
    if arguments.output:
        paths = write_report(arguments.output, "fit", results, as_markdown(results), draw(results))
        console.print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
