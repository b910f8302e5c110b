# SPDX-License-Identifier: Apache-2.0
"""Counts the parameters of a model by part, and how many of them a token activates.

    python -m eval.checkpoints.parameters
    python -m eval.checkpoints.parameters --model path/to/checkpoint --output outputs/parameters

The model is built on the meta device, so no weight is allocated. The report compares it with its vanilla twin,
`config.to_vanilla()`, which has more experts in place of n-gram tables.
"""

from collections import Counter
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from eval.reports.files import markdown_table, write_report
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from tokenization.command_line import CommandParser, run_command

ACTIVATED_DEFINITION = (
    "Total: with selection biases, without the draft head. Activated: the parameters that a token is multiplied by, "
    "which are those of attention, dense MLPs, norms, the router with its selection bias, the language-model head and "
    "the selected routed experts. Not counted: input embeddings and their projections, zero experts (they have no "
    "parameters), and the draft head."
)

# A tensor belongs to the first part whose text its name contains.
PARTS = {
    "draft head": ".mtp.",
    "n-gram tables": ".ngram_embeddings.embedders.",
    "n-gram projections": ".ngram_embeddings.post_proj.",
    "routed experts": ".experts.",
    "router": ".router.",
    "attention": ".self_attn.",
    "dense MLP": ".mlps.",
    "word embedding": ".embed_tokens.",
    "language-model head": "lm_head.",
    "norms": "norm",
}
NOT_ACTIVATED = ("draft head", "n-gram tables", "n-gram projections", "word embedding", "routed experts")


def parameters_by_part(config: LongCatLiteConfig) -> Counter:
    """Parameters of a model of `config`, and its selection biases, which are buffers."""
    with torch.device("meta"):
        model = LongCatLiteForCausalLM(config)
    parts: Counter = Counter()
    for name, tensor in model.state_dict().items():
        parts[next(part for part, text in PARTS.items() if text in name)] += tensor.numel()
    return parts


def report(config: LongCatLiteConfig) -> dict:
    """Totals, n-gram share, and activated parameters by the number of routed experts a token selects."""
    parts = parameters_by_part(config)
    total = sum(parts.values()) - parts["draft head"]
    ngram = parts["n-gram tables"] + parts["n-gram projections"]
    expert = 3 * config.hidden_size * config.expert_ffn_hidden_size * config.num_layers
    always = sum(count for part, count in parts.items() if part not in NOT_ACTIVATED)
    steps = sorted({config.moe_topk * i // 3 for i in range(4)})
    return {
        "total": total,
        "selection_biases": (config.n_routed_experts + config.zero_expert_num) * config.num_layers,
        "ngram": ngram,
        "ngram_share": ngram / total,
        "draft_head": parts["draft head"],
        "activated_by_routed_experts": {str(k): always + k * expert for k in steps},
        "n_routed_experts": config.n_routed_experts,
        "zero_expert_num": config.zero_expert_num,
        "moe_topk": config.moe_topk,
        "mean_routed_experts_if_balanced": config.moe_topk
        * config.n_routed_experts
        / (config.n_routed_experts + config.zero_expert_num),
        "parts": {part: parts[part] for part in PARTS if parts[part]},
    }


def as_rows(model: dict, vanilla: dict) -> list[tuple[str, str, str, str]]:
    """Label, model, vanilla twin, twin / model - 1."""

    def row(label: str, ours: float, theirs: float) -> tuple[str, str, str, str]:
        gap = f"{100 * (theirs / ours - 1):+.2f} %" if ours and theirs else ""
        return label, f"{ours:,}", f"{theirs:,}", gap

    rows = [row("total", model["total"], vanilla["total"])]
    rows.append(("n-gram share", f"{100 * model['ngram_share']:.1f} %", f"{100 * vanilla['ngram_share']:.1f} %", ""))
    rows.append(row("n-gram", model["ngram"], vanilla["ngram"]))
    for part in PARTS:
        ours, theirs = model["parts"].get(part, 0), vanilla["parts"].get(part, 0)
        if ours or theirs:
            rows.append(row(f"  {part}", ours, theirs))
    for k, count in model["activated_by_routed_experts"].items():
        rows.append(row(f"activated, {k} routed", count, vanilla["activated_by_routed_experts"][k]))
    rows.append(row("routed experts a layer", model["n_routed_experts"], vanilla["n_routed_experts"]))
    rows.append(row("zero experts a layer", model["zero_expert_num"], vanilla["zero_expert_num"]))
    return rows


def write(output: Path, results: dict, rows: list[tuple[str, str, str, str]]):
    """Writes JSON and Markdown."""
    text = f"# Parameters\n\n{results['date']}, torch {results['torch']}\n\n{ACTIVATED_DEFINITION}\n\n"
    text += markdown_table(["", "model", "vanilla twin", "difference"], rows)
    write_report(output, "parameter_report", results, text)


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser(
        "eval.checkpoints.parameters", "Counts the parameters of a model by part, and those that a token activates."
    )
    parser.add_shared("--model", help="folder of the model, or its name on the Hub; the released model if left out")
    parser.add_shared("--output", default=Path("eval/results"))
    parser.add_renamed("--config", "--model")
    return parser


def main(arguments):
    """Counts, prints, writes."""
    config = LongCatLiteConfig.from_pretrained(arguments.model) if arguments.model else LongCatLiteConfig()
    model, vanilla = report(config), report(config.to_vanilla())
    rows = as_rows(model, vanilla)
    table = Table("", "model", "vanilla twin", "difference", title="Parameters")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(ACTIVATED_DEFINITION)
    results = {"date": date.today().isoformat(), "torch": torch.__version__, "model": model, "vanilla": vanilla}
    write(arguments.output, results, rows)
    console.print(f"Written: {arguments.output}/parameter_report.json and .md")


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
