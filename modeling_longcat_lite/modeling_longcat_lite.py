# SPDX-License-Identifier: Apache-2.0
"""LongCat-Flash-Lite: n-gram embedding, shortcut-connected layers, language-model head (arXiv 2601.21204).

Shapes: B batch rows, T tokens, L tokens with history, D hidden size, N highest n-gram order, S sub-tables, V
vocabulary.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_mask import causal_mask_arguments
from .checkpoint_layout import register_checkpoint_layout
from .checkpoint_saving import CheckpointSavingMixin
from .configuration_longcat_lite import LongCatLiteConfig
from .decoder_layer import LongCatLiteDecoderLayer
from .draft_head import LongCatLiteDraftHead, freeze_draft_head, resolve_draft_head, with_idle_parameters
from .generation_longcat_lite import LongCatLiteGenerationMixin
from .mla import LongCatLiteMLA
from .model_inputs import check_row_ids, checked_tokens, fitted_mask, last_windows, token_windows
from .moe import LongCatLiteExperts, LongCatLiteRouter
from .ngram_cache import CacheLayout, LongCatLiteDynamicCache, check_fits, with_token_history
from .ngram_embedding import EmbeddingAmplification, NgramEmbedding
from .rms_norm import LongCatLiteRMSNorm
from .rotary_embedding import LongCatLiteRotaryEmbedding
from .sparse_attention import INDEXER, check_length, longest_sequence
from .transformers_versions import (
    CACHE,
    CACHE_NAMES,
    check_promise,
    check_unread_inputs,
    output_recorder,
    the_cache,
    warn_of_an_unknown_version,
)

register_checkpoint_layout(LongCatLiteConfig.model_type)
warn_of_an_unknown_version()


class LongCatLitePreTrainedModel(CheckpointSavingMixin):
    """What transformers asks of a model: names, plans, initialisation."""

    config_class = LongCatLiteConfig
    config: LongCatLiteConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LongCatLiteDecoderLayer", "LongCatLiteDraftHead"]  # noqa: RUF012
    _skip_keys_device_placement = list(CACHE_NAMES)  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Strict, so that it includes bfloat16, which would round away a step of 1e-3 on a selection bias of 0.5.
    _keep_in_fp32_modules_strict = {"classifier", "e_score_correction_bias"}  # noqa: RUF012
    # Quantizers read it as what to leave alone; the pattern matches names of modules and of parameters.
    _keep_in_fp32_modules = {r".*\.router\.classifier"}  # noqa: RUF012
    # What may be absent or extra is checked by name before loading; these keep it out of transformers' report.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"^(model\.)?mtp\.",
        r"^lm_head\.",
        r"^(model\.)?ngram_embeddings\.embedders\.",
        r"^(model\.)?oe_embed_tokens",
        INDEXER.pattern,
    ]
    _keys_to_ignore_on_load_missing = [r"embedding_amplification\.norm\."]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": output_recorder(LongCatLiteDecoderLayer, layers_field="num_layers"),
        "attentions": OutputRecorder(LongCatLiteMLA, index=1),
        "router_logits": OutputRecorder(LongCatLiteRouter, index=0),
    }

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for the decorator in this file; the experts live in `moe.py`.
        return True

    def init_parallel_plans(self):
        # The config's plans name all that a model may have; a rule for a part that this one lacks would cause a
        # warning.
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
            # Buffers that are not in the checkpoint are blank after loading on the meta device.
            for name, values in module.hash_constants(self.config).items():
                initialization.copy_(module.get_buffer(name), values)

    def _resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of=None, mean_resizing=True):
        resized = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        for head in self.modules():
            if isinstance(head, LongCatLiteDraftHead):  # it has its own word embedding, for the same vocabulary
                head.embed_tokens = self._get_resized_embeddings(
                    head.embed_tokens, resized.num_embeddings, mean_resizing=mean_resizing
                ).requires_grad_(head.embed_tokens.weight.requires_grad)
        return resized


class LongCatLiteModel(LongCatLitePreTrainedModel):
    """The trunk: token ids to final-norm states. N-grams are looked up here, so that training loops which call the
    base model and apply the language-model head themselves, as TRL does, get them too."""

    def __init__(self, config: LongCatLiteConfig, has_draft_head: bool = False, ngram_tables: str = "resident"):
        config.validate_architecture()  # fields may have been set after it was created
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
    def forward(  # type: ignore[misc]  # `TransformersKwargs` names `position_ids` too
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        ngram_input_ids: torch.LongTensor | None = None,
        ngram_attention_mask: torch.Tensor | None = None,
        ngram_row_ids: torch.LongTensor | None = None,
        trunk_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MoeModelOutputWithPast:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `[B, T]`, *optional*): Tokens.
            attention_mask (`torch.Tensor` of shape `[B, L]` or `[B, 1, T, L]`, *optional*):
                0 where a token is hidden, anywhere in a row. The n-grams of a token are formed from the last visible
                tokens before it; with a 4D mask, from the last ones that are visible in its own row of the mask.
            position_ids (`torch.LongTensor` of shape `[B, T]` or `[1, T]`, *optional*):
                Positions. Without a mask, any step other than +1 begins another document, whose border neither
                attention nor n-grams cross. With a 2D mask, only a position that does not grow begins one.
            cache (`Cache`, *optional*): Latent keys and values with their token history.
            inputs_embeds (`torch.FloatTensor` of shape `[B, T, D]`, *optional*):
                Word embeddings that replace `input_ids`; they need `ngram_input_ids`.
            ngram_input_ids (`torch.LongTensor` of shape `[B, T]`, *optional*): Tokens that only the n-grams are
            formed from. ngram_attention_mask (`torch.Tensor` of shape `[B, L]`, *optional*):
                The 2D mask that a 4D `attention_mask` was made from, with which n-grams are found faster.
            ngram_row_ids (`torch.LongTensor` of shape `[B, T, S]`, *optional*):
                The table rows of every token, for `input_ids` that are part of a longer row: the result of
                `modeling_longcat_lite.ngram_row_ids` on the whole row, sub-tables last. Not with a cache.
            trunk_embeds (`torch.FloatTensor` of shape `[B, T, D]`, *optional*):
                Input of the first layer, if drafting has already looked it up; `input_ids` then only go to the cache.
            use_cache (`bool`, *optional*): Return a cache.
            past_key_values (`Cache`, *optional*): The name of `cache` before transformers 5.24.

        Raises:
            `ValueError`: if the inputs contradict each other, a token id is outside the vocabulary, a sequence is
                longer than `config.index_topk`, or a cache or tensor has an unknown name.
        """
        check_unread_inputs(kwargs)
        tokens = checked_tokens(self.config, input_ids, inputs_embeds, ngram_input_ids)
        word_embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache_with_history(the_cache(cache, past_key_values), use_cache, word_embeds)
        attention_mask = fitted_mask(attention_mask, cache, *word_embeds.shape[:2])
        if (topk := self.config.dense_attention_limit) is not None:
            is_part, length = ngram_row_ids is not None, word_embeds.shape[1]
            length = longest_sequence(length, attention_mask, position_ids, cache, is_part)
            check_length(length, topk, "A sequence")
        mask_arguments = causal_mask_arguments(attention_mask, position_ids, cache)

        codes = None
        if ngram_row_ids is not None:
            check_row_ids(self.config, ngram_row_ids, word_embeds, cache)
        elif self.ngram_embeddings is not None:
            # Before the layers fill the cache: a window is what the cache holds, then the new tokens.
            visible = attention_mask if ngram_attention_mask is None else ngram_attention_mask
            codes = token_windows(self.config, tokens, visible, position_ids, cache)  # type: ignore[arg-type]
        hidden_states = self.embed(word_embeds, codes, ngram_row_ids) if trunk_embeds is None else trunk_embeds

        if position_ids is None:
            past = 0 if cache is None else cache.get_seq_length()
            position_ids = (torch.arange(word_embeds.shape[1], device=word_embeds.device) + past)[None]  # type: ignore
        causal_mask = create_causal_mask(self.config, hidden_states, **mask_arguments)
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                cache=cache,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                **kwargs,
            )
        hidden_states = with_idle_parameters(self.norm(hidden_states), self.mtp)
        held: dict[str, Any] = {CACHE: cache}
        return MoeModelOutputWithPast(last_hidden_state=hidden_states, **held)

    def embed(
        self, word_embeds: torch.Tensor, codes: torch.Tensor | None, row_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The input of the first layer, `[B, T, D]`.

        Args:
            word_embeds (`torch.Tensor` of shape `[B, T, D]`): Rows of the word table.
            codes (`torch.Tensor` of shape `[B, N - 1 + T]` or `[B T, N]`, *optional*):
                Codes that end with the tokens, for each row or for each token.
            row_ids (`torch.Tensor` of shape `[B, T, S]`, *optional*): Table rows, in place of codes.
        """
        if self.ngram_embeddings is not None:
            words = word_embeds
            if codes is not None and codes.shape[0] != word_embeds.shape[0]:
                words = word_embeds.reshape(codes.shape[0], -1, word_embeds.shape[-1])  # [B T, 1, D]
            word_embeds = self.ngram_embeddings(words, codes, row_ids).view_as(word_embeds)
        return self.embedding_amplification(word_embeds)

    def embed_tokens_with_history(
        self, input_ids: torch.Tensor, codes: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[`embed`] for tokens `[B, T]` that end a history of codes, `[B, N - 1 + L]`.

        A mask, `[B, <= L]`, marks which of the L are hidden; tokens beyond its width are visible.
        """
        windows = last_windows(self.config, codes, input_ids.shape[1], attention_mask)
        return self.embed(self.embed_tokens(input_ids), windows)

    def prefetch_ngram_rows(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None):
        """Starts reading the n-gram rows of a prompt `[B, T]` from disk, without waiting for them."""
        if self.ngram_embeddings is None or self.ngram_embeddings.placement != "disk":
            return
        mask = attention_mask if attention_mask is not None and attention_mask.shape == input_ids.shape else None
        self.ngram_embeddings.prefetch(token_windows(self.config, input_ids, mask))

    def _cache_with_history(self, cache: Cache | None, use_cache, word_embeds) -> Cache | None:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled() and cache is not None:
            # The layers would read it in the forward pass, and fill it again in the backward pass.
            raise ValueError(f"Gradient checkpointing cannot train with a cache: do not pass `{CACHE}`.")
        if cache is None and use_cache:
            cache = LongCatLiteDynamicCache(config=self.config)
        if cache is None or self.ngram_embeddings is None:
            return cache
        if torch.compiler.is_compiling():  # `generate` has checked it
            return with_token_history(cache)
        check_fits(cache, self.cache_layout, len(word_embeds), new_tokens=word_embeds.shape[1])
        return with_token_history(cache, self.cache_layout)


class LongCatLiteForCausalLM(LongCatLitePreTrainedModel, LongCatLiteGenerationMixin):
    """The trunk with a language-model head.

    A checkpoint must hold every tensor of the model. A checkpoint of the trunk alone is refused; load it with
    [`LongCatLiteModel`]. Other models of transformers warn and create a fresh head, which generates noise.
    """

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
    def forward(  # type: ignore[misc]  # `TransformersKwargs` names `position_ids` too
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        ngram_input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        past_key_values: Cache | None = None,
        promised_cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MoeCausalLMOutputWithPast:
        r"""
        Arguments as in [`LongCatLiteModel`], and:

        Args:
            labels (`torch.LongTensor` of shape `[B, T]`, *optional*): Targets, shifted here; -100 is ignored.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0): Number of last positions that get
            logits; 0 for all. promised_cache (`Cache`, *optional*):
                The cache that `generate` prepared, passed at its first step: if another cache arrives as `cache`, a
                `ValueError` is raised.

        ```python
        >>> from transformers import AutoTokenizer
        >>> from modeling_longcat_lite import LongCatLiteForCausalLM

        >>> model = LongCatLiteForCausalLM.from_pretrained("meituan-longcat/LongCat-Flash-Lite", device_map="auto")
        >>> tokenizer = AutoTokenizer.from_pretrained("meituan-longcat/LongCat-Flash-Lite")
        >>> inputs = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
        >>> tokenizer.decode(model.generate(**inputs, max_new_tokens=8)[0])
        ```
        """
        cache = the_cache(cache, past_key_values)
        if promised_cache is not None and promised_cache is not cache:
            check_unread_inputs(kwargs)  # it may be there under another name
        check_promise(promised_cache, cache)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
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
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
            **{CACHE: outputs.get(CACHE)},
        )

    def add_draft_head(self):
        """Adds a fresh draft head, to be trained. Its word embedding starts as a copy of the trunk's."""
        trunk = self.model
        if trunk.mtp is not None:
            raise ValueError("This model already has a draft head.")
        self.config.num_nextn_predict_layers = trunk.config.num_nextn_predict_layers = 1
        trunk.mtp = LongCatLiteDraftHead(self.config).to(trunk.embed_tokens.weight)
        trunk.mtp.apply(self._init_weights)
        trunk.mtp.embed_tokens.weight.data.copy_(trunk.embed_tokens.weight)
        # Loading keeps the conversions of the tensors that it found; saving now needs those of the head too.
        self.__dict__.pop("_weight_conversions", None)


__all__ = ["LongCatLiteForCausalLM", "LongCatLiteModel", "LongCatLitePreTrainedModel"]
