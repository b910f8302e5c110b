# SPDX-License-Identifier: Apache-2.0
"""Drafting with the checkpoint's own head: `model.generate(..., use_mtp=True)`.

A cycle, where `x` are verified tokens, `h` their trunk states and `d` drafts:

    trunk has seen     x0 .. x4           and gave h0 .. h4 and x5
    head, step 1       (x5, h4)           -> d6      and its own state s5
    head, step 2       (d6, s5)           -> d7, s6
    head, step 3       (d7, s6)           -> d8
    trunk verifies     x5 d6 d7 d8        -> accepts the drafts up to the first that it would not have chosen

The head's cache keeps pairs with true states only: what drafting added is cropped before the next cycle, and the
accepted tokens are fed again with the trunk's states (arXiv 2601.21204, section 4; FluentLLM, flash_nextn).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.generation.candidate_generator import CandidateGenerator

from .draft_head import LongCatLiteDraftHead
from .transformers_versions import CACHE


@dataclass
class DraftStatistics:
    """What drafting achieved in one call of `generate`."""

    drafted: int = 0
    accepted_per_cycle: list[int] = field(default_factory=list)

    @property
    def cycles(self) -> int:
        """Verifications that had drafts to verify."""
        return len(self.accepted_per_cycle)

    @property
    def mean_accepted(self) -> float:
        """Drafts accepted per cycle: tokens beyond the one that plain decoding gives."""
        return sum(self.accepted_per_cycle) / self.cycles if self.cycles else 0.0


class DraftCandidateGenerator(CandidateGenerator):
    """Candidates from the draft head, in the loop of transformers' assisted decoding (one row).

    Args:
        head (`LongCatLiteDraftHead`): `model.model.mtp`.
        lm_head (`nn.Module`): The trunk's language-model head, which the draft head shares.
        num_draft_tokens (`int`): Drafts per cycle.
        max_length (`int`): Longest sequence, in tokens.
        logits_processor (`LogitsProcessorList`, *optional*): Drafts are chosen from processed logits, like tokens.
        do_sample (`bool`, *optional*, defaults to `False`): Draw drafts instead of taking the most likely ones.
        output_hidden_states (`bool`, *optional*, defaults to `False`):
            Whether the caller of `generate` wants the hidden states of every layer; drafting needs only the last.
        embed (`Callable`, *optional*):
            Maps tokens `[1, T]`, the codes that end with them, and a mask to the trunk's embedding `[1, T, D]`, to
            draft from n-gram rows instead of the head's word embedding. The trunk then does not look the drafts up
            again.
    """

    requires_model_outputs = True

    def __init__(
        self,
        head: LongCatLiteDraftHead,
        lm_head: nn.Module,
        num_draft_tokens: int,
        max_length: int,
        logits_processor=None,
        do_sample: bool = False,
        output_hidden_states: bool | None = False,
        embed: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor] | None = None,
    ):
        self.head, self.lm_head, self.embed = head, lm_head, embed
        self.num_draft_tokens, self.max_length = num_draft_tokens, max_length
        self.logits_processor, self.do_sample = logits_processor, do_sample
        # The decoding loop adds these to every forward of the trunk; -1 is the final-norm state.
        self.model_kwargs_overrides: dict = {"output_hidden_states": True if output_hidden_states else -1}
        self.cache = DynamicCache()
        self.on_own_states = 0  # cache entries after the last pair with a true state
        self.offered = 0
        self.statistics = DraftStatistics()

    @torch.no_grad()
    def get_candidates(  # type: ignore[override]
        self, input_ids, model_kwargs, model_outputs, is_first_iteration, n_last_matches, **_
    ):
        """`[1, T]` verified tokens to `[1, T + drafts]` and, when sampling, the drafts' logits `[1, drafts, V]`."""
        self.model_kwargs_overrides.pop("trunk_embeds", None)
        budget = min(self.num_draft_tokens, self.max_length - input_ids.shape[1] - 1)
        # In the first round the trunk has no states yet: it reads the prompt and gives one token.
        self.offered = 0 if is_first_iteration else max(budget, 0)
        if self.offered == 0:
            return input_ids, None

        states = self._new_true_states(model_outputs.hidden_states[-1], input_ids, int(n_last_matches))
        tokens = input_ids[:, -states.shape[1] :]  # each after its state
        mask = model_kwargs.get("attention_mask")
        history: Any = model_kwargs[CACHE].token_history if self.embed is not None else None
        candidates, logits, embeds = input_ids, [], []
        for _step in range(self.offered):
            inputs_embeds = None
            if self.embed is not None:
                history = torch.cat([history, candidates[:, -1:]], dim=1)
                inputs_embeds = self.embed(tokens, history, mask)
                embeds.append(inputs_embeds[:, -1:])
            states = self._run_head(tokens, states, mask, inputs_embeds, candidates.shape[1])[:, -1:]
            step_logits = self._processed_logits(candidates, states)
            tokens = self._choose(step_logits)
            candidates = torch.cat([candidates, tokens], dim=1)
            logits.append(step_logits)
        self.on_own_states = self.offered - 1
        if self.embed is not None:
            history = torch.cat([history, tokens], dim=1)
            self.model_kwargs_overrides["trunk_embeds"] = torch.cat(
                [*embeds, self.embed(tokens, history, mask)], dim=1
            )
        return candidates, torch.stack(logits, dim=1) if self.do_sample else None

    def update_candidate_strategy(self, input_ids, scores, num_matches):
        """Called by the decoding loop with the number of accepted drafts."""
        if self.offered:
            self.statistics.drafted += self.offered
            self.statistics.accepted_per_cycle.append(int(num_matches))

    def _new_true_states(self, states: torch.Tensor, input_ids: torch.Tensor, n_last_matches: int) -> torch.Tensor:
        """Of the trunk's last forward, the states before verified tokens that the head has not seen: `[1, T, D]`."""
        if self.on_own_states:
            self.cache.crop(-self.on_own_states)
        is_prompt = self.cache.get_seq_length() == 0
        return states[:, : input_ids.shape[1] - 1 if is_prompt else n_last_matches + 1]

    def _run_head(self, tokens, states, mask, inputs_embeds, end: int) -> torch.Tensor:
        """The head's states for pairs whose last token is the last of `end` ones."""
        seen, length = self.cache.get_seq_length(), tokens.shape[1]
        position_ids = torch.arange(seen, seen + length, device=tokens.device).unsqueeze(0)
        if mask is not None:
            # Drafts, which the mask does not cover yet, are visible. A pair is visible where both of its members are.
            # The head may have seen less than the trunk, whose cache was filled earlier.
            mask = nn.functional.pad(mask, (0, end - mask.shape[1]), value=1)
            mask = (mask[:, :-1] * mask[:, 1:])[:, -(seen + length) :]
        return self.head(tokens, states, position_ids, mask, self.cache, inputs_embeds)

    def _processed_logits(self, candidates: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        logits = self.lm_head(states)[:, -1].float()  # [1, V]
        return self.logits_processor(candidates, logits) if self.logits_processor else logits

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        if self.do_sample:
            return torch.multinomial(logits.softmax(dim=-1), num_samples=1)
        return logits.argmax(dim=-1, keepdim=True)


__all__ = ["DraftCandidateGenerator", "DraftStatistics"]
