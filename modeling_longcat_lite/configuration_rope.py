# SPDX-License-Identifier: Apache-2.0
"""RoPE in a configuration: the released settings, the spellings of other readers, and what the numbers may be."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

RELEASED_ROPE_PARAMETERS = {
    "rope_type": "yarn",
    "rope_theta": 5_000_000.0,
    "factor": 10.0,
    "original_max_position_embeddings": 32768,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

LARGEST_INTEGER = 2**31 - 1
ROPE_NUMBERS = {
    "rope_theta": (1 + 1e-6, 1e18),  # YaRN divides by its logarithm
    "factor": (1, 1e6),
    "original_max_position_embeddings": (1, LARGEST_INTEGER),
    "attention_factor": (1e-6, 1e6),
    "beta_fast": (1e-6, 1e6),
    "beta_slow": (1e-6, 1e6),
    "mscale": (0, 1e3),
    "mscale_all_dim": (0, 1e3),
    "low_freq_factor": (1e-6, 1e6),
    "high_freq_factor": (1e-6, 1e6),
    "partial_rotary_factor": (1, 1),  # a head's rotated part is `qk_rope_head_dim`, all of it
}
# The same of `short_factor` and `long_factor`, lists of them. Null is as good as absent for these:
ROPE_OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "partial_rotary_factor")


def is_number(value: Any, least: float, most: float) -> bool:
    """Whether a value is a number from `least` to `most`, both included; True and NaN are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def with_known_rope_type(rope: dict[str, Any] | None, field: str) -> dict[str, Any] | None:
    """A copy of `field` with `yarn` for `deepseek_yarn`, which is SGLang's name of it and has the same fields.

    Both keys with that name are what `to_json_file` writes for one: `type` is left out again.
    """
    if rope is None:
        return None
    if not isinstance(rope, dict):
        raise ValueError(f"`{field}` must be an object of fields, or null, got {rope!r}.")
    named = {key: "yarn" for key in ("type", "rope_type") if rope.get(key) == "deepseek_yarn"}
    known = {**rope, **named}
    if len(named) == 2:
        del known["type"]
    return known


def merge_rope_fields(rope_parameters: dict[str, Any] | None, fields: dict[str, Any]):
    """Drops `rope_scaling` and `rope_theta` from `fields` if `rope_parameters` says the same.

    Some files describe RoPE twice, for old readers and for new ones: an edit of one alone would be lost.
    """
    scaling = fields.get("rope_scaling") or {}
    for rope in (rope_parameters or {}, scaling):
        if rope.get("type", rope.get("rope_type")) != rope.get("rope_type", rope.get("type")):
            raise ValueError(f"`rope_type` is {rope['rope_type']!r} but `type` beside it is {rope['type']!r}.")
    if rope_parameters is None:
        return
    own = {"rope_type": rope_parameters.get("type", "default"), **rope_parameters}
    stated = {"rope_type": scaling["type"]} if "type" in scaling else {}
    stated |= {key: value for key, value in scaling.items() if key != "type"}
    if fields.get("rope_theta") is not None:
        stated["rope_theta"] = fields["rope_theta"]
    if "rope_scaling" in fields and not scaling:
        stated["rope_type"] = "default"
    for key, value in stated.items():
        if own.get(key) != value:
            raise ValueError(
                f"`rope_parameters['{key}']` is {own.get(key)!r} but the legacy `rope_scaling` / `rope_theta` "
                f"fields say {value!r}. Change both, or remove the legacy fields."
            )
    fields.pop("rope_scaling", None)
    fields.pop("rope_theta", None)


def validate_rope_numbers(rope: dict[str, Any]):
    """Numbers that make angles NaN or infinite; transformers only warns of them."""
    for name, value in rope.items():
        if isinstance(value, dict):  # the settings of a kind of layer: nothing here would read them
            raise ValueError(f"`{name}` in `rope_parameters` is an object: all layers of this model share one RoPE.")
    for name, (least, most) in ROPE_NUMBERS.items():
        value = rope.get(name)
        is_unread = rope.get("rope_type") in ("default", "longrope") and name != "rope_theta"
        if value is None and (name not in rope or name in ROPE_OPTIONAL or is_unread):
            continue
        if not is_number(value, least, most):
            wanted = f"a number from {least:g} to {most:g}" if least < most else f"{most:g}"
            raise ValueError(f"`{name}` in `rope_parameters` must be {wanted}, got {value!r}.")
    for name in ("short_factor", "long_factor"):
        values = rope.get(name, [])
        if not isinstance(values, list) or not all(is_number(value, 1e-6, 1e6) for value in values):
            raise ValueError(f"`{name}` in `rope_parameters` must be a list of numbers from 1e-06 to 1e+06.")
    for below, above in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
        if rope.get(below) is not None and rope.get(above) is not None and rope[below] >= rope[above]:
            raise ValueError(
                f"`{below}` ({rope[below]}) in `rope_parameters` must be below `{above}` ({rope[above]})."
            )


def validate_rope_fields(config: PreTrainedConfig):
    """transformers warns about odd RoPE settings; what cannot work raises here."""
    try:
        config.validate_rope()
    except KeyError as error:
        raise ValueError(f"`rope_parameters` is incomplete: {error.args[0]}") from error
    if config.rope_parameters["rope_type"] not in ("default", *ROPE_INIT_FUNCTIONS):
        raise ValueError(f"`rope_type` {config.rope_parameters['rope_type']!r} in `rope_parameters` is unknown.")


def legacy_rope_fields(rope_parameters: dict[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, the only spelling of YaRN that every reader takes.

    `rope_parameters`, or the type `yarn`, keeps a folder out of `AutoTokenizer` without remote code, and so out of
    mlx-lm's commands, and out of SGLang: their configs check YaRN before they know `max_position_embeddings`.
    """
    theta, kind = rope_parameters["rope_theta"], rope_parameters["rope_type"]
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    scaling = {key: value for key, value in rope_parameters.items() if key != "rope_theta"}
    if kind == "yarn":
        scaling |= dict.fromkeys(("type", "rope_type"), "deepseek_yarn")
    return {"rope_theta": theta, "rope_scaling": scaling}


__all__ = [
    "LARGEST_INTEGER",
    "RELEASED_ROPE_PARAMETERS",
    "is_number",
    "legacy_rope_fields",
    "merge_rope_fields",
    "validate_rope_fields",
    "validate_rope_numbers",
    "with_known_rope_type",
]
