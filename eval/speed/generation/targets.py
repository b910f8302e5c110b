# SPDX-License-Identifier: Apache-2.0
"""What the measured ratios have to reach, on two CPU cores."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A bound on one ratio of the rows that it selects; of several alternatives of one kind the best one counts."""

    text: str
    section: str
    batch: int
    tokens: int
    dtypes: tuple[str, ...]
    kind: str  # "dynamic", "compiled" or "one pass": how the alternative's name begins
    at_least: float | None = None  # times faster than the baseline
    at_most: float | None = None  # times slower than the floor


BOTH = ("fp32", "bf16")
TARGETS = (
    Target("prefill of 512 against in-tree", "prefill", 1, 512, ("fp32",), "dynamic", at_least=1.2),
    Target("prefill of 512 against the floor", "prefill", 1, 512, ("bf16",), "dynamic", at_most=2.0),
    Target("compiled decode, short context", "decode", 1, 128, BOTH, "compiled", at_least=2.0),
    Target("decode at 8k", "decode", 1, 8192, BOTH, "dynamic", at_least=6.0),
    Target("compiled decode at 8k", "decode", 1, 8192, BOTH, "compiled", at_least=6.0),
    Target("decode at 16k", "decode", 1, 16384, BOTH, "dynamic", at_least=10.0),
    Target("compiled decode at 16k", "decode", 1, 16384, BOTH, "compiled", at_least=10.0),
    Target("n-gram layer at decode", "n-gram layer", 1, 1, BOTH, "one pass", at_least=4.0),
    Target("n-gram layer at prefill of 512", "n-gram layer", 1, 512, BOTH, "one pass", at_least=2.0),
    Target("n-gram layer at prefill of 4096", "n-gram layer", 1, 4096, BOTH, "one pass", at_least=2.0),
)


def judge(target: Target, row: dict) -> dict | None:
    """The best ratio among the alternatives of the target's kind; `None` where the row has none of them."""
    against_floor = target.at_most is not None
    names = [name for name in row["ms"] if name.startswith(target.kind)]
    if not names:
        return None
    ratios = row["ratios"]
    if against_floor:
        value, name = min((ratios[f"{name} / floor"], name) for name in names)
    else:
        by_name = {key.partition(" / ")[2]: ratio for key, ratio in ratios.items() if not key.endswith("/ floor")}
        value, name = max((by_name[name], name) for name in names)
    bound = target.at_most if target.at_most is not None else target.at_least
    assert bound is not None
    return {
        "target": target.text,
        "dtype": row["dtype"],
        "alternative": name,
        "bound": f"{'at most' if against_floor else 'at least'} {bound:g}",
        "value": value,
        "met": value <= bound if against_floor else value >= bound,
    }


def judge_all(rows: Sequence[dict]) -> list[dict]:
    """One entry for each target and dtype that was measured."""
    verdicts = []
    for target in TARGETS:
        for row in rows:
            place = (row["section"], row["batch"], row["tokens"])
            if place == (target.section, target.batch, target.tokens) and row["dtype"] in target.dtypes:
                verdicts.append(judge(target, row))
    return [verdict for verdict in verdicts if verdict]


__all__ = ["TARGETS", "Target", "judge_all"]
