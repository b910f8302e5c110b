# SPDX-License-Identifier: Apache-2.0
"""Points of the scaling study as configs: the same total and the same activated parameters, spent differently.

A point defines the ratio of total to activated parameters, the share of the total in n-gram tables, and the shape of
these tables. Three numbers of the config are free and are solved for: the numbers of routed experts and of table rows
give the total; the width of the dense MLPs compensates for the routers, which grow with the experts and add to the
activated parameters.
"""

import hashlib
import json
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import torch

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from tokenization.number_options import check_number
from training.routers.counts import activated_parameters

TOLERANCE = 0.01  # of total and of activated parameters
ROUNDS = 4  # of solving for experts and width in turn: each changes the other a little


@dataclass(frozen=True)
class Point:
    """One model of the grid.

    Args:
        total_ratio (`float`): Total parameters divided by activated ones.
        ngram_share (`float`): Share of the total; 0 is the vanilla twin, without n-gram embedding.
        max_order, splits (`int`): N and K: orders 2 to N, K sub-tables each.
        ratio_fraction (`float`): Fractional part of `ngram_vocab_size_ratio`; 0 is an integer ratio.
        amplification (`str`): Amplification of the embedding: `"none"`, `"sqrt_d"` or `"layer_norm"`.
        hidden_size, num_layers (`int`): Width and depth, which determine the activated parameters.
    """

    total_ratio: float = 12.0
    ngram_share: float = 0.5
    max_order: int = 4
    splits: int = 4
    ratio_fraction: float = 0.5
    amplification: str = "layer_norm"
    hidden_size: int = 96
    num_layers: int = 2

    def __post_init__(self):
        check_number("total_ratio", self.total_ratio, above=0)
        check_number("ngram_share", self.ngram_share, least=0, below=1)
        check_number("ratio_fraction", self.ratio_fraction, least=0, below=1)
        for name in ("max_order", "splits", "hidden_size", "num_layers"):
            check_number(name, getattr(self, name), least=1)

    def label(self, varied: list[str]) -> str:
        """The fields that an experiment varies, as text for tables."""
        return ", ".join(
            f"{name} {getattr(self, name):g}" if name != "amplification" else self.amplification for name in varied
        )


def grid(base: dict[str, Any], vary: dict[str, list]) -> list[Point]:
    """All combinations of `vary`, in order. A key such as `max_order splits` varies several fields together.

    Raises:
        `ValueError`: a field that a point does not have.
    """
    known = {field.name for field in fields(Point)}
    for name in [*base, *(name for key in vary for name in key.split())]:
        if name not in known:
            raise ValueError(f"`{name}` is not a field of a point; the fields are {', '.join(sorted(known))}")
    points = []
    for values in product(*vary.values()):
        chosen = dict(base)
        for key, value in zip(vary, values, strict=True):
            names = key.split()
            chosen |= dict(zip(names, value if len(names) > 1 else [value], strict=True))
        points.append(Point(**chosen))
    return points


@dataclass(frozen=True)
class Matched:
    """A solved point: the fields of its config, and its parameters."""

    fields: dict[str, Any]
    total: int
    activated: int
    ngram: int

    def facts(self) -> dict[str, Any]:
        """The figures for reports."""
        return {
            "total": self.total,
            "activated": self.activated,
            "ngram_share": round(self.ngram / self.total, 4),
            "n_routed_experts": self.fields["n_routed_experts"],
            "ffn_hidden_size": self.fields["ffn_hidden_size"],
            "ngram_vocab_size_ratio": self.fields["ngram_vocab_size_ratio"] if self.ngram else None,
        }


def total_parameters(config: LongCatLiteConfig) -> int:
    """Parameters of a model of `config`, selection biases included; nothing is allocated."""
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in LongCatLiteForCausalLM(config).state_dict().values())


def activated_total(config: LongCatLiteConfig) -> int:
    """Parameters of blocks and head that multiply a token, with `moe_topk` routed experts and no zero experts.

    Counted as in the paper: without embeddings, and without the small projection of the n-grams.
    """
    always, expert = activated_parameters(config)
    return always + expert * config.moe_topk * config.num_layers


def ngram_parameters(config: LongCatLiteConfig) -> int:
    """Parameters of tables and projections."""
    if not config.use_ngram_embedding:
        return 0
    return sum(config.subtable_sizes) * config.subtable_width + config.hidden_size**2


def base_fields(model: dict[str, Any], point: Point) -> dict[str, Any]:
    """`model` (fields of the config) with the width, depth and tables of `point`, before solving."""
    return {
        **model,
        "hidden_size": point.hidden_size,
        "num_layers": point.num_layers,
        "use_ngram_embedding": point.ngram_share > 0,
        "emb_neighbor_num": point.max_order,
        "emb_split_num": point.splits,
        "ngram_vocab_size_ratio": 1.0 + point.ratio_fraction,
        "embedding_amplification": point.amplification,
    }


def match(model: dict[str, Any], point: Point) -> Matched:
    """Solves a point.

    The activated parameters to match are those of `model` without n-grams, with its `n_routed_experts` and
    `ffn_hidden_size`, at the point's width and depth.

    Raises:
        `ValueError`: the total or activated parameters cannot be matched within 1 %.
    """
    solved = base_fields(model, point)
    hidden, layers = point.hidden_size, point.num_layers
    activated = activated_total(LongCatLiteConfig(**solved | {"use_ngram_embedding": False}))
    total = round(activated * point.total_ratio)
    a_ratio = solved["vocab_size"] * hidden  # parameters for an n-gram ratio of 1
    an_expert = layers * (3 * hidden * solved["expert_ffn_hidden_size"] + hidden + 1)  # and its row of the router
    a_column = 2 * layers * 3 * hidden  # of the dense MLPs' width
    if point.ngram_share:
        whole = round((point.ngram_share * total - hidden**2) / a_ratio - point.ratio_fraction)
        solved["ngram_vocab_size_ratio"] = max(whole, 0) + point.ratio_fraction
    for _ in range(ROUNDS):
        config = LongCatLiteConfig(**solved)
        solved["ffn_hidden_size"] += round((activated - activated_total(config)) / a_column)
        solved["n_routed_experts"] += round((total - total_parameters(config)) / an_expert)
        if solved["n_routed_experts"] < solved["moe_topk"] or solved["ffn_hidden_size"] < 1:
            raise ValueError(
                f"{point} cannot be matched: {total:,} parameters with {activated:,} activated leave "
                f"{solved['n_routed_experts']} experts and dense MLPs of width {solved['ffn_hidden_size']}"
            )
    config = LongCatLiteConfig(**solved)
    found = Matched(solved, total_parameters(config), activated_total(config), ngram_parameters(config))
    for name, seen, wanted in (("total", found.total, total), ("activated", found.activated, activated)):
        if abs(seen / wanted - 1) > TOLERANCE:
            raise ValueError(f"{point} cannot be matched: {seen:,} {name} parameters, not within 1 % of {wanted:,}")
    return found


def fingerprint(*parts: Any) -> str:
    """Ten hexadecimal digits of a hash of JSON-like parts: the same digits mean the same run."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


__all__ = ["Matched", "Point", "fingerprint", "grid", "match"]
