# SPDX-License-Identifier: Apache-2.0
r"""Build a folder that can be uploaded to the Hub as it is, from a trained model or adapter.

    python -m model_cards.build_hub_repo --model outputs/demo/model --output outputs/demo/package \
        --facts model_cards/facts/demo.yaml --results outputs/demo/held_out_answers.json --push user/name

For a model, the folder has safetensors weights, `config.json` with an `auto_map`, the model's code, tokenizer, chat
template, generation settings and a card, all at its top level:
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` needs nothing else. For an adapter, it has the
adapter, changed n-gram rows if there are any, the code, the tokenizer and a card.

`--push` uploads the folder, see `hub_upload.py`. If that fails, run the same command again: it uploads the folder that
it has built. Later results need no second build: `model_cards.write_card` writes the card alone.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from transformers import GenerationConfig

from eval.reports.results import ADAPTER_CONFIG
from model_cards.adapter_folder import tokenizer_for_use, write_adapter_folder
from model_cards.card import CardSources, make_card
from model_cards.card_metadata import is_repo_id
from model_cards.hub_upload import UnfinishedPush, add_push_options, check_destination
from model_cards.write_card import add_card_options, card_sources
from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.whole_files import replaced_folder
from tokenization.command_line import CommandParser, run_command


def build_hub_repo(
    model_dir: Path,
    output_dir: Path,
    card: CardSources | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> None:
    """Write the Hub folder next to `output_dir` and rename it, so that `output_dir` is never incomplete.

    Args:
        model_dir (`Path`): Folder with a model or an adapter, and a tokenizer, each saved by `save_pretrained`.
        output_dir (`Path`): Folder to write, new or empty.
        card (`CardSources`, *optional*): What the card is made from, apart from `model_dir`.
        max_shard_size (`str`, *optional*, defaults to `"5GB"`): Size of the largest weights file.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace a folder that is not empty.

    Raises:
        `ValueError`: `model_dir` lacks a model or a tokenizer, `output_dir` is not empty or contains one of the
            sources, or [`make_card`] refuses the card's sources. Nothing is written then.
    """
    card = card or CardSources()
    if output_dir.exists() and any(output_dir.iterdir()) and not overwrite:
        raise ValueError(f"`output` {output_dir} is not empty; add --overwrite to replace it")
    for source in (model_dir, card.run, card.facts, card.report, *card.results):
        if source is not None and source.resolve().is_relative_to(output_dir.resolve()):
            raise ValueError(f"`output` {output_dir} contains {source}, which would be deleted; use another folder")
    is_adapter = (model_dir / ADAPTER_CONFIG).is_file()
    for name in (ADAPTER_CONFIG if is_adapter else "config.json", "tokenizer.json"):
        if not (model_dir / name).is_file():
            raise ValueError(f"`model` {model_dir} has no {name}; save the model and its tokenizer there first")
    finished_card = make_card(model_dir, card)
    with replaced_folder(output_dir) as building:
        if is_adapter:
            write_adapter_folder(model_dir, building, finished_card.base_model)
        else:
            write_folder(model_dir, building, max_shard_size)
        finished_card.write(building)


def write_folder(model_dir: Path, folder: Path, max_shard_size: str) -> None:
    """Fill an existing folder with everything but the card."""
    model = LongCatLiteForCausalLM.from_pretrained(model_dir)
    model.config.use_cache = True  # trainers turn it off
    tokenizer = tokenizer_for_use(model_dir)
    # Training may leave other settings; `generate` needs these tokens, and greedy decoding needs no tuning.
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    # The package's save_pretrained copies the code and writes `auto_map`.
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)


def make_parser() -> CommandParser:
    parser = CommandParser("model_cards.build_hub_repo", "Build a folder for the Hub, and upload it.")
    parser.add_shared("--model", type=Path, required=True, help="folder with the model or adapter, and its tokenizer")
    parser.add_shared("--output", required=True, help="folder to write, new or empty")
    add_card_options(parser)
    parser.add_argument("--max-shard-size", default="5GB", help="size of the largest weights file")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is not empty")
    parser.add_argument("--push", metavar="USER/NAME", help="upload the folder to this repository on the Hub")
    add_push_options(parser)
    return parser


def main(arguments: argparse.Namespace) -> None:
    repo, output = arguments.push, arguments.output
    if repo is not None:
        check_destination(repo, arguments.revision)  # before building, which may take long
    elif arguments.private or arguments.revision or arguments.commit_message:
        raise ValueError("`--private`, `--revision` and `--commit-message` are options of an upload: add `--push`")
    unfinished = UnfinishedPush(arguments, output)
    if repo is None or arguments.overwrite or not unfinished.is_built():
        # A name without an owner belongs to the token's user, whom only the Hub knows.
        sources = replace(card_sources(arguments), repo_id=repo if is_repo_id(repo) else None)
        build_hub_repo(arguments.model, output, sources, arguments.max_shard_size, arguments.overwrite)
    size = sum(file.stat().st_size for file in output.rglob("*"))
    print(f"{output}: {len(list(output.iterdir()))} files, {size / 1e6:.1f} MB")
    if repo is not None:
        print(unfinished.push(repo, arguments.private, arguments.revision, arguments.commit_message))


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
