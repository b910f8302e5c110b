# SPDX-License-Identifier: Apache-2.0
"""Random generation cases: each a line of words, from which it can be run alone.

    kind=turns draw=1234 model=bigrams bits=8 placement=disk delta=0 hot=1 attention=sdpa experts=eager mode=greedy ...

    python -m pytest -p tests.model.random_options -k alone tests/model/test_random_generation.py \
        --random-case "kind=turns ..."

What the words leave open (tokens, lengths, where masks have holes) is drawn from `draw`. `random_scenarios.py` says
what each kind does and what it must equal.
"""

import random
from dataclasses import astuple, dataclass, fields, replace

from random_models import MODELS

KINDS = {
    "generate": 32,
    "turns": 18,
    "prefix": 9,
    "forward": 11,
    "hidden": 7,
    "packed": 9,
    "embeds": 7,
    "branches": 4,
    "failure": 3,
}
GENERATES = ("generate", "turns", "prefix", "embeds")
ASSISTED = ("mtp", "lookup", "assistant")
MODES = ("greedy", "greedy", "greedy", "sample", "returns", "beam", *ASSISTED)
CACHES = ("none", "dynamic", "lazy", "own_dynamic", "static", "own_static", "quantized")
MASKS = ("none", "left", "holes")
# What each kind can do; all there is where it is not named.
MODES_OF = {
    "turns": ("greedy", "greedy", "sample", *ASSISTED),
    "prefix": ("greedy", "greedy", "sample", "beam", "mtp", "lookup"),
    "embeds": ("greedy", "beam", "lookup"),
    **dict.fromkeys(("forward", "hidden", "packed", "branches", "failure"), ("greedy",)),
}
CACHES_OF = {
    "turns": ("dynamic", "lazy", "own_dynamic", "own_static", "quantized"),
    "prefix": ("lazy", "own_dynamic"),
    "forward": ("none", "lazy", "own_dynamic", "own_static", "quantized"),
    "hidden": ("lazy", "own_dynamic", "own_static", "quantized"),
    "packed": ("none", "dynamic", "lazy", "own_dynamic"),
    "embeds": ("dynamic", "own_dynamic"),
    "branches": ("none", "lazy", "own_dynamic"),
    "failure": ("lazy", "own_dynamic", "own_static", "quantized"),
}
MASKS_OF = {"branches": ("none",), "packed": ("none", "ones", "trailing", "holes")}


@dataclass(frozen=True)
class Case:
    """One random case."""

    kind: str
    draw: int
    model: str
    bits: int
    placement: str
    delta: int  # rows changed by a row delta
    hot: int  # most used rows kept
    attention: str
    experts: str
    mode: str
    cache: str
    chunk: int  # of the prefill; 0 for none
    mask: str
    ends: int  # rows end early, at a token that one of them chooses
    hooks: str
    compiled: int

    def __str__(self) -> str:
        return " ".join(f"{field.name}={value}" for field, value in zip(fields(self), astuple(self), strict=True))

    @classmethod
    def parse(cls, text: str) -> "Case":
        """The case that prints as `text`."""
        words = dict(word.split("=", 1) for word in text.split())
        return cls(**{field.name: field.type(words[field.name]) for field in fields(cls)})  # type: ignore[operator]


def possible(case: Case) -> Case:
    """The case with what does not go together left out."""
    kind, mode, cache = case.kind, case.mode, case.cache
    if mode in ASSISTED and cache not in ("dynamic", "lazy", "own_dynamic"):
        cache = "dynamic" if kind in ("generate", "turns") else "own_dynamic"
    if kind == "generate" and case.compiled:
        mode, cache = ("beam" if mode == "beam" else "greedy"), "static"
    is_chunked = kind in GENERATES and kind != "embeds" and cache != "none" and mode not in ("lookup", "assistant")
    compiled = case.compiled if kind in ("generate", "packed") else 0
    # The plain experts ask which of them are chosen: what they compute is no single graph.
    experts = "grouped_mm" if compiled and case.experts == "eager" else case.experts
    # `generate` cuts a mask to the tokens that it has, which are fewer than the embeddings: also for a Llama.
    mask = "none" if kind == "embeds" and mode == "lookup" else case.mask
    return replace(
        case,
        mode=mode,
        mask=mask,
        cache=cache,
        chunk=case.chunk if is_chunked else 0,
        compiled=compiled,
        experts=experts,
        hooks="none" if compiled or kind == "failure" else case.hooks,
        ends=case.ends if mode in ("greedy", *ASSISTED) and kind in GENERATES else 0,
        delta=case.delta if case.bits == 16 or case.placement != "resident" else 0,
        hot=case.hot if case.placement != "resident" else 0,
    )


def draw_case(seed: int, index: int) -> Case:
    """Case number `index` of a seed."""
    rng = random.Random(f"{seed} {index}")
    (kind,) = rng.choices(list(KINDS), weights=KINDS.values())
    return possible(
        Case(
            kind=kind,
            draw=rng.randrange(10**6),
            model=rng.choice(list(MODELS)),
            bits=rng.choice((16, 16, 8, 4)),
            placement=rng.choice(("resident", "resident", "host", "disk")),
            delta=rng.randrange(2),
            hot=rng.randrange(2),
            attention=rng.choice(("eager", "sdpa")),
            experts=rng.choice(("eager", "grouped_mm", "batched_mm")),
            mode=rng.choice(MODES_OF.get(kind, MODES)),
            cache=rng.choice(CACHES_OF.get(kind, CACHES)),
            chunk=rng.choice((0, 0, 1, 2, 3, 5)),
            mask=rng.choice(MASKS_OF.get(kind, (*MASKS, "holes"))),
            ends=rng.randrange(2),
            hooks=rng.choice(("none", "none", "capture", "gathered")),
            compiled=int(rng.random() < (0.25 if kind == "packed" else 0.03)),
        )
    )


__all__ = ["ASSISTED", "CACHES", "CACHES_OF", "KINDS", "MASKS", "MASKS_OF", "MODES", "Case", "draw_case"]
