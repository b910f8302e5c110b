# SPDX-License-Identifier: Apache-2.0
"""The result file: numbers measured on one model, which evaluations write and model cards read.

    {
      "model": {"name": "model", "config_sha256": "5f1c...", "weights_sha256": "90ab..."},
      "evaluation": "harness",
      "results": [
        {"task": "gsm8k", "metric": "exact_match", "value": 0.505, "stderr": 0.014, "samples": 1319,
         "higher_is_better": true, "dataset": "openai/gsm8k", "config": "main", "split": "test"}
      ],
      ...
    }

Every result has `task`, `metric` and `value`, and the other keys where they apply. An evaluation may add keys next to
these three, for example `machine` and `settings`. The two hashes say which model was measured: they do not change when
the model is copied, saved again or split into other shards, and `read_results` refuses the numbers of another model.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from modeling_longcat_lite import LongCatLiteConfig
from modeling_longcat_lite.checkpoint_files import folder_weights
from modeling_longcat_lite.checkpoint_header import read_safetensors_header
from modeling_longcat_lite.ngram_row_files import ROW_DELTA_FILE

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# What may differ between two copies of a model: who wrote it, in which dtype it was read, how it is run.
NOT_ARCHITECTURE = frozenset(
    {
        *("_name_or_path", "architectures", "auto_map", "dtype", "output_router_logits", "torch_dtype"),
        *("transformers_version", "use_cache"),
    }
)
# The same for an adapter: the path of its base, and whether it was being trained.
NOT_ADAPTER = frozenset({"auto_mapping", "base_model_name_or_path", "inference_mode", "revision"})
# Fields that older files lack. With these values they describe the same model as before.
ADDED_LATER = {"attention_method": "MLA", "index_topk": None, "scale_word_embedding": True}

READ_WHOLE = 2**30  # bytes: smaller weights are hashed completely
# Of larger ones, this many pieces of 1 KiB of each tensor, evenly spaced. Rows of a table are trained one by one, so
# that tables give more.
PIECE, PIECES, PIECES_OF_A_TABLE = 1024, 16, 65536

NEEDED = ("task", "metric", "value")
FILE_NAME = re.compile(r"\w[\w.-]*")  # of an evaluation: cards name files after it


def config_hash(folder: Path, respelled: bool = False) -> str:
    """SHA-256, in hexadecimal, of the architecture that the config of a model or adapter describes.

    Args:
        folder (`Path`): Folder of the model or adapter.
        respelled (`bool`, *optional*, defaults to `False`): Give the hash of the same model with the other spelling of
            the kind of RoPE: released files have `type` along with `rope_type`, saved ones only `rope_type`.
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
    """SHA-256, in hexadecimal, of the name, dtype, shape and bytes of every tensor in `folder`, sorted by name.

    Files with changed n-gram rows count too. Above 1 GiB only samples of the bytes are read, up to 64 MiB of a table:
    a change of a few thousand rows among ten million, and of nothing else, may go unnoticed.

    Raises:
        `ValueError`: if there is no safetensors file, or one is cut off or contradicts the index.
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
    """`name` (the folder's name), `config_sha256` and `weights_sha256` of the model or adapter in `folder`."""
    return {
        "name": folder.resolve().name,
        "config_sha256": config_hash(folder),
        "weights_sha256": weights_hash(folder),
    }


def result_file(
    model: Path | dict[str, str], evaluation: str, results: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    """The content of a result file.

    Args:
        model (`Path` or `dict`): Folder of the model, or its [`model_identity`] if that is known already.
        evaluation (`str`): Name of the evaluation.
        results (`list[dict]`): The measured numbers.
        more: Further keys, for example `machine` and `seed`.
    """
    identity = model_identity(model) if isinstance(model, Path) else model
    return {"model": identity, "evaluation": evaluation, "results": results, **more}


def read_results(path: Path, model: dict[str, str] | None = None, respelled: str | None = None) -> dict[str, Any]:
    """Read and check a result file.

    Args:
        path (`Path`): A JSON file that an evaluation wrote.
        model (`dict`, *optional*): [`model_identity`] of the model that the numbers must belong to.
        respelled (`str`, *optional*): Another `config_sha256` of the same model, see [`config_hash`].

    Raises:
        `ValueError`: naming the file, and the key that is missing, the value that is not a number, or the hash that
            belongs to another model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        identity, results = content["model"], content["results"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result file: {error!r}. Evaluations under eval/ write them.") from error
    check_form(path, content)
    for number, result in enumerate(results):
        check_result(f"{path}: results[{number}]", result)
    for key in ("config_sha256", "weights_sha256"):
        if model is not None and identity.get(key) not in (model[key], respelled):
            raise ValueError(
                f"{path} was measured on another model: its {key} is {identity.get(key)}, that of "
                f"{model['name']} is {model[key]}. Evaluate {model['name']} again."
            )
    return content


def check_form(path: Path, content: dict[str, Any]) -> None:
    """Raise a `ValueError` that names the key of a result file whose value has the wrong type."""
    for key, kind, name in (
        ("model", dict, "an object"),
        ("results", list, "a list"),
        ("machine", dict, "an object"),
        ("settings", dict, "an object"),
    ):
        if key in content and not isinstance(content[key], kind):
            raise ValueError(f"{path}: `{key}` is {content[key]!r}, not {name}")
    evaluation = content.get("evaluation", "unnamed")
    if not isinstance(evaluation, str) or not FILE_NAME.fullmatch(evaluation):
        raise ValueError(f"{path}: `evaluation` is {evaluation!r}, not a name of letters, digits, - and _")


def check_result(where: str, result: Any) -> None:
    """Raise a `ValueError` that names the missing key of one entry of `results`, or the value of the wrong type."""
    if not isinstance(result, dict):
        raise ValueError(f"{where} is {result!r}, not an object")
    missing = [key for key in NEEDED if key not in result]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    if isinstance(result["value"], bool) or not isinstance(result["value"], int | float):
        raise ValueError(f"{where}.value is {result['value']!r}, not a number")
    for key in ("task", "metric", "dataset", "config", "split", "unit"):
        if not isinstance(result.get(key) or "", str):
            raise ValueError(f"{where}.{key} is {result[key]!r}, not text")


__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "config_hash",
    "model_identity",
    "read_results",
    "result_file",
    "weights_hash",
]
