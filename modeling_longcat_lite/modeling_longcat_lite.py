# SPDX-License-Identifier: Apache-2.0
"""LongCat-Flash-Lite: n-gram embedding, shortcut-connected layers, language-model head (arXiv 2601.21204).

Shapes: B batch, T tokens of this forward, L tokens with history, D hidden, N highest n-gram order, V vocabulary.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .checkpoint_layout import register_checkpoint_layout
from .checkpoint_loading import CheckpointLoadingMixin
from .configuration_longcat_lite import LongCatLiteConfig
from .decoder_layer import LongCatLiteDecoderLayer
from .document_mask import causal_mask_arguments
from .generation_longcat_lite import LongCatLiteGenerationMixin, check_token_ids
from .mla import LongCatLiteMLA
from .moe import LongCatLiteExperts, LongCatLiteRouter
from .mtp import LongCatLiteDraftHead, freeze_draft_head, resolve_draft_head
from .ngram_cache import CacheLayout, LongCatLiteDynamicCache, check_fits, with_token_history
from .ngram_embedding import EmbeddingAmplification, NgramEmbedding
from .ngram_hashing import HIDDEN, encode_tokens
from .rms_norm import LongCatLiteRMSNorm
from .rotary_embedding import LongCatLiteRotaryEmbedding
from .sparse_attention import INDEXER, check_length, longest_sequence

register_checkpoint_layout(LongCatLiteConfig.model_type)


class LongCatLitePreTrainedModel(CheckpointLoadingMixin):
    """What transformers asks of the family."""

    config_class = LongCatLiteConfig
    config: LongCatLiteConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LongCatLiteDecoderLayer", "LongCatLiteDraftHead"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Strict: also for bfloat16, in which a step of 1e-3 on a selection bias of 0.5 would be rounded away.
    _keep_in_fp32_modules_strict = {"classifier", "e_score_correction_bias"}  # noqa: RUF012
    # Read by quantizers as what they must leave alone: a pattern of modules' names and of parameters' names.
    _keep_in_fp32_modules = {r".*\.router\.classifier"}  # noqa: RUF012
    # What may differ is checked before loading, by name; these keep the report of transformers quiet about it.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"^(model\.)?mtp\.",
        r"^lm_head\.",
        r"^(model\.)?ngram_embeddings\.embedders\.",
        r"^(model\.)?oe_embed_tokens",
        INDEXER.pattern,
    ]
    _keys_to_ignore_on_load_missing = [r"embedding_amplification\.norm\."]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": OutputRecorder(LongCatLiteDecoderLayer, num_hidden_layers_key="num_layers"),
        "attentions": OutputRecorder(LongCatLiteMLA, index=1),
        "router_logits": OutputRecorder(LongCatLiteRouter, index=0),
    }

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for the decorator in this file; the experts live in `moe.py`.
        return True

    def init_parallel_plans(self):
        # The config's plans name all that a model may have; a rule for what this one lacks would be warned of.
        super().init_parallel_plans()
        base: Any = self.base_model
        absent = [] if base.mtp is not None else ["mtp"]
        if base.ngram_embeddings is None or not list(base.ngram_embeddings.embedders.parameters()):
            absent.append("ngram_embeddings")
        plans: Any = (self._tp_plan, self._fsdp_plan)
        for plan in plans:
            for rule in [rule for rule in plan if rule.removeprefix("model.").split(".")[0] in absent]:
                del plan[rule]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, LongCatLiteExperts):
            initialization.normal_(module.gate_up_proj, mean=0.0, std=self.config.initializer_range)
            initialization.normal_(module.down_proj, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, LongCatLiteRouter):
            initialization.zeros_(module.e_score_correction_bias)
        elif isinstance(module, NgramEmbedding):
            # Buffers that no checkpoint holds are blank after loading on the meta device.
            for name, values in module.hash_constants(self.config).items():
                initialization.copy_(module.get_buffer(name), values)

    def _resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of=None, mean_resizing=True):
        resized = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        for head in self.modules():
            if isinstance(head, LongCatLiteDraftHead):  # it has a word embedding of its own, of the same vocabulary
                head.embed_tokens = self._get_resized_embeddings(
                    head.embed_tokens, resized.num_embeddings, mean_resizing=mean_resizing
                ).requires_grad_(head.embed_tokens.weight.requires_grad)
        return resized


class LongCatLiteModel(LongCatLitePreTrainedModel):
    """The trunk: ids to final-norm states. N-grams are looked up here, so that training loops that call the base
    model and apply the head themselves (TRL) get them too."""

    def __init__(self, config: LongCatLiteConfig, has_draft_head: bool = False, ngram_tables: str = "resident"):
        config.validate_architecture()  # fields may have been set since it was made
        super().__init__(config)
        resolve_draft_head(config, has_draft_head)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.ngram_embeddings = NgramEmbedding(config, ngram_tables) if config.use_ngram_embedding else None
        self.embedding_amplification = EmbeddingAmplification(config)
        self.layers = nn.ModuleList([LongCatLiteDecoderLayer(config, i) for i in range(config.num_layers)])
        self.norm = LongCatLiteRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LongCatLiteRotaryEmbedding(config)
        self.mtp = LongCatLiteDraftHead(config) if config.num_nextn_predict_layers else None
        self.cache_layout = CacheLayout.of(config)
        freeze_draft_head(self)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        ngram_input_ids: torch.LongTensor | None = None,
        ngram_attention_mask: torch.Tensor | None = None,
        ngram_row_ids: torch.LongTensor | None = None,
        trunk_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> MoeModelOutputWithPast:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `[B, T]`, *optional*): Tokens.
            attention_mask (`torch.Tensor` of shape `[B, L]` or `[B, 1, T, L]`, *optional*):
                0 where a token is padding. A 4D mask is taken as it is, and says nothing of padding.
            position_ids (`torch.LongTensor` of shape `[B, T]` or `[1, T]`, *optional*):
                Positions. A step other than +1 begins another document: neither attention nor n-grams cross it.
            past_key_values (`Cache`, *optional*): Latent keys and values with their token history.
            inputs_embeds (`torch.FloatTensor` of shape `[B, T, D]`, *optional*):
                Word rows in place of `input_ids`; needs `ngram_input_ids`.
            ngram_input_ids (`torch.LongTensor` of shape `[B, T]`, *optional*): The tokens for the n-grams alone.
            ngram_attention_mask (`torch.Tensor` of shape `[B, T]`, *optional*): Padding, beside a 4D `attention_mask`.
            ngram_row_ids (`torch.LongTensor` of shape `[B, T, S]`, *optional*):
                The table rows of every token, where `input_ids` are a part of a row that was split: the package's
                `ngram_row_ids` of the whole row, sub-tables last. Without a cache.
            trunk_embeds (`torch.FloatTensor` of shape `[B, T, D]`, *optional*):
                What the first layer reads, where drafting has looked it up already; `input_ids` go to the cache.
            use_cache (`bool`, *optional*): Return a cache.

        Raises:
            `ValueError`: if the inputs contradict each other, a token id is outside the vocabulary, or a sequence is
                longer than `config.index_topk`.
        """
        tokens = self._checked_tokens(input_ids, inputs_embeds, ngram_input_ids)
        word_embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        past_key_values = self._cache_with_history(past_key_values, use_cache, word_embeds)
        if (topk := self.config.dense_attention_limit) is not None:
            is_part, length = ngram_row_ids is not None, word_embeds.shape[1]
            length = longest_sequence(length, attention_mask, position_ids, past_key_values, is_part)
            check_length(length, topk, "A sequence")
        mask_arguments = causal_mask_arguments(attention_mask, position_ids, past_key_values)

        codes = None
        if ngram_row_ids is not None:
            self._check_row_ids(ngram_row_ids, word_embeds, past_key_values)
        elif self.ngram_embeddings is not None:
            # Before the layers fill the cache: the window is what it held, then this forward's tokens.
            visible = attention_mask if ngram_attention_mask is None else ngram_attention_mask
            codes = self._token_window(tokens, visible, position_ids, past_key_values)
        hidden_states = self.embed(word_embeds, codes, ngram_row_ids) if trunk_embeds is None else trunk_embeds

        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(word_embeds.shape[1], device=word_embeds.device) + past)[None]  # type: ignore
        causal_mask = create_causal_mask(self.config, hidden_states, position_ids=position_ids, **mask_arguments)
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                past_key_values=past_key_values,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                **kwargs,
            )
        return MoeModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def embed(
        self, word_embeds: torch.Tensor, codes: torch.Tensor | None, row_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Word rows `[B, T, D]` and codes that end with their tokens, or row ids `[B, T, S]`, to what the first layer
        reads, `[B, T, D]`."""
        if self.ngram_embeddings is not None:
            word_embeds = self.ngram_embeddings(word_embeds, codes, row_ids)
        return self.embedding_amplification(word_embeds)

    def embed_tokens_with_history(self, input_ids: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """[`embed`] for tokens `[B, T]` that end a history of codes of any length."""
        window = codes[:, -(self.config.max_ngram_order - 1 + input_ids.shape[1]) :]
        return self.embed(self.embed_tokens(input_ids), window)

    def prefetch_ngram_rows(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None):
        """Asks for the n-gram rows of a prompt `[B, T]` that are on disk, without waiting for them."""
        if self.ngram_embeddings is not None:
            self.ngram_embeddings.prefetch(self._token_window(input_ids, attention_mask, None, None))

    def _checked_tokens(self, input_ids, inputs_embeds, ngram_input_ids) -> torch.Tensor | None:
        """The tokens that n-grams are made of, `[B, T]`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        tokens = input_ids if ngram_input_ids is None else ngram_input_ids
        if self.ngram_embeddings is not None and tokens is None:
            raise ValueError("`inputs_embeds` cannot tell n-grams: pass its tokens too, as `ngram_input_ids`.")
        if tokens is not None:
            shape = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
            if tokens.shape != shape:
                raise ValueError(f"`ngram_input_ids` has shape {list(tokens.shape)}, the other input {list(shape)}.")
            check_token_ids(tokens, self.config.vocab_size)
        return tokens

    def _check_row_ids(self, row_ids: torch.Tensor, word_embeds: torch.Tensor, past_key_values: Cache | None):
        wanted = [*word_embeds.shape[:2], self.config.num_subtables]
        if self.ngram_embeddings is None or list(row_ids.shape) != wanted:
            raise ValueError(f"`ngram_row_ids` has shape {list(row_ids.shape)}, this model and input want {wanted}.")
        if past_key_values is not None:
            raise ValueError("`ngram_row_ids` gives a cache no tokens to go on from: pass `use_cache=False`.")

    def _cache_with_history(self, past_key_values: Cache | None, use_cache, word_embeds) -> Cache | None:
        if past_key_values is None and use_cache:
            past_key_values = LongCatLiteDynamicCache(config=self.config)
        if past_key_values is None or self.ngram_embeddings is None:
            return past_key_values
        if torch.compiler.is_compiling():  # `generate` has checked it
            return with_token_history(past_key_values)
        check_fits(past_key_values, self.cache_layout, len(word_embeds), new_tokens=word_embeds.shape[1])
        return with_token_history(past_key_values, self.cache_layout)

    def _token_window(self, tokens, attention_mask, position_ids, past_key_values) -> torch.Tensor:
        """Codes of the tokens behind those of the N-1 before them: `[B, N - 1 + T]`."""
        is_padding_mask = attention_mask is not None and attention_mask.ndim == 2
        visible = attention_mask[:, -tokens.shape[1] :] if is_padding_mask else None
        codes = encode_tokens(tokens, position_ids, visible)
        lookback = self.config.max_ngram_order - 1
        if past_key_values is not None:
            return past_key_values.append_tokens(codes, lookback)
        return nn.functional.pad(codes, (lookback, 0), value=HIDDEN)


class LongCatLiteForCausalLM(LongCatLitePreTrainedModel, LongCatLiteGenerationMixin):
    """The trunk with a language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    _fsdp_plan = {"lm_head": "keep_full_weight"}  # noqa: RUF012

    def __init__(self, config: LongCatLiteConfig, has_draft_head: bool = False, ngram_tables: str = "resident"):
        super().__init__(config)
        resolve_draft_head(config, has_draft_head)
        self.model = LongCatLiteModel(config, ngram_tables=ngram_tables)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        ngram_input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> MoeCausalLMOutputWithPast:
        r"""
        Arguments as in [`LongCatLiteModel`], and:

        Args:
            labels (`torch.LongTensor` of shape `[B, T]`, *optional*): Targets, shifted here; -100 is ignored.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0): Last positions to score; 0 for all.

        ```python
        >>> from transformers import AutoTokenizer
        >>> from modeling_longcat_lite import LongCatLiteForCausalLM

        >>> model = LongCatLiteForCausalLM.from_pretrained("meituan-longcat/LongCat-Flash-Lite", device_map="auto")
        >>> tokenizer = AutoTokenizer.from_pretrained("meituan-longcat/LongCat-Flash-Lite")
        >>> inputs = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
        >>> tokenizer.decode(model.generate(**inputs, max_new_tokens=8)[0])
        ```
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            ngram_input_ids=ngram_input_ids,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])  # [B, T, V]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )

    def add_draft_head(self):
        """Gives a model without a draft head a fresh one, to be trained; its word embedding begins as the trunk's."""
        trunk = self.model
        if trunk.mtp is not None:
            raise ValueError("This model has a draft head already.")
        self.config.num_nextn_predict_layers = trunk.config.num_nextn_predict_layers = 1
        trunk.mtp = LongCatLiteDraftHead(self.config).to(trunk.embed_tokens.weight)
        trunk.mtp.apply(self._init_weights)
        trunk.mtp.embed_tokens.weight.data.copy_(trunk.embed_tokens.weight)
        # Loading keeps the conversions of the tensors that it found; saving now needs those of the head too.
        self.__dict__.pop("_weight_conversions", None)


__all__ = ["LongCatLiteForCausalLM", "LongCatLiteModel", "LongCatLitePreTrainedModel"]
