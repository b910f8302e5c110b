# SPDX-License-Identifier: Apache-2.0
"""Options of router control, as a dataclass for TRL's parser; without torch, so that `--help` is fast."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tokenization.number_options import check_number

if TYPE_CHECKING:
    from modeling_longcat_lite import LongCatLiteConfig


@dataclass
class RouterArguments:
    """How routers are controlled; by default they are only watched."""

    router_bias_rate: float = field(
        default=0.0, metadata={"help": "Rate mu of the selection bias, per optimizer step; 0 leaves the bias alone."}
    )
    router_bias_schedule: Literal["constant", "linear"] = field(
        default="constant", metadata={"help": "`linear` lets the rate fall to 0 over the training."}
    )
    target_experts: float | None = field(
        default=None,
        metadata={
            "help": "Routed experts wanted per token, K_e: less than the config's `moe_topk`. By default their share "
            "of all experts times `moe_topk`, 8 of 12 for the released model."
        },
    )
    balance_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight alpha of the balance loss beside the model's own; 0 leaves it out."}
    )
    balance_groups: int | None = field(
        default=None,
        metadata={
            "help": "Groups of routed experts (devices) that get the same load in the balance loss, a divisor of the "
            "config's `n_routed_experts`. By default each expert is one."
        },
    )

    def __post_init__(self):
        check_number("router_bias_rate", self.router_bias_rate, least=0)
        check_number("balance_loss_weight", self.balance_loss_weight, least=0)
        check_number("target_experts", self.target_experts, above=0)
        check_number("balance_groups", self.balance_groups, least=1)

    def target_for(self, config: "LongCatLiteConfig") -> float:
        """K_e for a model of `config`."""
        routed, zero, top_k = config.n_routed_experts, config.zero_expert_num, config.moe_topk
        target = top_k * routed / (routed + zero) if self.target_experts is None else self.target_experts
        if not zero and target != top_k:
            raise ValueError(
                f"`target_experts` is {target}, but a model without zero experts always selects `moe_topk` = {top_k}"
            )
        if zero and not 0 < target < top_k:
            raise ValueError(f"`target_experts` is {target}, it must lie between 0 and `moe_topk` = {top_k}")
        return target

    def groups_for(self, config: "LongCatLiteConfig") -> int:
        """D for a model of `config`."""
        groups = config.n_routed_experts if self.balance_groups is None else self.balance_groups
        if groups < 1 or config.n_routed_experts % groups:
            raise ValueError(
                f"`balance_groups` is {groups}, it must divide `n_routed_experts` = {config.n_routed_experts}"
            )
        return groups


def refuse_auxiliary_loss(options: Mapping[str, Any], where: str) -> None:
    """Raise a `ValueError` that names the option with which TRL would add its own loss on the routers."""
    for name in ("router_aux_loss_coef", "output_router_logits"):
        if options.get(name):
            raise ValueError(
                f"`{name}` in {where} is {options[name]}: TRL's auxiliary loss knows no zero experts and cannot be "
                "computed for this model. Leave it out; training.sft balances experts with `balance_loss_weight`"
            )


__all__ = ["RouterArguments", "refuse_auxiliary_loss"]
