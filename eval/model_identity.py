# SPDX-License-Identifier: Apache-2.0
"""Which model a number belongs to: a hash of its architecture and one of its weights, large ones sampled.

A result file carries both. A card that is made of result files compares them with the model that it describes, so that
nobody publishes the numbers of another checkpoint. Files, shards and folders may be renamed; the hashes stay.
"""

import hashlib
import json
from pathlib import Path

from modeling_longcat_lite import ROW_DELTA_FILE, LongCatLiteConfig, folder_weights, read_safetensors_header

# What differs between two copies of one model: who wrote it, as what it was read, how it is run.
NOT_ARCHITECTURE = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "dtype",
        "output_router_logits",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
# Fields that files of before do not have: at what they were then, they say nothing new.
ADDED_LATER = {"attention_method": "MLA", "index_topk": None, "scale_word_embedding": True}
READ_WHOLE = 2**30  # bytes of weights that are hashed whole
# Of larger ones, each tensor gives so many pieces of 1 KiB, evenly spaced; a table, whose rows train one by one, more.
PIECE, PIECES, PIECES_OF_A_TABLE = 1024, 16, 65536
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# As above, of an adapter: where its base lay, and whether it was being trained.
NOT_ADAPTER = frozenset({"auto_mapping", "base_model_name_or_path", "inference_mode", "revision"})


def config_hash(folder: Path, respelled: bool = False) -> str:
    """SHA-256, in hexadecimal, of what the config of the model, or of the adapter, in `folder` says of its shape.

    Args:
        folder (`Path`): Of the model or adapter.
        respelled (`bool`, *optional*, defaults to `False`): The hash of the same model where the kind of RoPE is said
            the other way: with `type` beside `rope_type`, as in released files, or without, as in saved ones.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        config, left_out = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")), NOT_ADAPTER
        # PEFT writes sets of names, in any order.
        config = {key: sorted(value, key=str) if isinstance(value, list) else value for key, value in config.items()}
    else:
        config, left_out = LongCatLiteConfig.from_pretrained(folder).to_dict(), NOT_ARCHITECTURE
        rope = config["rope_parameters"]
        if respelled and rope.pop("type", None) is None:
            rope["type"] = rope["rope_type"]
    kept = {key: value for key, value in config.items() if key not in left_out}
    kept = {key: value for key, value in kept.items() if key not in ADDED_LATER or value != ADDED_LATER[key]}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def weights_hash(folder: Path) -> str:
    """SHA-256, in hexadecimal, of name, dtype, shape and bytes of every tensor in `folder`, by name.

    Of a model or of an adapter, each with the n-gram rows that were changed beside it. Above 1 GiB the bytes are
    sampled, 64 MiB of a table: a few thousand changed rows of ten million, and nothing else, may go unnoticed.

    Raises:
        `ValueError`: no safetensors file there, or one that is cut off or contradicts the index.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        files = [Path(file) for file in folder_weights(folder).files]
    elif (folder / ADAPTER_WEIGHTS).is_file():
        files = [folder / ADAPTER_WEIGHTS]
    else:
        raise ValueError(f"`model` {folder} has no {ADAPTER_WEIGHTS}")
    files += folder.glob(ROW_DELTA_FILE)
    tensors = {name: (path, entry) for path in files for name, entry in read_safetensors_header(path)[0].items()}
    whole = sum(entry.num_bytes for _, entry in tensors.values()) <= READ_WHOLE
    digest = hashlib.sha256()
    for name, (path, entry) in sorted(tensors.items()):
        digest.update(f"{name} {entry.dtype} {list(entry.shape)}".encode())
        pieces = PIECES_OF_A_TABLE if ".embedders." in name else PIECES
        with path.open("rb") as file:
            for begin in range(entry.begin, entry.end, PIECE if whole else max(PIECE, entry.num_bytes // pieces)):
                file.seek(begin)
                digest.update(file.read(min(PIECE, entry.end - begin)))
    return digest.hexdigest()


def model_identity(folder: Path) -> dict[str, str]:
    """`name` (of the folder), `config_sha256` and `weights_sha256` of a model saved in `folder`."""
    return {
        "name": folder.resolve().name,
        "config_sha256": config_hash(folder),
        "weights_sha256": weights_hash(folder),
    }


__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "config_hash", "model_identity", "weights_hash"]
