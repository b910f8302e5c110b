# SPDX-License-Identifier: Apache-2.0
"""Keeps the routed experts of a token at a target number in training (arXiv 2509.01322, zero-computation experts).

Two controls, each off by default:

* The selection bias of routed experts moves after each optimizer step, outside the gradient,

      b_i += mu * (k_e / k * 1 / E - T_i / (k T_all))

  where T_i of T_all tokens selected expert i. Summed over i this is zero if a token selects k_e routed experts on
  average, and it is zero for each i if all routed experts get the same load. The bias of zero experts does not change.
  The rate is in units of router probability: mu = 0.1 moves the bias of an expert that nobody selects by a tenth of
  1 / E times k_e / k in each step.
* A balance loss (training/routers/balance_loss.py) is added to the trainer's loss.

The selections are logged with the loss in any case.
"""

import warnings
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from transformers import Trainer, TrainerCallback

from modeling_longcat_lite import LongCatLiteForCausalLM
from training.routers.arguments import RouterArguments
from training.routers.balance_loss import balance_loss, gradient_share
from training.routers.counts import ExpertCounts
from training.routers.hooks import RouterForward, watch_routers

LARGEST_GRADIENT_SHARE = 0.1  # the report chooses alpha so that R_g stays below it


def bias_steps(selected: torch.Tensor, tokens: torch.Tensor, top_k: int, target_experts: float) -> torch.Tensor:
    """The change of the routed experts' biases at a rate of 1, `[layers, E]`.

    Args:
        selected (`torch.Tensor` of shape `[layers, E]`): Tokens that selected each routed expert.
        tokens (`torch.Tensor` of shape `[layers]`): Tokens in all.
    """
    target = target_experts / (top_k * selected.shape[-1])
    return target - selected.float() / (top_k * tokens.float()[:, None])


class SelectionBiasCallback(TrainerCallback):
    """Ends the step of `counts` and moves the selection biases accordingly. Checkpoints include the biases.

    Args:
        model (`LongCatLiteForCausalLM`): Without wrappers.
        counts ([`ExpertCounts`]): Counts of the same model.
        rate (`float`): mu; with 0 the biases do not move.
        target_experts (`float`): k_e.
        schedule (`str`, *optional*, defaults to `"constant"`): `"linear"` lowers the rate to 0.
    """

    def __init__(
        self,
        model: LongCatLiteForCausalLM,
        counts: ExpertCounts,
        rate: float,
        target_experts: float,
        schedule: str = "constant",
    ):
        self.config, self.counts = model.config, counts
        self.routers: list[Any] = [layer.mlp.router for layer in model.model.layers]
        self.rate, self.target_experts, self.schedule = rate, target_experts, schedule

    def on_train_begin(self, args, state, control, **kwargs):
        dtypes = {router.e_score_correction_bias.dtype for router in self.routers}
        if self.rate and dtypes != {torch.float32}:
            raise ValueError(
                "`router_bias_rate`: the selection biases `mlp.router.e_score_correction_bias` must be float32, "
                f"because small steps are rounded away otherwise; they are {dtypes}. `from_pretrained` keeps them in "
                "float32, `model.to` does not"
            )

    def on_step_begin(self, args, state, control, **kwargs):
        self.counts.begin_step()

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        table = self.counts.end_step()
        if not self.rate:
            return
        left = 1 - (state.global_step - 1) / state.max_steps if self.schedule == "linear" else 1.0
        steps = bias_steps(table.selected, table.tokens, self.config.moe_topk, self.target_experts)
        for router, step in zip(self.routers, steps, strict=True):
            bias = router.e_score_correction_bias
            bias[: len(step)] += self.rate * left * step.to(bias.device)


class RouterControlMixin(Trainer):
    """Counts experts, and controls them by `router_args`. Comes before any trainer in the bases of a class.

    Logs the metrics of [`ExpertCounts`] and, if there is a balance loss, `balance_loss`, without its weight, and
    `balance_gradient_share`: R_g over the trainable parameters of the routers (over all trainable ones of the trunk
    if an adapter leaves routers frozen), on the first micro-batch of the first rank after each log. R_g takes two more
    backward passes, and is omitted under FSDP, DeepSpeed and selective checkpointing, which do not allow them.
    """

    def __init__(self, *args, router_args: RouterArguments, **kwargs):
        super().__init__(*args, **kwargs)
        self.router_args = router_args
        wrapped: Any = self.model
        causal: Any = wrapped.get_base_model() if isinstance(wrapped, PeftModel) else wrapped
        self._config, self._trunk = causal.config, causal.model
        self._target = router_args.target_for(self._config)
        self._groups = router_args.groups_for(self._config)
        self._seen: RouterForward | None = None
        self._balance: dict[str, list[torch.Tensor]] = {"balance_loss": [], "balance_gradient_share": []}
        if router_args.router_bias_rate:
            self._check_biases_are_kept()
        self._expert_counts = ExpertCounts(causal)
        self.add_callback(
            SelectionBiasCallback(
                causal,
                self._expert_counts,
                router_args.router_bias_rate,
                self._target,
                router_args.router_bias_schedule,
            )
        )
        if router_args.balance_loss_weight:
            watch_routers(self._trunk, self._keep_seen)

    def _check_biases_are_kept(self) -> None:
        routers = [layer.mlp.router for layer in self._trunk.layers]
        if isinstance(self.model, PeftModel) and not all(isinstance(r, ModulesToSaveWrapper) for r in routers):
            raise ValueError(
                "`router_bias_rate` moves the routers' selection biases, which a PEFT adapter does not include: add "
                "`router` to its `modules_to_save` (`lora_modules_to_save`), or leave the rate at 0"
            )
        if not any(parameter.requires_grad for parameter in self._trunk.layers.parameters()):
            raise ValueError("`router_bias_rate` would change a trunk that is frozen: leave it at 0")

    def _keep_seen(self, seen: RouterForward) -> None:
        self._seen = seen

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not (model.training and self.router_args.balance_loss_weight):
            return loss
        seen, self._seen = self._seen, None
        assert seen is not None
        if not any(logits.requires_grad for logits in seen.logits):
            raise ValueError(
                "`balance_loss_weight`: no gradient reaches the routers. Either the layers before them are frozen, or "
                "checkpointing is reentrant: set `activation_checkpointing_kwargs: {use_reentrant: false}`"
            )
        balance = balance_loss(seen, self._config, self._target, self._groups).to(loss.device)
        self._balance["balance_loss"].append(balance.detach())
        # If the count of labels normalises the loss, the trainer does not divide by the accumulation steps.
        parts = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        weighted = self.router_args.balance_loss_weight * balance / parts
        self._measure_gradient_share(weighted, loss)
        return loss + weighted

    def _measure_gradient_share(self, balance: torch.Tensor, loss: torch.Tensor) -> None:
        measured = self._balance["balance_gradient_share"]
        # The graph does not end in shards of a parameter, and selective checkpointing allows one backward pass only.
        checkpointing: Any = self.args.activation_checkpointing_kwargs or {}
        selective = self.args.activation_checkpointing and checkpointing.get("selective")
        if measured or selective or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return
        routers = [p for layer in self._trunk.layers for p in layer.mlp.router.parameters() if p.requires_grad]
        measured.append(
            gradient_share(balance, loss, routers or [p for p in self._trunk.parameters() if p.requires_grad])
        )
        if measured[0] > LARGEST_GRADIENT_SHARE:
            warnings.warn(
                f"the gradient of the balance loss at the routers is more than {LARGEST_GRADIENT_SHARE} of that of "
                "the model's own loss (`balance_gradient_share`): lower `balance_loss_weight`",
                stacklevel=2,
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        model: Any = self.model
        if model.training:
            logs.update(self._expert_counts.pop_metrics())
            for name, values in self._balance.items():
                if values:
                    logs[name] = torch.stack(values).mean().item()
                values.clear()
        super().log(logs, start_time)


def with_router_control(trainer_class: Any, router_args: RouterArguments) -> Any:
    """`trainer_class`, a class or a `partial` of one, with [`RouterControlMixin`]; it is called in the same way."""
    if isinstance(trainer_class, partial):
        controlled = with_router_control(trainer_class.func, router_args)
        return partial(controlled, *trainer_class.args, **trainer_class.keywords)
    name = f"RouterControl{trainer_class.__name__}"
    return partial(type(name, (RouterControlMixin, trainer_class), {}), router_args=router_args)


__all__ = ["RouterControlMixin", "SelectionBiasCallback", "bias_steps", "with_router_control"]
