# SPDX-License-Identifier: Apache-2.0
"""The draft head (multi-token prediction) that the released checkpoint carries under `model.mtp.*`.

One dense block predicts the token after next from the next token and the hidden state before it:

    tokens          A0   A1   A2   A3
    hidden states   h0   h1   h2   h3          final-norm states of the trunk
    head reads          (A1,h0) (A2,h1) (A3,h2)
    head predicts         A2      A3      A4    through the trunk's own language-model head

Data flow: `eh_proj([enorm(embed(token)), hnorm(hidden)])` -> attention -> dense MLP -> norm
(meituan-longcat/SGLang-FluentLLM, flash_nextn; arXiv 2509.01322).

Shapes: B batch rows, T tokens, L tokens with history, D hidden size.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

from .attention_mask import causal_mask_arguments
from .configuration_longcat_lite import LongCatLiteConfig
from .decoder_layer import LongCatLiteMLP
from .mla import LongCatLiteMLA
from .rms_norm import LongCatLiteRMSNorm
from .rotary_embedding import LongCatLiteRotaryEmbedding


class LongCatLiteDraftLayer(nn.Module):
    """Joins token and hidden state, then one attention and one dense MLP."""

    def __init__(self, config: LongCatLiteConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = LongCatLiteRMSNorm(hidden, eps)
        self.hnorm = LongCatLiteRMSNorm(hidden, eps)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.input_layernorm = LongCatLiteRMSNorm(hidden, eps)
        self.self_attn = LongCatLiteMLA(config, layer_idx=0)
        self.post_attention_layernorm = LongCatLiteRMSNorm(hidden, eps)
        self.mlp = LongCatLiteMLP(config)

    def forward(
        self,
        token_embeds: torch.Tensor,
        previous_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        joined = torch.cat([self.enorm(token_embeds), self.hnorm(previous_states)], dim=-1)  # [B, T, 2D]
        hidden_states = self.eh_proj(joined)
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            cache=cache,
        )
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class LongCatLiteDraftHead(nn.Module):
    """`model.mtp`: its own word embedding, one block, and a final norm."""

    def __init__(self, config: LongCatLiteConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([LongCatLiteDraftLayer(config)])
        self.norm = LongCatLiteRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LongCatLiteRotaryEmbedding(config)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        previous_states: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """States `[B, T, D]` for the language-model head, and for drafting on.

        Args:
            input_ids (`torch.Tensor` of shape `[B, T]`): Tokens; `inputs_embeds` (`[B, T, D]`) replaces them.
            previous_states (`torch.Tensor` of shape `[B, T, D]`): State of the token before each one.
            position_ids (`torch.Tensor` of shape `[B, T]` or `[1, T]`):
                Positions of `previous_states`, so that packed documents are separated where the states are.
            attention_mask (`torch.Tensor` of shape `[B, L]`, *optional*): 0 where the token is padding.
            cache (`Cache`, *optional*): The head's own cache, of one layer.
        """
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        mask_arguments = causal_mask_arguments(attention_mask, position_ids, cache)
        mask = create_causal_mask(self.config, inputs_embeds, **mask_arguments)
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids)
        states = self.layers[0](inputs_embeds, previous_states, position_embeddings, mask, cache)
        return self.norm(states)


def resolve_draft_head(config: LongCatLiteConfig, has_draft_head: bool):
    """`num_nextn_predict_layers=None` becomes what the checkpoint has."""
    if config.num_nextn_predict_layers is None and has_draft_head:
        config.num_nextn_predict_layers = 1


def freeze_draft_head(model: nn.Module):
    """Freezes the draft head, which the trunk's loss does not reach: its parameters would get no gradient."""
    for module in model.modules():
        if isinstance(module, LongCatLiteDraftHead):
            module.requires_grad_(False)


def with_idle_parameters(states: torch.Tensor, head: nn.Module | None) -> torch.Tensor:
    """The trunk's states `[B, T, D]`, unchanged, whose gradient also gives zeros to adapters on a frozen draft head.

    PEFT puts adapters on every module whose name matches: `all-linear`, or a list with `q_a_proj`, reaches the head,
    which the trunk's loss does not. DDP waits for a gradient of every trainable parameter, and would fail at the
    second step. A head that is trained as a whole is left alone: it has its own loss.
    """
    if head is None or not states.requires_grad:
        return states
    parameters = list(head.parameters())
    idle = [parameter for parameter in parameters if parameter.requires_grad]
    if len(idle) == len(parameters):
        return states
    # A sum over none of the values is 0 whatever they are. Parameters that FSDP or ZeRO-3 has split need no gradient.
    whole = [parameter for parameter in idle if type(parameter.data) is torch.Tensor and parameter.numel()]
    for parameter in whole:
        states = states + parameter.flatten()[:0].sum().to(states)
    return states


__all__ = ["LongCatLiteDraftHead", "freeze_draft_head", "resolve_draft_head", "with_idle_parameters"]
