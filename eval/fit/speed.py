# SPDX-License-Identifier: Apache-2.0
"""Speed of decoding and prefill from the rates of a machine: bytes to move over bytes per second.

An upper bound: kernel launches and Python are not counted. [`FORMULA`] explains it in a report.

Shapes: B batch rows, L tokens with history, E routed experts, Z zero experts, k experts that a token selects.
"""

from collections import Counter
from dataclasses import dataclass

from eval.fit.activations import Workload, attention_products, latents_are_cheaper
from eval.fit.placement import Machine, Model, Plan
from eval.fit.weights import EXPERTS, TABLES, Unit
from modeling_longcat_lite import LongCatLiteConfig

PAGE = 4096
DISK_LATENCY = 1e-4  # seconds

# Only some rows of the first two are read; plain decoding does not run the last.
NOT_MULTIPLIED = ("word embedding", TABLES, "draft head")
HEAD = "language-model head"

FORMULA = """\
The time of a forward is the sum of:

* *memory*: the weights that it multiplies with and the cache, over `--gpu-bandwidth` (`--host-bandwidth` without
  GPUs; several GPUs work in turn, as a device map has them do). It reads E (1 - (1 - k/(E+Z))^tokens) of E experts, as
  if routing were balanced and independent. Decoding a token copies the cache as it grows (one read, one write) and
  reads the latents of all L tokens twice.
* *arithmetic*: 2 operations per weight and token, and attention, over `--tflops`. Memory and arithmetic overlap; the
  longer one counts.
* *link*: every weight in host memory (all experts of a layer move, selected or not), over the slower of
  `--link-bandwidth` and `--host-bandwidth`.
* *rows*: one n-gram row per token and table; from the host over the link, from disk as pages of 4 KiB over
  `--disk-bandwidth` after 0.1 ms, none of them cached.

Decoding is at the full context and without drafts. A prefill reads the whole context in chunks, with a history of half
the context on average. Real runs are slower, in eager mode mostly because of kernel launches.
"""


@dataclass(frozen=True)
class Speed:
    """Seconds by cause of one decoding step and of one prefill, and tokens per second of all rows together."""

    decode: dict[str, float]
    prefill: dict[str, float]
    decode_tokens_per_second: float
    prefill_tokens_per_second: float


def expert_share(config: LongCatLiteConfig, tokens: int) -> float:
    """Share of the routed experts that at least one of `tokens` selects, if routing is balanced and independent."""
    return 1 - (1 - min(chance(config), 1.0)) ** tokens


def chance(config: LongCatLiteConfig) -> float:
    """That a token selects a given expert, if routing is balanced."""
    return config.moe_topk / (config.n_routed_experts + config.zero_expert_num)


def multiplied(config: LongCatLiteConfig, units: list[Unit]) -> dict[str, int]:
    """Bytes by part of the weights that tokens are multiplied with; a tied word embedding counts as the head."""
    parts: Counter = Counter()
    for unit in units:
        parts.update({part: size for part, size in unit.parts.items() if part not in NOT_MULTIPLIED})
        if config.tie_word_embeddings:
            parts[HEAD] += unit.parts.get("word embedding", 0)
    return parts


def read_bytes(config: LongCatLiteConfig, units: list[Unit], tokens: int) -> float:
    """Bytes of weights that a forward of `tokens` reads."""
    share = expert_share(config, tokens)
    return sum(size * (share if part == EXPERTS else 1.0) for part, size in multiplied(config, units).items())


def cache_traffic(model: Model, run: Workload, history: int) -> int:
    """Bytes that a decoding step moves for the cache: its copy as it grows, and the latents, read twice."""
    config, itemsize = model.checkpoint.config, model.checkpoint.dtype.itemsize
    latent, rotated = config.kv_lora_rank, config.qk_rope_head_dim
    per_token = 2 * (latent + rotated) + 2 * latent + rotated
    return run.batch * history * per_token * itemsize * config.num_hidden_layers


def weight_operations(model: Model, units: list[Unit], tokens: int, rows: int) -> float:
    """Floating-point operations on weights for `tokens`; the head scores one token in each of `rows`."""
    config, itemsize = model.checkpoint.config, model.checkpoint.dtype.itemsize
    matrix = (config.hidden_size, config.expert_ffn_hidden_size)
    bytes_per_value = {EXPERTS: model.checkpoint.experts.num_bytes(matrix) / (matrix[0] * matrix[1])}
    times = {EXPERTS: tokens * chance(config), HEAD: rows}
    parts = multiplied(config, units).items()
    return 2 * sum(size / bytes_per_value.get(part, itemsize) * times.get(part, tokens) for part, size in parts)


def attention_operations(model: Model, run: Workload, length: int, history: int) -> float:
    """Floating-point operations of all attentions for `length` tokens per row after `history`, without weights."""
    config = model.checkpoint.config
    in_latents, expanded = attention_products(config, length, history)
    per_head = in_latents if length == 1 or latents_are_cheaper(config, run) else expanded
    # `kv_b_proj` on the new tokens is among the weights.
    per_head -= length * config.kv_lora_rank * (config.qk_nope_head_dim + config.v_head_dim)
    return 2.0 * per_head * config.num_attention_heads * config.num_hidden_layers * run.batch


def row_seconds(model: Model, machine: Machine, plan: Plan, tokens: int) -> float:
    """Time for the n-gram rows of `tokens`."""
    row_bytes = model.row_bytes
    rows = tokens * model.checkpoint.config.num_subtables
    link = machine.link_bandwidth if machine.gpus else machine.host_bandwidth
    if plan.placement == "resident":
        return rows * row_bytes / (machine.gpu_bandwidth if machine.gpus else machine.host_bandwidth)
    moved = rows * row_bytes / min(link, machine.host_bandwidth)
    if plan.placement == "host":
        return moved
    pages = 1 + (row_bytes - 1) / PAGE  # a row may lie across two
    return moved + DISK_LATENCY + rows * pages * PAGE / machine.disk_bandwidth


def forward_seconds(model: Model, run: Workload, machine: Machine, plan: Plan, length: int, history: int) -> dict:
    """Seconds by cause of one forward of `length` tokens per row after `history`."""
    units, tokens = plan.on_gpu + plan.on_host, run.batch * length
    memory = read_bytes(model.checkpoint.config, units, tokens) + cache_traffic(model, run, history)
    operations = weight_operations(model, units, tokens, run.batch)
    operations += attention_operations(model, run, length, history)
    reading = memory / (machine.gpu_bandwidth if machine.gpus else machine.host_bandwidth)
    computing = operations / (machine.tflops * 1e12)
    seconds = {
        "memory": reading if reading >= computing else 0.0,
        "arithmetic": computing if computing > reading else 0.0,
        "link": sent_bytes(plan) / min(machine.link_bandwidth, machine.host_bandwidth),
        "rows": row_seconds(model, machine, plan, tokens),
    }
    return {cause: second for cause, second in seconds.items() if second}


def sent_bytes(plan: Plan) -> int:
    """Bytes of weights that one forward sends through the link; the draft head does not run."""
    return plan.offloaded - (sum(u.parts.get("draft head", 0) for u in plan.on_host) if plan.gpus else 0)


def estimate(model: Model, run: Workload, machine: Machine, plan: Plan) -> Speed:
    """Decoding at the full context, and a prefill of it."""
    decode = forward_seconds(model, run, machine, plan, 1, run.context)
    chunk = run.prefill_tokens
    chunks = run.context / chunk
    one = forward_seconds(model, run, machine, plan, chunk, max(run.context // 2, chunk))
    prefill = {cause: seconds * chunks for cause, seconds in one.items()}
    return Speed(decode, prefill, run.batch / sum(decode.values()), run.batch * run.context / sum(prefill.values()))


__all__ = ["FORMULA", "Speed", "estimate"]
