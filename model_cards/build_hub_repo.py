# SPDX-License-Identifier: Apache-2.0
"""Build a folder that can be uploaded to the Hub as it is, from a trained model.

    python -m model_cards.build_hub_repo --model outputs/demo/model --output outputs/demo/package
    python -m model_cards.build_hub_repo --model outputs/demo/model --output outputs/demo/package --push user/name

The folder is flat: safetensors weights, `config.json` with an `auto_map`, the model's code, tokenizer, chat template,
generation settings and a card. `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` needs no more.
`--push` uploads it too, see `hub_upload.py`; when that fails, the same command goes on with the folder that is built.
"""

import argparse
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import AutoTokenizer, GenerationConfig

from model_cards.card import render_card
from model_cards.hub_upload import add_push_options, check_destination
from model_cards.unfinished_push import UnfinishedPush
from modeling_longcat_lite import LongCatLiteForCausalLM
from tokenization.assemble_tokenizer import forget_origin
from tokenization.chat_templates import load_chat_template
from training.folder_replacement import replaced_folder


def build_hub_repo(
    model_dir: Path,
    output_dir: Path,
    report: Path | None = None,
    license: str | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> None:
    """Write the Hub folder beside `output_dir` and rename it, so that never half a folder stands there.

    Args:
        model_dir (`Path`): Folder with a model and a tokenizer, each saved by `save_pretrained`.
        output_dir (`Path`): Folder to write, new or empty.
        report (`Path`, *optional*): JSON file with the numbers that the card shows, see [`render_card`].
        license (`str`, *optional*): Licence of the weights for the card's metadata, such as `"apache-2.0"`.
        max_shard_size (`str`, *optional*, defaults to `"5GB"`): Largest weights file.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace a folder that is not empty.

    Raises:
        `ValueError`: `model_dir` has no model or no tokenizer, or `output_dir` is not empty.
    """
    if output_dir.exists() and any(output_dir.iterdir()) and not overwrite:
        raise ValueError(f"`output` {output_dir} is not empty; --overwrite replaces it")
    for name in ("config.json", "tokenizer.json"):
        if not (model_dir / name).is_file():
            raise ValueError(f"`model` {model_dir} has no {name}; save the model and its tokenizer there first")
    with replaced_folder(output_dir) as building:
        write_folder(model_dir, building, report, license, max_shard_size)


def write_folder(model_dir: Path, folder: Path, report: Path | None, license: str | None, max_shard_size: str) -> None:
    """Fill an existing folder with everything the Hub shows or needs."""
    model = LongCatLiteForCausalLM.from_pretrained(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    forget_origin(tokenizer)
    if tokenizer.chat_template == load_chat_template("training"):
        # Same text; the generation tags are of use to trainers only.
        tokenizer.chat_template = load_chat_template()
    # Training leaves special tokens behind that only `generate` needs; greedy is the setting that needs no tuning.
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    # The package's save_pretrained copies the code and writes `auto_map`.
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    ModelCard(render_card(model, report, license)).save(folder / "README.md")


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    if args.push is not None:
        check_destination(args.push, args.revision)  # before building, which may take long
    elif args.private or args.revision or args.commit_message:
        raise ValueError("`--private`, `--revision` and `--commit-message` are of an upload: add `--push`")
    unfinished = UnfinishedPush(args, args.output)
    if args.push is None or args.overwrite or not unfinished.is_built():
        build_hub_repo(args.model, args.output, args.report, args.license, args.max_shard_size, args.overwrite)
    size = sum(file.stat().st_size for file in args.output.rglob("*"))
    print(f"{args.output}: {len(list(args.output.iterdir()))} files, {size / 1e6:.1f} MB")
    if args.push is not None:
        print(unfinished.push(args.push, args.private, args.revision, args.commit_message))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_cards.build_hub_repo", description="Build a Hub folder.")
    parser.add_argument("--model", type=Path, required=True, help="folder with the trained model and its tokenizer")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--report", type=Path, help="JSON file with numbers for the card")
    parser.add_argument("--license", help="licence of the weights, as the Hub names it")
    parser.add_argument("--max-shard-size", default="5GB", help="largest weights file, default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is not empty")
    parser.add_argument("--push", metavar="USER/NAME", help="upload the folder to this repository of the Hub")
    add_push_options(parser)
    return parser


if __name__ == "__main__":
    main()
