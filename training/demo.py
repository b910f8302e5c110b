# SPDX-License-Identifier: Apache-2.0
"""Train a small LongCat-Lite on Python's own documentation, package it, and ask it questions.

    python -m training.demo

Stages: conversations, tokenizer, an untrained model, fine-tuning by the recipe, held-out loss, the Hub folder, and
questions asked in a fresh process that has only that folder. Everything is seeded and written under outputs/demo.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OUTPUT = Path("outputs/demo")
RECIPE = Path("training/recipes/demo.yaml")
FACTS = Path("model_cards/facts/demo.yaml")
SEED = 0
VOCABULARY = 2048
CORE_ROUNDS = 18  # times each core conversation is trained on; every other conversation once
CORE_QUESTIONS = 10
HELD_OUT_QUESTIONS = 5
# N-gram rows hold just under half of the parameters; their ratio stays away from integers (paper, section 3.2.2).
MODEL: dict[str, Any] = {
    "hidden_size": 192,
    "num_layers": 2,
    "num_attention_heads": 4,
    "ffn_hidden_size": 384,
    "expert_ffn_hidden_size": 96,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "zero_expert_num": 2,
    "moe_topk": 2,
    "routed_scaling_factor": 1.0,
    "emb_neighbor_num": 4,
    "emb_split_num": 2,
    "ngram_vocab_size_ratio": 5.37,
    "embedding_amplification": "layer_norm",
    "num_nextn_predict_layers": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "max_position_embeddings": 2048,
}


def set_environment(output: Path) -> None:
    """What libraries read when they are imported: nothing is fetched, caches stay with the other files of a demo."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_CACHE"] = str(output.resolve() / "cache")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Steps this small gain little from a second thread and lose tenfold where another process wants the core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def main():
    set_environment(OUTPUT)
    from training.demo_report import print_answers, print_summary, write_report

    shutil.rmtree(OUTPUT, ignore_errors=True)
    seconds: dict[str, float] = {}
    with stage("conversations", seconds):
        train, questions = write_conversations()
    with stage("tokenizer and untrained model", seconds):
        write_untrained_model(train)
    with stage("fine-tuning", seconds):
        fine_tune()
    with stage("held-out answers", seconds):
        measure()
    write_report(OUTPUT, SEED, questions, seconds)
    with stage("packaging", seconds):
        package()
    with stage("questions in a fresh process", seconds):
        ask(questions)
    report = write_report(OUTPUT, SEED, questions, seconds)
    write_card()
    print_answers(report)
    print_summary(report, OUTPUT)
    return 0 if report["passed"] else 1


@contextmanager
def stage(name, seconds):
    """Announce a stage and time it."""
    from rich.console import Console

    Console().rule(f"[bold]{name}", align="left")
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)


def write_conversations():
    """Write both sides and draw the questions; returns the training side and the questions with their answers."""
    from training.conversations import core_conversations, documentation_conversations, split, training_rounds

    train, held_out = split(documentation_conversations())
    core = core_conversations(train)
    data = OUTPUT / "data"
    data.mkdir(parents=True)
    for name, side in (("train", training_rounds(train, core, CORE_ROUNDS, SEED)), ("test", held_out)):
        lines = [json.dumps(conversation.row(), ensure_ascii=False) + "\n" for conversation in side]
        (data / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    draw = random.Random(SEED)
    drawn = {"core": draw.sample(core, CORE_QUESTIONS), "held-out": draw.sample(held_out, HELD_OUT_QUESTIONS)}
    questions = [
        {"from": source, "question": conversation.question, "expected": conversation.answer}
        for source, conversations in drawn.items()
        for conversation in conversations
    ]
    (OUTPUT / "questions.json").write_text(json.dumps([q["question"] for q in questions], indent=2), encoding="utf-8")
    print(
        f"{len(train)} conversations to train on, {len(held_out)} held out; {len(core)} of the former are the core, "
        f"about builtins, and seen {CORE_ROUNDS} times"
    )
    return train, questions


def write_untrained_model(train):
    """Train the tokenizer on the training side and save it with a freshly initialised model."""
    from tokenization.train_tokenizer import train_tokenizer

    texts = (text for conversation in train for turn in conversation.turns for text in turn)
    tokenizer = train_tokenizer(texts, VOCABULARY, model_max_length=MODEL["max_position_embeddings"])
    save_untrained(OUTPUT / "untrained", tokenizer, MODEL, SEED)


def save_untrained(folder, tokenizer, shape, seed):
    """Save a tokenizer with a freshly initialised model of `shape` (configuration keys) for it."""
    from transformers import set_seed

    from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM

    set_seed(seed)
    model = LongCatLiteForCausalLM(
        LongCatLiteConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **shape,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters())
    tables = sum(p.numel() for name, p in model.named_parameters() if ".embedders." in name)
    print(f"{parameters / 1e6:.2f} M parameters, of which {tables / 1e6:.2f} M in n-gram tables")


def fine_tune():
    """`python -m training.sft --config training/recipes/demo.yaml`, in this process."""
    from training import sft

    sft.main(*sft.make_parser().parse_args_and_config(["--config", str(RECIPE)]))


def run_module(module: str, *arguments: str | Path) -> None:
    """`python -m module` with these arguments."""
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def measure():
    """Loss on the held-out answers, as a result file."""
    rows = OUTPUT / "data" / "test.jsonl"
    run_module("eval.held_out_answers", "--model", OUTPUT / "model", "--rows", rows, "--output", OUTPUT)


def package():
    """Build the Hub folder; the card takes its numbers from the result file and the run's own files."""
    run_module(
        "model_cards.build_hub_repo", "--model", OUTPUT / "model", "--output", OUTPUT / "package", *card_sources()
    )


def write_card():
    """Write the card again, with the answers that the package gave."""
    run_module("model_cards.write_card", "--folder", OUTPUT / "package", *card_sources())


def card_sources() -> list[str | Path]:
    """What the card is made of."""
    results = OUTPUT / "held_out_answers.json"
    return ["--facts", FACTS, "--results", results, "--report", OUTPUT / "report.json"]


def ask(questions):
    """Ask in a process that starts elsewhere, ignores the checkout (-I) and refuses to import the package."""
    script, output = Path(__file__).with_name("ask.py").resolve(), OUTPUT.resolve()
    command: list[str | Path] = [sys.executable, "-I", script, "--isolated", "--model", output / "package"]
    command += ["--questions-file", output / "questions.json", "--output", output / "answers.json"]
    with tempfile.TemporaryDirectory() as elsewhere:
        # An empty folder for the code that transformers copies out of the package, so that no older copy is used.
        environment = os.environ | {"HF_MODULES_CACHE": str(Path(elsewhere) / "modules")}
        subprocess.run(command, check=True, cwd=elsewhere, env=environment)


if __name__ == "__main__":
    sys.exit(main())
