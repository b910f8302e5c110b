# SPDX-License-Identifier: Apache-2.0
"""Options of router control, as a dataclass for TRL's parser. Does not import torch, so that `--help` is fast."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tokenization.number_options import check_number

if TYPE_CHECKING:
    from modeling_longcat_lite import LongCatLiteConfig


@dataclass
class RouterArguments:
    """How the routers are controlled; by default they are only observed."""

    router_bias_rate: float = field(
        default=0.0,
        metadata={"help": "Rate mu of the selection bias, per optimizer step; 0 keeps the bias."},
    )
    router_bias_schedule: Literal["constant", "linear"] = field(
        default="constant", metadata={"help": "`linear` lowers the rate to 0 during training."}
    )
    target_experts: float | None = field(
        default=None,
        metadata={
            "help": "Target number k_e of routed experts per token, below the config's `moe_topk`. By default their "
            "share of all experts times `moe_topk`: 8 of 12 for the released model."
        },
    )
    balance_loss_weight: float = field(
        default=0.0,
        metadata={"help": "Weight alpha of the balance loss, added to the model's own; 0 omits it."},
    )
    balance_groups: int | None = field(
        default=None,
        metadata={
            "help": "Number of groups of routed experts (devices) that get equal load by the balance loss, a divisor "
            "of the config's `n_routed_experts`. By default each expert is a group."
        },
    )

    def __post_init__(self):
        check_number("router_bias_rate", self.router_bias_rate, least=0)
        check_number("balance_loss_weight", self.balance_loss_weight, least=0)
        check_number("target_experts", self.target_experts, above=0)
        check_number("balance_groups", self.balance_groups, least=1)

    def target_for(self, config: "LongCatLiteConfig") -> float:
        """k_e for a model of `config`."""
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
        """J, the number of groups, for a model of `config`."""
        groups = config.n_routed_experts if self.balance_groups is None else self.balance_groups
        if groups < 1 or config.n_routed_experts % groups:
            raise ValueError(
                f"`balance_groups` is {groups}, it must divide `n_routed_experts` = {config.n_routed_experts}"
            )
        return groups


def refuse_auxiliary_loss(options: Mapping[str, Any], where: str) -> None:
    """Raise a `ValueError` that names the option with which TRL would add its own loss for the routers."""
    for name in ("router_aux_loss_coef", "output_router_logits"):
        if options.get(name):
            raise ValueError(
                f"`{name}` in {where} is {options[name]}: TRL's auxiliary loss does not know zero experts "
                "and cannot be computed for this model. Leave it out; training.sft balances experts with "
                "`balance_loss_weight`"
            )


__all__ = ["RouterArguments", "refuse_auxiliary_loss"]
