# SPDX-License-Identifier: Apache-2.0
"""What a placement of the tables may cost, judged on the cases that `eval.speed.placement.run` measured.

Cold reads are judged on milliseconds or, where the drive is slower than that, against bare reads of the same run.
"""

from collections.abc import Callable, Sequence
from statistics import median

ADDED_PER_TOKEN = 1.5  # ms
ADDED_PER_PREFILL = 0.7  # s
OVER_BARE_READS = 1.3
OVER_RESIDENT = 1.15
ANONYMOUS = 300  # MB over the backbone
LOAD_SECONDS, LOAD_ANONYMOUS = 2.0, 200  # s, MB for the tables


def find_case(results: dict, placement: str, state: str, tables: str = "full") -> dict | None:
    """The case of a placement, state and size of tables; `None` if it was left out."""
    wanted = (placement, state, tables)
    return next(
        (case for case in results["cases"] if (case["placement"], case["state"], case["tables"]) == wanted), None
    )


def middle(runs: Sequence[dict], field: str) -> float:
    """Median over runs."""
    return median(run[field] for run in runs)


def over_bare(runs: Sequence[dict]) -> float:
    """Median over runs of what was added, in times of the bare reads beside it."""
    return median(run["added_seconds"] / run["bare_seconds"] for run in runs)


def verdict(requirement: str, target: str, figure: str, met: bool) -> dict:
    return {"requirement": requirement, "target": target, "figure": figure, "met": met}


def judge_cold(requirement: str, runs: Sequence[dict], bound: float, unit: str) -> dict:
    """Added time at most `bound`, in `unit` `"ms"` or `"s"`, or at most 1.3 times the bare reads."""
    scale = 1000 if unit == "ms" else 1
    added, bare, ratio = scale * middle(runs, "added_seconds"), scale * middle(runs, "bare_seconds"), over_bare(runs)
    return verdict(
        requirement,
        f"at most {bound:g} {unit}, or {OVER_BARE_READS:g} x bare reads",
        f"{added:.2f} {unit}; bare reads {bare:.2f} {unit}, {ratio:.2f} x",
        added <= bound or ratio <= OVER_BARE_READS,
    )


def judge_disk_cold(results: dict) -> list[dict]:
    case = find_case(results, "disk", "cold")
    if case is None:
        return []
    tokens = results["plan"]["prefill_tokens"]
    return [
        judge_cold("disk, cold: added per decoded token", case["decode"], ADDED_PER_TOKEN, "ms"),
        judge_cold(f"disk, cold: added per prefill of {tokens:,}", case["prefill"], ADDED_PER_PREFILL, "s"),
    ]


def judge_evicted(results: dict) -> list[dict]:
    case = find_case(results, "disk", "evicted")
    if case is None:
        return []
    requirement = "disk, evicted before every token: added per decoded token"
    return [judge_cold(requirement, case["decode"], ADDED_PER_TOKEN, "ms")]


def judge_warm(results: dict) -> list[dict]:
    return [
        verdict(
            f"{placement}, warm: {phase} against resident",
            f"at most {OVER_RESIDENT:g} x",
            f"{ratio:.3f} x",
            ratio <= OVER_RESIDENT,
        )
        for phase in ("decode", "prefill")
        for placement, ratio in results["in_turns"][phase]["ratios"].items()
    ]


def judge_anonymous(results: dict) -> list[dict]:
    """The peak of decoding and prefill with tables on disk, at both sizes, over that of the backbone alone."""
    backbone = find_case(results, "resident", "warm", "none")
    grown = {}
    for tables in ("full", "eighth"):
        case = find_case(results, "disk", "cold", tables)
        if case is not None and backbone is not None:
            grown[tables] = (case["memory"]["anonymous"] - backbone["memory"]["anonymous"]) / 1e6
    if not grown:
        return []
    figure = ", ".join(f"{megabytes:.0f} MB with {tables} tables" for tables, megabytes in grown.items())
    requirement = "disk: anonymous memory over the backbone's, whatever the tables' size"
    return [verdict(requirement, f"at most {ANONYMOUS} MB", figure, max(grown.values()) <= ANONYMOUS)]


def judge_load(results: dict) -> list[dict]:
    case, backbone = find_case(results, "disk", "cold"), find_case(results, "resident", "warm", "none")
    if case is None or backbone is None:
        return []
    seconds = case["load"]["seconds"]
    megabytes = (case["load"]["memory"]["anonymous"] - backbone["load"]["memory"]["anonymous"]) / 1e6
    return [
        verdict(
            "disk, cold: load",
            f"under {LOAD_SECONDS:g} s and {LOAD_ANONYMOUS} MB of anonymous memory for the tables",
            f"{seconds:.2f} s, {megabytes:.0f} MB",
            seconds < LOAD_SECONDS and megabytes < LOAD_ANONYMOUS,
        )
    ]


JUDGES: tuple[Callable[[dict], list[dict]], ...] = (
    judge_disk_cold,
    judge_warm,
    judge_anonymous,
    judge_evicted,
    judge_load,
)


def judge_all(results: dict) -> list[dict]:
    """Requirement, target, figure, met: one entry for each target that was measured."""
    return [entry for judge in JUDGES for entry in judge(results)]


__all__ = ["find_case", "judge_all", "middle", "over_bare"]
