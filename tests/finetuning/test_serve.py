# SPDX-License-Identifier: Apache-2.0
"""`python -m training.serve` answers over OpenAI's API, streamed and with tools too, and to `transformers chat`."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from tiny_chat import write_tiny_chat

from model_cards.build_hub_repo import build_hub_repo
from training import serve

QUESTION = {"role": "user", "content": "What does function 1 do?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look up.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string", "description": "A name."}}},
    },
}
CALL = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": json.dumps({"name": "sort"})}}
SECONDS_TO_START = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a server, the folder it serves, and the file of its log."""
    folder = tmp_path_factory.mktemp("served")
    write_tiny_chat(folder, max_position_embeddings=1024)
    package = folder / "package"
    build_hub_repo(folder / "model", package)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "training.serve", package, "--device", "cpu"]
    log = folder / "server.log"
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}/v1", package
        finally:
            process.kill()
            process.wait()


def wait_until_healthy(address: str, process: subprocess.Popen, log: Path) -> None:
    begin = time.monotonic()
    while process.poll() is None and time.monotonic() - begin < SECONDS_TO_START:
        try:
            if httpx2.get(f"{address}/health").status_code == 200:
                return
        except httpx2.ConnectError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


def complete(server, *messages: dict, **options) -> httpx2.Response:
    address, package = server
    request = {"model": str(package), "messages": messages, "max_tokens": 8, "temperature": 0, **options}
    response = httpx2.post(f"{address}/chat/completions", json=request, timeout=60)
    assert response.status_code == 200, response.text
    return response


def first_choice(response: httpx2.Response) -> dict:
    return response.json()["choices"][0]


@pytest.mark.slow
def test_it_answers_with_the_tokens_of_generate(server):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    choice = first_choice(complete(server, QUESTION))
    tokenizer = AutoTokenizer.from_pretrained(server[1])
    model = AutoModelForCausalLM.from_pretrained(server[1])
    prompt = tokenizer.apply_chat_template(
        [QUESTION], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    output = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert choice["message"]["content"] == tokenizer.decode(output, skip_special_tokens=True)
    assert choice["finish_reason"] == "length"


@pytest.mark.slow
def test_streamed_pieces_are_the_answer(server):
    whole = first_choice(complete(server, QUESTION))["message"]["content"]
    lines = complete(server, QUESTION, stream=True).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events]
    # An untrained model may end inside a character, which is never sent.
    assert "".join(delta.get("content", "") for delta in deltas).rstrip("\ufffd") == whole.rstrip("\ufffd")
    assert events[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.slow
def test_tools_and_their_results_reach_the_prompt(server):
    plain = complete(server, QUESTION).json()["usage"]["prompt_tokens"]
    declared = complete(server, QUESTION, tools=[TOOL]).json()["usage"]["prompt_tokens"]
    assert declared > plain + 100
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "1", "content": "sort: sorts"}
    assert complete(server, QUESTION, called, result, tools=[TOOL]).json()["usage"]["prompt_tokens"] > declared + 10


@pytest.mark.slow
def test_the_chat_command_talks_to_it(server, tmp_path):
    address, package = server
    command = [Path(sys.executable).with_name("transformers"), "chat", package, address]
    # Its client refuses every address while HF_HUB_OFFLINE is set, this machine's own too.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_HUB_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1"}
    spoken = subprocess.run(
        [*command, "do_sample=False", "max_new_tokens=8"],
        input=f"{QUESTION['content']}\nn\n!exit\n", env=environment,
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert spoken.returncode == 0, spoken.stderr[-3000:]
    # How its client shows an untrained model's bytes is its own matter; it says in words that the stream ended.
    assert "Generation stopped after reaching the token limit." in spoken.stdout


def test_continuous_batching_is_refused_before_anything_is_loaded():
    with pytest.raises(ValueError, match=r"`--continuous-batching` is not supported: .* Leave it out"):
        serve.main(["folder", "--continuous-batching"])
