# SPDX-License-Identifier: Apache-2.0
"""What YaRN does for a model trained at 256 tokens and extended to 2,048, and what its parts contribute.

    python -m eval.studies.yarn

Trains a small model on rows of up to 256 tokens, until it finds the value that follows a key (see
`training/data/recall_documents.py`); extends it with `training.extend_context` by the demo recipe, again without the
mix of short rows, and again with plain RoPE; then measures all of them: needles found by length and depth, loss by
position on held-out documents, and loss on rows of 256 tokens. `YaRN, not trained` is the base model with only its
configuration changed. Everything is seeded; it takes about ten minutes on one core.
"""

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from eval.studies.yarn.settings import MODEL, RECIPE, VARIANTS, YarnSettings
from tokenization.command_line import CommandParser, run_command
from training.demo.model import set_environment


def write_base(folder: Path, settings: YarnSettings) -> None:
    """Writes documents, a tokenizer, and a model trained on rows up to the original length into `folder`."""
    import torch
    from transformers import set_seed

    from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM

    tokenizer = write_documents(folder, settings)
    set_seed(settings.seed)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape = MODEL | {"max_position_embeddings": settings.original}
    config = LongCatLiteConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ends, **shape)
    model = LongCatLiteForCausalLM(config).train()
    rate, total = settings.learning_rate, sum(steps for _, steps in settings.curriculum)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=total, pct_start=0.08)
    for length, steps in settings.curriculum:
        texts = documents(length - 1, settings.documents, random.Random(length))
        rows = torch.tensor(tokenizer(texts)["input_ids"])
        rows = torch.nn.functional.pad(rows, (0, 1), value=tokenizer.eos_token_id)
        for step in range(steps):
            batch = rows[torch.randint(len(rows), (settings.tokens_per_step // length,))]
            loss = model(batch, labels=batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % 50 == 0:
                print(f"base, rows of {length}: step {step} of {steps}, loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")


def write_documents(folder: Path, settings: YarnSettings):
    """Writes short and long documents as JSON Lines; returns their tokenizer."""
    from tokenization.train_tokenizer import train_tokenizer

    draw, words = random.Random(settings.seed), settings.original - 1
    short = documents(words, settings.documents, draw)
    write_texts(folder / "short" / "train.jsonl", short)
    write_texts(folder / "short" / "test.jsonl", documents(words, settings.test_documents, draw))
    write_texts(folder / "long" / "train.jsonl", documents(settings.longest, settings.long_documents, draw))
    write_texts(folder / "long" / "test.jsonl", documents(settings.longest, settings.loss_rows, draw))
    return train_tokenizer(short, settings.vocabulary, model_max_length=2 * settings.longest)


def documents(words: int, count: int, draw: random.Random) -> list[str]:
    """Documents of this many words, a quarter to three quarters of which belong to pairs while there are keys."""
    from training.data.recall_documents import KEYS, recall_document

    most = min((words + 1) * 3 // 32, len(KEYS))
    return [recall_document(words, draw.randint(most // 3, most), draw) for _ in range(count)]


def write_texts(path: Path, texts: list[str]) -> None:
    """Writes rows of `text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def extend(folder: Path, output: Path, stages_file: Path, changes: dict[str, Any]) -> None:
    """Runs `training.extend_context` on the base model in `folder`, with `changes` to its stages."""
    from training import extend_context

    stages = yaml.safe_load(stages_file.read_text(encoding="utf-8"))
    stages |= {"short_dataset_name": str(folder / "short")}
    stages["stop_when_short_loss_rises"] = False  # every variant is measured, whatever its loss
    if "long_share" in changes:
        stages["stages"] = [stage | {"long_share": changes["long_share"]} for stage in stages["stages"]]
    stages |= {name: value for name, value in changes.items() if name in stages or name == "rope_type"}
    changed_file = folder / f"{output.name}.stages.yaml"
    changed_file.write_text(yaml.safe_dump(stages), encoding="utf-8")
    options = ["--config", str(RECIPE), "--stages", str(changed_file), "--output_dir", str(output)]
    options += ["--model_name_or_path", str(folder / "base"), "--dataset_name", str(folder / "long")]
    extend_context.main(*extend_context.make_parser().parse_args_and_config(options))


def timed(name: str, seconds: dict[str, float], model: Path, make: Callable[[], None]) -> None:
    """Makes a model's folder unless it exists, and notes the time."""
    if (model / "model.safetensors").is_file():
        return
    begin = time.perf_counter()
    make()
    seconds[name] = round(time.perf_counter() - begin, 1)


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.studies.yarn", __doc__.split("\n")[0])
    parser.add_argument(
        "--models", type=Path, metavar="DIR", default=Path("outputs/yarn-demo"), help="folder for models and documents"
    )
    parser.add_argument("--reuse", action="store_true", help="keep the models that are already there")
    parser.add_shared("--output", default=Path("eval/results"))
    return parser


def main(arguments: argparse.Namespace, settings: YarnSettings | None = None):
    """Trains, extends, measures, writes."""
    folder, settings = arguments.models, settings or YarnSettings()
    set_environment(folder)
    from eval.studies.yarn.report import measure, write_results

    variants = {name: folder / name.replace(",", "").replace(" ", "-").lower() for name in VARIANTS}
    base = folder / "base"
    seconds: dict[str, float] = {}
    if not arguments.reuse:
        for made in (base, folder / "short", folder / "long", folder / "cache", *variants.values()):
            shutil.rmtree(made, ignore_errors=True)
    timed("base", seconds, base, partial(write_base, folder, settings))
    models = {"before": base, "YaRN, not trained": base, **variants}
    for name, output in variants.items():
        timed(name, seconds, output, partial(extend, folder, output, settings.stages, VARIANTS[name]))
    rows = {
        name: measure(model, models["YaRN"] if name == "YaRN, not trained" else model, folder, settings)
        for name, model in models.items()
    }
    write_results(arguments.output, rows, settings, seconds)


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
