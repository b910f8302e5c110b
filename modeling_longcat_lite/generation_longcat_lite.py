# SPDX-License-Identifier: Apache-2.0
"""What `generate` needs to know about this model, given through its hooks. `generate` itself is not overridden."""

import torch
from transformers import GenerationMixin
from transformers.cache_utils import Cache, QuantizedCache, StaticCache
from transformers.generation import GenerationMode

from .draft_generation import DraftCandidateGenerator, DraftStatistics
from .model_inputs import check_token_ids
from .ngram_cache import check_fits, with_token_history
from .sparse_attention import check_length
from .transformers_versions import CACHE, CACHE_NAMES, check_prepared_cache, check_promise, the_cache


class LongCatLiteGenerationMixin(GenerationMixin):
    """Token history in every cache, drafting with the checkpoint's head, n-grams for prompts given as embeddings."""

    # What the last `generate(..., use_mtp=True)` drafted and the trunk accepted.
    draft_statistics: DraftStatistics | None = None

    def _prepare_model_inputs(self, inputs, bos_token_id, model_kwargs):
        for other in set(CACHE_NAMES) - {CACHE}:
            if model_kwargs.get(other) is not None:
                model_kwargs[CACHE] = the_cache(model_kwargs.get(CACHE), model_kwargs.pop(other))
        inputs, name, model_kwargs = super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)
        if name == "inputs_embeds" and model_kwargs.get("ngram_input_ids") is None:
            tokens = model_kwargs.get("input_ids")
            if tokens is not None and tokens.shape == inputs.shape[:2]:
                model_kwargs["ngram_input_ids"] = tokens  # the prompt was given both ways
        if name == "input_ids":
            check_token_ids(inputs, self.config.vocab_size)
            # For the whole prompt: while one chunk is computed, the drive reads for the next.
            self.model.prefetch_ngram_rows(inputs, model_kwargs.get("attention_mask"))
        return inputs, name, model_kwargs

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)
        if generation_config.assistant_early_exit is not None:
            raise ValueError(
                "`assistant_early_exit` drafts with the first layers of a model trained for early exit. This one was "
                "not: use `use_mtp=True`, `prompt_lookup_num_tokens` or an `assistant_model`."
            )
        if not generation_config.use_mtp:
            return
        if self.model.mtp is None:
            raise ValueError(
                "`use_mtp=True` needs a draft head, and this model has none: its checkpoint carries no `model.mtp.*` "
                "tensors, or `config.num_nextn_predict_layers` is 0."
            )
        # transformers would let `use_mtp` win, and say nothing or log a warning.
        if generation_config.num_beams > 1:
            raise ValueError(f"`use_mtp=True` takes `num_beams=1`, but it is {generation_config.num_beams}.")
        others = {
            "assistant_model": generation_mode_kwargs.get("assistant_model"),
            "prompt_lookup_num_tokens": generation_config.prompt_lookup_num_tokens,
        }
        for name, value in others.items():
            if value is not None:
                raise ValueError(f"`use_mtp=True` and `{name}` are two ways of drafting: pass only one.")

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ):
        if generation_config.use_cache is None:  # `generate` would prepare a cache, yet pass all tokens at every step
            generation_config.use_cache = True
        check_length(max_cache_length, self.config.dense_attention_limit, "The prompt plus the tokens to generate")
        layout, cache = self.model.cache_layout, model_kwargs.get(CACHE)
        if cache is not None and self.config.use_ngram_embedding:
            rows = batch_size * max(generation_config.num_beams, generation_config.num_return_sequences)
            check_fits(cache, layout, rows, length=max_cache_length)
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        cache = check_prepared_cache(model_kwargs, is_wanted=generation_config.use_cache is not False)
        if generation_mode == GenerationMode.ASSISTED_GENERATION:
            check_can_be_assisted(cache, batch_size)
        if cache is not None and self.config.use_ngram_embedding:
            # Here rather than in the first forward, which may be compiled.
            with_token_history(cache, layout)

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        # A wrapper that drops the cache also drops the promise; the outputs reveal it.
        check_promise(model_kwargs.get(CACHE), outputs.get(CACHE))
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    def _get_candidate_generator(self, generation_config, **kwargs):
        """`use_mtp=True` drafts with the checkpoint's head; `draft_statistics` then holds the result."""
        readers = {
            "`use_mtp=True`, whose head": bool(generation_config.use_mtp),
            "an `assistant_model`, which": kwargs.get("assistant_model") is not None,
        }
        check_assisted_embeddings(kwargs["input_ids"], kwargs["model_kwargs"], readers)
        generator = (
            self._draft_candidate_generator(generation_config, **kwargs)
            if generation_config.use_mtp
            else super()._get_candidate_generator(generation_config=generation_config, **kwargs)
        )
        # Unlike the other modes, assisted decoding would read again what a user's cache already holds.
        cache = kwargs["model_kwargs"].get(CACHE)
        if cache is not None and (num_cached_tokens := int(cache.get_seq_length())):
            kwargs["model_kwargs"]["num_cached_tokens"] = num_cached_tokens
        return generator

    def _draft_candidate_generator(self, generation_config, **kwargs) -> DraftCandidateGenerator:
        generator = DraftCandidateGenerator(
            head=self.model.mtp,
            lm_head=self.lm_head,
            num_draft_tokens=self.config.num_draft_tokens,
            max_length=generation_config.max_length,
            logits_processor=kwargs.get("logits_processor"),
            do_sample=generation_config.do_sample,
            output_hidden_states=generation_config.output_hidden_states,
            embed=self.model.embed_tokens_with_history if self.config.mtp_use_ngram_embedding else None,
        )
        self.draft_statistics = generator.statistics
        return generator

    def init_continuous_batching(self, *args, **kwargs):
        """Refused: the paged cache of transformers gives key and value pages the same size, `config.head_dim`, and its
        forward concatenates requests without the preceding ids, which n-grams need."""
        raise NotImplementedError(
            "Continuous batching (`generate_batch`, `cache_implementation='paged'`, `transformers serve "
            "--continuous-batching`) cannot run this model: the paged cache has no room for latent attention and "
            "carries no token history. Use `generate` with left-padded batches."
        )

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, is_first_iteration=False, **kwargs):
        # It belongs to the `inputs_embeds` of the prompt. Generated tokens come as `input_ids`.
        prompt_tokens = kwargs.pop("ngram_input_ids", None)
        num_cached_tokens = kwargs.pop("num_cached_tokens", 0)
        if is_first_iteration and num_cached_tokens:
            kwargs["next_sequence_length"] = input_ids.shape[1] - num_cached_tokens
        inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        is_embedded = inputs.get("inputs_embeds") is not None
        length = inputs["inputs_embeds" if is_embedded else "input_ids"].shape[1]
        if is_embedded and prompt_tokens is not None:
            inputs["ngram_input_ids"] = prompt_tokens[:, -length:]
        cache = kwargs.get(CACHE)
        if is_first_iteration and cache is not None:
            inputs["promised_cache"] = cache
        padding_mask, mask = kwargs.get("attention_mask"), inputs.get("attention_mask")
        is_replaced = mask is not None and mask is not padding_mask and len(mask.shape) == 4
        if self.config.use_ngram_embedding and is_replaced and (length > 1 or not isinstance(mask, torch.Tensor)):
            # Compilable caches get a 4D mask. For a prompt, a 2D mask says the same in a fraction of the size. A block
            # mask of flex attention is a function, and the 2D mask is all that n-grams can read.
            if padding_mask is None and cache is not None:
                columns = int(cache.get_seq_length()) + length
                padding_mask = torch.ones(mask.shape[0], columns, dtype=torch.bool, device=input_ids.device)
            inputs["ngram_attention_mask"] = padding_mask
        return inputs


def check_can_be_assisted(cache: Cache | None, batch_size: int):
    """Raises a `ValueError` if assisted decoding, which removes rejected tokens, cannot run on `cache`."""
    for kind, name in ((StaticCache, "static"), (QuantizedCache, "quantized")):
        if isinstance(cache, kind):
            raise ValueError(
                f"Assisted decoding removes rejected tokens, which a {name} cache cannot do: use a dynamic cache."
            )
    if batch_size > 1:
        raise ValueError(f"Assisted decoding takes one row, but the input has {batch_size} rows.")


def check_assisted_embeddings(input_ids: torch.Tensor, model_kwargs: dict, readers: dict[str, bool]):
    """Raises a `ValueError` for a prompt of embeddings in which assisted decoding would miscount the tokens.

    `readers` maps what may draft, and would need the prompt's tokens, to whether it does.
    """
    if model_kwargs.get("inputs_embeds") is None:
        return
    cache = model_kwargs.get(CACHE)
    reasons = {f"{reader} reads the prompt's tokens": drafts for reader, drafts in readers.items()} | {
        "`input_ids` as well": input_ids.shape[1] > 0,
        "a cache that holds tokens": cache is not None and int(cache.get_seq_length()) > 0,
        "an `attention_mask`": model_kwargs.get("attention_mask") is not None,  # 5.23 drops one that is all ones
    }
    for reason, applies in reasons.items():
        if applies:
            raise ValueError(
                f"Assisted decoding takes `inputs_embeds` but not with {reason}: transformers would miscount the "
                "prompt's tokens. Pass `input_ids` alone, or decode without assistance."
            )


__all__ = ["LongCatLiteGenerationMixin"]
