# SPDX-License-Identifier: Apache-2.0
"""What mlx-lm, vLLM or SGLang compute differently for a checkpoint that loads there, or need to start.

Read in the versions of `runtimes.SOURCES`. `tests/checkpoints/test_mlx.py` measures mlx-lm's differences,
`test_vllm.py` vLLM's and `test_runtime_ids.py` the n-gram ids of all three; the others of SGLang are only read.
"""

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]
ZERO_EXPERT_BLOCK = 256  # values of a token that one block of the servers' zero-expert kernel processes


def has_ngrams(config: Config) -> bool:
    return config.get("use_ngram_embedding", True) and config.get("eos_token_id") is not None


def rope_type(config: Config) -> str:
    """The RoPE type, in whichever field states it."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return rope.get("rope_type") or rope.get("type") or "default"


def draft_head(config: Config) -> str | None:
    return "the draft head is not loaded" if config.get("num_nextn_predict_layers") != 0 else None


def trusted_tokenizer(config: Config) -> str | None:
    """transformers reads the config first, without this package's class unless remote code is trusted."""
    if rope_type(config) != "yarn":
        return None
    return (
        "the tokenizer does not load without trust_remote_code, because transformers checks the RoPE type `yarn` "
        "before it knows `max_position_embeddings`; save the model again with this package, which writes "
        "`deepseek_yarn`"
    )


def mlx_passes_eos(config: Config) -> str | None:
    text = "n-grams do not stop at end-of-sequence tokens: the tokens after one in a prompt are embedded differently"
    return text if has_ngrams(config) else None


def mlx_norms(config: Config) -> str | None:
    text = "the latent norms have an epsilon of 1e-5, not `latent_norm_eps`"
    return text if config.get("latent_norm_eps", 1e-6) != 1e-5 else None


def server_norms(config: Config) -> str | None:
    text = "the latent norms have the epsilon `rms_norm_eps`, not `latent_norm_eps`"
    return text if config.get("latent_norm_eps", 1e-6) != config.get("rms_norm_eps") else None


def vllm_eos_rows(config: Config) -> str | None:
    text = (
        "an end-of-sequence token is embedded by row 0 of every table instead of by its n-grams: everything after "
        "the first one, such as later turns of a chat, gets other probabilities"
    )
    return text if has_ngrams(config) else None


def vllm_override(config: Config) -> str | None:
    if config.get("model_type") in (None, "longcat_flash"):
        return None
    return 'it starts only with --hf-overrides \'{"model_type": "longcat_flash"}\''


def vllm_plain_rope(config: Config) -> str | None:
    text = (
        "its CPU build computes plain RoPE (`rope_scaling` of null) wrong for every head but the first; YaRN is right"
    )
    return text if rope_type(config) == "default" else None


def dropped_zero_experts(config: Config) -> str | None:
    size, experts = config.get("hidden_size", 0), config.get("zero_expert_num", 0)
    if not experts or size % ZERO_EXPERT_BLOCK == 0:
        return None
    return (
        f"`hidden_size` is {size}, which is not a multiple of {ZERO_EXPERT_BLOCK}: zero experts leave out the last "
        f"{size % ZERO_EXPERT_BLOCK} values of every token without an error"
    )


def sglang_scale(config: Config) -> str | None:
    factor, experts = config.get("routed_scaling_factor", 1.0), config.get("zero_expert_num", 0)
    if not experts or factor == 1 or not config.get("scale_zero_experts", True):
        return None
    return f"zero experts are added without `routed_scaling_factor` ({factor})"


def sglang_plain_rope(config: Config) -> str | None:
    if rope_type(config) != "default":
        return None
    return (
        "plain RoPE (`rope_scaling` of null) ends it while it builds the model; by its source, it starts with "
        '--json-model-override-args \'{"rope_parameters": {"rope_type": "default", "rope_theta": '
        f"{config.get('rope_theta')}}}}}'"
    )


DIFFERENCES: dict[str, tuple[Callable[[Config], str | None], ...]] = {
    "mlx-lm": (mlx_passes_eos, mlx_norms, draft_head, trusted_tokenizer),
    "vLLM": (
        vllm_eos_rows,
        dropped_zero_experts,
        server_norms,
        draft_head,
        trusted_tokenizer,
        vllm_plain_rope,
        vllm_override,
    ),
    "SGLang": (sglang_scale, dropped_zero_experts, server_norms, trusted_tokenizer, sglang_plain_rope),
}


def differences(runtime: str, config: Config) -> list[str]:
    """One sentence for each difference of `runtime` that affects a model with this config.

    Args:
        runtime (`str`): One of `runtimes.RUNTIMES`.
        config (`Mapping[str, Any]`): `config.json` as read, of a config that this package loads.
    """
    return [text for difference in DIFFERENCES[runtime] if (text := difference(config)) is not None]


__all__ = ["differences"]
