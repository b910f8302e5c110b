# SPDX-License-Identifier: Apache-2.0
"""Will it fit? What goes where on a machine, what to pass to `from_pretrained`, and how fast that can be at most.

    python -m eval.fit --gpu-memory 24GB --host-memory 64GB
    python -m eval.fit --gpus 2 --gpu-memory 80GB --host-memory 128GB --context 131072 --output outputs/fit
    python -m eval.fit --gpus 0 --host-memory 128GB --model path/to/checkpoint

Reads a config, and of a checkpoint folder the headers of its files; never a weight. Without `--model` it is the
released one.
"""

import argparse
from dataclasses import asdict
from datetime import date
from pathlib import Path

import transformers
from rich.console import Console

from eval.fit.activations import Run, stage_bytes
from eval.fit.changes import Change, Search, find_changes
from eval.fit.placement import PLACEMENTS, Machine, Model, Plan, plan
from eval.fit.report import as_markdown, draw, show
from eval.fit.speed import Speed, estimate
from eval.fit.weights import Checkpoint, read_checkpoint
from eval.reports.files import write_report
from eval.reports.units import parse_size
from tokenization.number_options import check_number

TFLOPS = {True: 100.0, False: 1.0}  # with GPUs, and without


def recommend(plans: dict[str, Plan], speeds: dict[str, Speed]) -> str | None:
    """The placement that fits and decodes fastest; `None` if none fits."""
    fitting = [name for name, plan in plans.items() if plan.fits]
    return max(fitting, key=lambda name: speeds[name].decode_tokens_per_second, default=None)


def arguments_to_paste(model: Model, run: Run, plan: Plan) -> list[str]:
    """The two calls, with what the plan says."""
    name, dtype = model.checkpoint.source, str(model.checkpoint.dtype).removeprefix("torch.")
    arguments = [f'"{name}"', f'dtype="{dtype}"']
    if plan.gpus:
        # Rounded down: a budget, which must not grow. The host's holds what it has to.
        budgets = {device: size // 2**20 for device, size in plan.max_memory.items()}
        budgets["cpu"] += 1
        listed = ", ".join(f'{str(k) if isinstance(k, int) else f"{k!r}"}: "{v}MiB"' for k, v in budgets.items())
        arguments += ['device_map="auto"', f"max_memory={{{listed}}}".replace("'", '"')]
    arguments.append(f'ngram_tables="{plan.placement}"')
    lines = [f"model = LongCatLiteForCausalLM.from_pretrained({', '.join(arguments)})"]
    if run.bits and run.bits < model.checkpoint.config.ngram_table_bits:
        lines.insert(0, f"# after: python -m eval.checkpoints.quantize --model {name} --output ... --bits {run.bits}")
    if run.prefill_tokens < run.context:
        lines.append(f"model.generate(**inputs, prefill_chunk_size={run.chunk})")
    return lines


def tables_in(checkpoint: Checkpoint) -> str:
    """What the tables in the files are made of."""
    bits = checkpoint.config.ngram_table_bits
    return f"{bits} bits" if bits < 16 else str(checkpoint.table_dtype).removeprefix("torch.")


def report(model: Model, run: Run, machine: Machine) -> dict:
    """Plans, speeds, recommendation and changes, as they go into the JSON file; sizes in bytes, times in seconds."""
    plans = {name: plan(model, run, machine, name) for name in PLACEMENTS}
    speeds = {name: estimate(model, run, machine, planned) for name, planned in plans.items()}
    best = recommend(plans, speeds)
    checkpoint = model.checkpoint
    return {
        "date": date.today().isoformat(),
        "transformers": transformers.__version__,
        "model": {
            "name": checkpoint.name,
            "dtype": str(checkpoint.dtype).removeprefix("torch."),
            "tables": tables_in(checkpoint),
            "draft_head": checkpoint.draft_head,
        },
        "machine": asdict(machine),
        "run": asdict(run) | {"chunk": run.prefill_tokens},
        "stages": stage_bytes(checkpoint.config, run, checkpoint.dtype),
        "placements": {name: plan_results(planned, speeds[name]) for name, planned in plans.items()},
        "recommended": best,
        "arguments": arguments_to_paste(model, run, plans[best]) if best else [],
        "changes": [asdict(change) for change in changes(model, run, machine, best)],
    }


def changes(model: Model, run: Run, machine: Machine, best: str | None) -> list[Change]:
    """What would let each placement fit, and keep the link free for the best one."""
    found = [change for name in PLACEMENTS for change in find_changes(Search(model, run, machine, name))]
    if best:
        found += find_changes(Search(model, run, machine, best, on_gpus=True))
    return found


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


def make_parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", help="Folder, config.json or Hub name; the released model by default.")
    add("--dtype", choices=["bfloat16", "float16", "float32"], help="To load it in; the checkpoint's by default.")
    add("--gpu-memory", help="Of each GPU: `24GB` is 24 * 10^9 bytes, `24GiB` 24 * 2^30 (what most 24 GB cards have).")
    add("--host-memory", required=True, help="In the same form.")
    add("--gpus", type=int, default=1, help="0: the host computes.")
    add("--context", type=int, default=32768, help="Tokens of a row, prompt and answer.")
    add("--batch", type=int, default=1, help="Rows.")
    add("--prefill-chunk", type=int, default=2048, help="Tokens of a prompt in one forward; 0 for all.")
    add("--bits", type=int, choices=[16, 8, 4], help="Of a value in the n-gram tables; their dtype's by default.")
    add("--gpu-bandwidth", default="1000GB/s", help="Of a GPU's memory.")
    add("--host-bandwidth", default="50GB/s", help="Of host memory.")
    add("--link-bandwidth", default="25GB/s", help="From the host to a GPU.")
    add("--disk-bandwidth", default="3GB/s", help="Of random reads.")
    add(
        "--tflops",
        type=float,
        help=f"10^12 operations a second; {TFLOPS[True]:g} with GPUs, {TFLOPS[False]:g} without.",
    )
    add("--output", type=Path, help="Folder for JSON, Markdown and PNG; none are written by default.")
    return parser


def make_machine(arguments: argparse.Namespace) -> Machine:
    """The machine of the command line; a wrong option is a `ValueError` that names it."""
    check_number("--gpus", arguments.gpus, least=0, most=64)
    if arguments.gpus and arguments.gpu_memory is None:
        raise ValueError("`--gpu-memory` is missing: say what each GPU has, such as `24GB`, or pass `--gpus 0`.")
    rates = {
        name: float(parse_size(getattr(arguments, name), f"--{name.replace('_', '-')}", per_second=True))
        for name in ("gpu_bandwidth", "host_bandwidth", "link_bandwidth", "disk_bandwidth")
    }
    tflops = TFLOPS[arguments.gpus > 0] if arguments.tflops is None else arguments.tflops
    check_number("--tflops", tflops, above=0)
    return Machine(
        gpus=arguments.gpus,
        gpu_memory=parse_size(arguments.gpu_memory, "--gpu-memory") if arguments.gpus else 0,
        host_memory=parse_size(arguments.host_memory, "--host-memory"),
        **rates,
        tflops=tflops,
    )


def make_run(arguments: argparse.Namespace, longest: int) -> Run:
    """The run of the command line; a wrong option is a `ValueError` that names it."""
    if not 1 <= arguments.context <= longest:
        raise ValueError(
            f"`--context` must be from 1 to `max_position_embeddings`, {longest}, got {arguments.context}"
        )
    check_number("--batch", arguments.batch, least=1)
    check_number("--prefill-chunk", arguments.prefill_chunk, least=0)
    return Run(
        context=arguments.context,
        batch=arguments.batch,
        chunk=arguments.prefill_chunk or arguments.context,
        bits=arguments.bits,
    )


def main(arguments: argparse.Namespace):
    """Counts, prints, and writes if asked."""
    machine = make_machine(arguments)
    checkpoint = read_checkpoint(arguments.model, arguments.dtype)
    run = make_run(arguments, checkpoint.config.max_position_embeddings)
    results = report(Model.of(checkpoint, run.bits), run, machine)
    console = Console()
    show(results, console)
    # What is pasted needs the path; what is kept should not depend on the machine.
    source, name = checkpoint.source, checkpoint.name
    results["arguments"] = [line.replace(f'"{source}"', f'"{name}"') for line in results["arguments"]]
    if arguments.output:
        paths = write_report(arguments.output, "fit", results, as_markdown(results))
        paths.append(arguments.output / "fit.png")
        draw(results, paths[-1])
        console.print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)


if __name__ == "__main__":
    main(make_parser().parse_args())
