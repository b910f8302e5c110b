# SPDX-License-Identifier: Apache-2.0
"""Let a model call Python functions until it answers.

```python
from tokenization.tool_loop import run_tools

messages = [{"role": "user", "content": "What is 482 plus 17?"}]
messages = run_tools(model, tokenizer, messages, tools=[add], max_new_tokens=256)
messages[-1]["content"]
```

Generation stops at a call, the function runs with checked arguments, and its result goes back as a `tool` message.
If a call cannot be run (malformed text, no such tool, arguments that break the schema, an exception in the function),
the model gets the error instead and may try again. Nothing that the model writes is evaluated, and no text in a
message becomes a control token. The model can be anything with `generate` and `device`; the tokenizer needs LongCat's
chat template.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import get_json_schema

from tokenization.chat_messages import normalized_messages
from tokenization.special_tokens import EOS_TOKEN
from tokenization.tool_arguments import problem_of_arguments
from tokenization.tool_calls import Function, ToolCallError, parse_tool_calls


def run_tools(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[Callable],
    max_turns: int = 8,
    **generate_options: Any,
) -> list[dict[str, Any]]:
    """Generate, run the tools that the model calls, and go on until it answers without a call.

    Args:
        model (`PreTrainedModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        messages (`Sequence[dict]`):
            The conversation so far; it does not change. OpenAI's role `developer` and arguments as JSON text are
            accepted.
        tools (`Sequence[Callable]`):
            Functions with type hints and a docstring in Google's style, see [`~transformers.utils.get_json_schema`].
            They run in this process, with whatever arguments of the declared types the model chooses.
        max_turns (`int`, *optional*, defaults to 8): Largest number of turns of the assistant.
        generate_options: Options of `generate` for each turn, such as `max_new_tokens`.

    Returns:
        `list[dict]`: The conversation with all new messages. The last one is the answer, or a `tool` message if
        `max_turns` were used up first.

    Raises:
        `ValueError`: `max_turns` is below 1, two tools have the same name, or a tool call in `messages` cannot be
            written.
    """
    if max_turns < 1:
        raise ValueError(f"`max_turns` is {max_turns}, but must be at least 1")
    schemas = [get_json_schema(tool)["function"] for tool in tools]
    by_name = {schema["name"]: (tool, schema) for tool, schema in zip(tools, schemas, strict=True)}
    if len(by_name) < len(schemas):
        raise ValueError(f"`tools` has a name twice: {', '.join(schema['name'] for schema in schemas)}; rename one")
    conversation = list(messages)
    for _ in range(max_turns):
        text = generate_turn(model, tokenizer, conversation, schemas, generate_options)
        said, results = run_turn(text, by_name)
        conversation.append(said)
        if not results:
            break
        conversation += [{"role": "tool", "content": result} for result in results]
    return conversation


def generate_turn(
    model: Any,
    tokenizer: Any,
    conversation: Sequence[dict[str, Any]],
    schemas: Sequence[dict[str, Any]],
    generate_options: Mapping[str, Any],
) -> str:
    """What the assistant writes next, with its special tokens."""
    prompt = tokenizer.apply_chat_template(
        normalized_messages(conversation),
        tools=schemas or None,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        sanitize_control_tokens=True,
    ).to(model.device)
    output = model.generate(**prompt, **generate_options)
    return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])


def run_turn(text: str, by_name: Mapping[str, tuple[Callable, dict[str, Any]]]) -> tuple[dict[str, Any], list[str]]:
    """The assistant's message and the result of each of its calls; without results, the message is the answer."""
    try:
        content, calls = parse_tool_calls(text, [schema for _, schema in by_name.values()])
    except ToolCallError as error:
        # The model sees what it wrote, as plain text, and what is wrong with it.
        return {"role": "assistant", "content": text.removesuffix(EOS_TOKEN)}, [f"Error: {error}"]
    said: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        said["tool_calls"] = calls
    return said, [run_call(call["function"], by_name) for call in calls]


def run_call(function: Function, by_name: Mapping[str, tuple[Callable, dict[str, Any]]]) -> str:
    """The result of one call as text: a string unchanged, any other value as JSON, a failure as an error."""
    name, arguments = function["name"], function["arguments"]
    if name not in by_name:
        return f"Error: there is no tool {name!r}, only {', '.join(map(repr, by_name)) or 'none at all'}"
    tool, schema = by_name[name]
    if problem := problem_of_arguments(arguments, schema["parameters"]):
        return f"Error: {name}: {problem}"
    try:
        result = tool(**arguments)
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
    except Exception as error:  # the model reads what a tool raises, and that a result is not JSON
        return f"Error: {name}: {type(error).__name__}: {error}"


__all__ = ["run_tools"]
