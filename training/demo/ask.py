# SPDX-License-Identifier: Apache-2.0
"""Ask a packaged model questions; the answers stream to the terminal.

    python -m training.demo.ask --model outputs/demo/package "What does str.join do?"

The model's code comes from the folder, or from the Hub. `--isolated` proves it: the installed package cannot be
imported then.
"""

import argparse
import json
import sys
from pathlib import Path

from tokenization.command_line import CommandParser, run_command


def main(arguments: argparse.Namespace) -> None:
    if arguments.isolated:
        # From here on, importing the package fails, so the code can only come from the folder.
        sys.modules["modeling_longcat_lite"] = None  # type: ignore[assignment]
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The tokenizer has no code, but its Auto class reads the configuration, which has.
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, trust_remote_code=True)
    model = model.eval().to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    questions = list(arguments.questions)
    if arguments.questions_file:
        questions += json.loads(arguments.questions_file.read_text(encoding="utf-8"))
    answers = []
    for question in questions:
        print(f"\n> {question}", flush=True)
        answers.append({"question": question, "answer": answer(model, tokenizer, question, arguments.max_new_tokens)})
    if arguments.output:
        result = {"model_class": f"{type(model).__module__}.{type(model).__qualname__}", "answers": answers}
        arguments.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def answer(model, tokenizer, question: str, max_new_tokens: int) -> str:
    """Generate greedily and print tokens as they come; returns the whole answer."""
    from transformers import TextStreamer

    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    output = model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer)
    return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def make_parser() -> CommandParser:
    parser = CommandParser("training.demo.ask", "Ask a packaged model questions.")
    parser.add_argument("questions", nargs="*", help="questions, each in quotes")
    parser.add_shared("--model", required=True)
    parser.add_argument("--questions-file", type=Path, metavar="FILE", help="JSON list of further questions")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write the answers to")
    parser.add_argument("--max-new-tokens", type=int, default=96, help="tokens of the longest answer")
    parser.add_argument("--isolated", action="store_true", help="make modeling_longcat_lite impossible to import")
    return parser


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
