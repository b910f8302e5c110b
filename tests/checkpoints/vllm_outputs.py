# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities and greedy tokens of a checkpoint in vLLM, for `test_vllm.py`: runs in vLLM's environment.

.venv-vllm/bin/python tests/checkpoints/vllm_outputs.py CHECKPOINT OUTPUT.json \
    --hf-overrides '{"model_type": "longcat_flash"}' \
    --prompts FILE.json [--new-tokens 8] [--max-num-batched-tokens 32]
"""

import argparse
import json
from pathlib import Path

import vllm_stand_ins

STOOD_IN = vllm_stand_ins.install()

from vllm import LLM, SamplingParams  # noqa: E402 (the kernels first)


def main(arguments: argparse.Namespace) -> None:
    """Writes `stood_in`, and for each prompt `logprobs` (of every token but the first) and greedy `tokens`."""
    chunks = {}
    if arguments.max_num_batched_tokens is not None:
        chunks = {"max_num_batched_tokens": arguments.max_num_batched_tokens, "enable_chunked_prefill": True}
    model = LLM(
        str(arguments.checkpoint),
        hf_overrides=arguments.hf_overrides,
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        **chunks,
    )
    prompts = json.loads(arguments.prompts.read_text())
    sampling = SamplingParams(temperature=0.0, max_tokens=arguments.new_tokens, prompt_logprobs=0)
    outputs = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling)
    rows = [
        {
            "logprobs": [of[token].logprob for token, of in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)],
            "tokens": list(output.outputs[0].token_ids),
        }
        for prompt, output in zip(prompts, outputs, strict=True)
    ]
    arguments.output.write_text(json.dumps({"stood_in": STOOD_IN, "rows": rows}))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder")
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON file with lists of token ids")
    parser.add_argument("--hf-overrides", type=json.loads, default={}, help="as `vllm serve` takes it")
    parser.add_argument("--new-tokens", type=int, default=8, help="to generate for each prompt")
    parser.add_argument("--max-num-batched-tokens", type=int, help="tokens of one step: longer prompts are cut")
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())
