# SPDX-License-Identifier: Apache-2.0
"""What vLLM makes of replies with tool calls, for `tests/checkpoints/test_vllm.py`: runs in vLLM's own environment.

.venv-vllm/bin/python tests/checkpoints/vllm_tool_calls.py FOLDER REPLIES.json
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser.parser_manager import ParserManager

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in "fg"]
MESSAGES = [{"role": "user", "content": "U"}]


def main(folder: str, replies: str) -> None:
    """Prints for each reply its `content` and `calls` with `--tool-call-parser hf`, read whole and as a stream."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    parser = ParserManager.get_parser(tool_parser_name="hf", enable_auto_tools=True, tokenizer=tokenizer)
    prompt = tokenizer.apply_chat_template(MESSAGES, tools=TOOLS, add_generation_prompt=True, return_dict=True)
    request = ChatCompletionRequest(messages=MESSAGES, tools=TOOLS, tool_choice="auto")
    for reply in json.loads(Path(replies).read_text()):
        whole = parser(tokenizer, TOOLS)
        whole.set_prompt_token_ids(prompt["input_ids"])
        _, content, calls = whole.parse(reply, request, enable_auto_tools=True)
        read = {"content": content or "", "calls": [[call.name, call.arguments] for call in calls or []]}

        stream, streamed = parser(tokenizer, TOOLS, enable_auto_tools=True), {"content": "", "calls": []}
        for end, character in enumerate(reply, start=1):
            last = end == len(reply)
            delta = stream.parse_delta(character, [], request, prompt["input_ids"], finished=last)
            if delta is not None:
                streamed["content"] += delta.content or ""
                streamed["calls"] += [[call.function.name, call.function.arguments] for call in delta.tool_calls or []]
        print(json.dumps({"reply": reply, "whole": read, "streamed": streamed}))


if __name__ == "__main__":
    main(*sys.argv[1:])
