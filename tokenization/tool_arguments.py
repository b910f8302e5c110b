# SPDX-License-Identifier: Apache-2.0
"""Check the arguments that a model wrote against the schema of the tool, before the tool is called.

Understands what [`~transformers.utils.get_json_schema`] writes: types, `enum`, `anyOf`, `nullable`, and the elements
of lists and dictionaries.
"""

from collections.abc import Mapping
from typing import Any

JSON_TYPES = {"boolean": bool, "string": str, "array": list, "object": dict, "null": type(None)}


def problem_of_arguments(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> str | None:
    """What is wrong with the arguments of a call, or `None`.

    Args:
        arguments (`Mapping[str, Any]`): JSON values by name.
        parameters (`Mapping[str, Any]`): The `parameters` of the tool's schema.
    """
    properties = parameters.get("properties") or {}
    for name in arguments:
        if name not in properties:
            return f"there is no argument {name!r}, only {', '.join(map(repr, properties)) or 'none at all'}"
    for name in parameters.get("required") or ():
        if name not in arguments:
            return f"the argument {name!r} is missing"
    for name, value in arguments.items():
        if problem := problem_of_value(value, properties[name]):
            return f"the argument {name!r} {problem}"
    return None


def problem_of_value(value: Any, schema: Mapping[str, Any]) -> str | None:
    """How a value breaks its schema, as the end of a sentence about it, or `None`."""
    if value is None and schema.get("nullable"):
        return None
    if "enum" in schema and not any(type(value) is type(choice) and value == choice for choice in schema["enum"]):
        return f"is {value!r}, must be one of {', '.join(map(repr, schema['enum']))}"
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices and all(problem_of_value(value, choice) for choice in choices):
        return f"is {value!r}, which none of its declared types allows"
    types = schema.get("type") or ()
    types = (types,) if isinstance(types, str) else types
    if types and not any(has_type(value, name) for name in types):
        return f"is {value!r}, must be of type {' or '.join(types)}"
    return problem_of_parts(value, schema)


def problem_of_parts(value: Any, schema: Mapping[str, Any]) -> str | None:
    """The same for the elements of a list or a dictionary."""
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, list):
        prefix = schema.get("prefixItems")
        if prefix is not None and len(prefix) != len(value):
            return f"has {len(value)} items, must have {len(prefix)}"
        parts = list(zip(value, prefix or [schema.get("items") or {}] * len(value), strict=True))
    elif isinstance(value, dict):
        declared, others = schema.get("properties") or {}, schema.get("additionalProperties")
        others = others if isinstance(others, dict) else {}
        parts = [(part, declared.get(key, others)) for key, part in value.items()]
    for part, part_schema in parts:
        if problem := problem_of_value(part, part_schema):
            return f"contains a value that {problem}"
    return None


def has_type(value: Any, name: str) -> bool:
    """Whether a JSON value has a JSON type; `True` is not a number, and to a Python function 3.0 is not an integer."""
    if name == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return name not in JSON_TYPES or isinstance(value, JSON_TYPES[name])


__all__ = ["problem_of_arguments"]
