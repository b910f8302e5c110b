# SPDX-License-Identifier: Apache-2.0
"""What YaRN does for a model trained at 256 tokens that is extended to 2,048, and what it does without its parts.

    python -m eval.studies.yarn

Trains a small model on rows of up to 256 tokens, until it finds what stands behind a key (see `long_documents`);
extends it with `training.extend_context` by the demo recipe, and again without the short mix, and with plain RoPE;
then measures all of them: needles found by length and depth, loss by position on held-out documents, loss on rows of
256 tokens. `YaRN, not trained` is the base model with nothing but its configuration changed. Takes some ten minutes
of one core. Writes eval/results/yarn_demo.{json,md,png}; the models stay in outputs/yarn-demo. `--reuse` keeps what is
already there. Everything is seeded.
"""

import argparse
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from training.demo.model import set_environment

OUTPUT = Path("outputs/yarn-demo")
RESULTS = Path("eval/results")
RECIPES = Path("training/recipes")
SEED = 0
VOCABULARY = 377  # bytes, special tokens, and all words of the documents
ORIGINAL, LONGEST = 256, 2048
# Rows of these lengths for so many steps each: pairs that stand close together teach what to look for.
CURRICULUM = ((64, 350), (128, 150), (ORIGINAL, 500))
BASE_TOKENS, BASE_RATE = 1024, 4e-3  # of a step
DOCUMENTS, LONG_DOCUMENTS, TEST_DOCUMENTS = 3000, 240, 96
LENGTHS = (256, 512, 1024, 2048)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 0.95)
NEEDLES, DISTRACTORS = 16, 7  # rows per length and depth; other pairs in each
LOSS_ROWS = 32
MODEL: dict[str, Any] = {
    "hidden_size": 96,
    "num_layers": 1,
    "num_attention_heads": 4,
    "ffn_hidden_size": 192,
    "expert_ffn_hidden_size": 48,
    "q_lora_rank": 64,
    "kv_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "n_routed_experts": 4,
    "zero_expert_num": 2,
    "moe_topk": 2,
    "routed_scaling_factor": 1.0,
    "emb_neighbor_num": 2,
    "emb_split_num": 2,
    "ngram_vocab_size_ratio": 5.37,
    "embedding_amplification": "layer_norm",
    "initializer_range": 0.1,  # about hidden_size ** -0.5; with a fifth of it attention learns nothing for long
    "num_nextn_predict_layers": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "max_position_embeddings": ORIGINAL,
}
# What differs from the demo's stages file.
VARIANTS: dict[str, dict[str, Any]] = {
    "YaRN": {},
    "YaRN, no short mix": {"long_share": 1.0},
    "plain RoPE": {"rope_type": "default"},
}


def main(arguments):
    set_environment(OUTPUT)
    from eval.studies.yarn.report import measure, write_results

    if not arguments.reuse:
        shutil.rmtree(OUTPUT, ignore_errors=True)
    seconds: dict[str, float] = {}
    folders = {"before": OUTPUT / "base", "YaRN, not trained": OUTPUT / "base"}
    timed("base", seconds, folders["before"], write_base)
    for name, changes in VARIANTS.items():
        folders[name] = OUTPUT / name.replace(",", "").replace(" ", "-").lower()
        timed(name, seconds, folders[name], lambda folder, changes=changes: extend(folder, changes))
    rows = {name: measure(name, folder, folders["YaRN"]) for name, folder in folders.items()}
    stages = yaml.safe_load((RECIPES / "yarn_demo.stages.yaml").read_text(encoding="utf-8"))
    write_results(RESULTS, rows, stages, seconds)


def timed(name: str, seconds: dict[str, float], folder: Path, make) -> None:
    """Make a model's folder unless it is there."""
    if (folder / "model.safetensors").is_file():
        return
    begin = time.perf_counter()
    make(folder)
    seconds[name] = round(time.perf_counter() - begin, 1)


def write_base(folder: Path) -> None:
    """Documents, tokenizer, and a model trained on rows up to the original length."""
    import torch
    from transformers import set_seed

    from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM

    tokenizer = write_documents()
    set_seed(SEED)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LongCatLiteConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ends, **MODEL)
    model = LongCatLiteForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=BASE_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    steps = sum(steps for _, steps in CURRICULUM)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, BASE_RATE, total_steps=steps, pct_start=0.08)
    for length, steps in CURRICULUM:
        rows = torch.tensor(tokenizer(documents(length - 1, DOCUMENTS, random.Random(length)))["input_ids"])
        rows = torch.nn.functional.pad(rows, (0, 1), value=tokenizer.eos_token_id)
        for step in range(steps):
            batch = rows[torch.randint(len(rows), (BASE_TOKENS // length,))]
            loss = model(batch, labels=batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % 50 == 0:
                print(f"base, rows of {length}: step {step} of {steps}, loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_documents():
    """Short and long documents as JSON Lines; returns their tokenizer."""
    from tokenization.train_tokenizer import train_tokenizer

    draw = random.Random(SEED)
    short = documents(ORIGINAL - 1, DOCUMENTS, draw)
    write_jsonl(OUTPUT / "short" / "train.jsonl", short)
    write_jsonl(OUTPUT / "short" / "test.jsonl", documents(ORIGINAL - 1, TEST_DOCUMENTS, draw))
    write_jsonl(OUTPUT / "long" / "train.jsonl", documents(LONGEST, LONG_DOCUMENTS, draw))
    write_jsonl(OUTPUT / "long" / "test.jsonl", documents(LONGEST, LOSS_ROWS, draw))
    return train_tokenizer(short, VOCABULARY, model_max_length=2 * LONGEST)


def documents(words: int, count: int, draw: random.Random) -> list[str]:
    """Documents of so many words, in which one to three of four words belong to pairs while there are keys."""
    from training.data.recall_documents import KEYS, recall_document

    most = min((words + 1) * 3 // 32, len(KEYS))
    return [recall_document(words, draw.randint(most // 3, most), draw) for _ in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> None:
    """Rows of `text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def extend(folder: Path, changes: dict[str, Any]) -> None:
    """`python -m training.extend_context` by the demo recipe, with `changes` to its stages."""
    from training import extend_context

    stages = yaml.safe_load((RECIPES / "yarn_demo.stages.yaml").read_text(encoding="utf-8"))
    stages["stop_when_short_loss_rises"] = False  # a row to compare is one in any case
    if "long_share" in changes:
        stages["stages"] = [stage | {"long_share": changes["long_share"]} for stage in stages["stages"]]
    stages |= {name: value for name, value in changes.items() if name in stages or name == "rope_type"}
    file = OUTPUT / f"{folder.name}.stages.yaml"
    file.write_text(yaml.safe_dump(stages), encoding="utf-8")
    options = ["--config", str(RECIPES / "yarn_demo.yaml"), "--stages", str(file), "--output_dir", str(folder)]
    extend_context.main(*extend_context.make_parser().parse_args_and_config(options))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval.studies.yarn", description=__doc__.split("\n")[0])
    parser.add_argument("--reuse", action="store_true", help="keep models that are already in outputs/yarn-demo")
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())
