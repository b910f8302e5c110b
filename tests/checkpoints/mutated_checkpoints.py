# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints and seeded ways to damage them: header, index, shards, config. Bytes of weights stay as they are.

What only a checksum could tell is left out: two tensors of one size that change places, all 16-bit weights declared
as the other 16-bit format, and a config that says something else which is right in itself.
"""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import PLAIN_ROPE, YARN_ROPE, randomize, tiny_config
from safetensors.torch import load_file, save_file

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.ngram_row_files import write_row_delta

WEIGHTS, INDEX, DELTA = "model.safetensors", "model.safetensors.index.json", "ngram_row_delta.safetensors"
SMALL = {
    "vocab_size": 16,
    "hidden_size": 16,
    "num_layers": 1,
    "num_attention_heads": 1,
    "ffn_hidden_size": 6,
    "expert_ffn_hidden_size": 8,
    "q_lora_rank": 5,
    "kv_lora_rank": 3,
    "qk_nope_head_dim": 2,
    "v_head_dim": 3,
    "n_routed_experts": 2,
    "zero_expert_num": 1,
    "moe_topk": 2,
    "emb_neighbor_num": 2,
    "emb_split_num": 2,
}
DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "U32", "I16", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "F33"]
JUNK = [None, True, -1, -0.0, 1.0, 1.5, "1", [], [[1]], {}, 2**63, 2**64, 10**400, math.nan, math.inf]
# Nothing of this is a value of any field that it is given to.
BAD_FIELDS = ["x", math.nan, math.inf, -math.inf, -1, [], {"a": 1}, 2**63, 10**400, 1e300]
BAD_ROPE = ["x", math.nan, math.inf, -math.inf, -1, 0, True, [], {"a": 1}, 1e300, 10**400]


def write_checkpoints(folder: Path) -> list[Path]:
    """`single` in float32, `sharded` in bfloat16 with draft head and YaRN, `packed` tables; each with a row delta."""
    kinds = {
        "single": {"rope_parameters": dict(PLAIN_ROPE)},
        "sharded": {"rope_parameters": dict(YARN_ROPE), "num_nextn_predict_layers": 1, "dtype": "bfloat16"},
        "packed": {"ngram_table_bits": 8},
    }
    for seed, (kind, fields) in enumerate(kinds.items()):
        model = LongCatLiteForCausalLM(tiny_config(**SMALL, **fields))
        if kind != "packed":
            randomize(model, seed)
        if kind == "sharded":  # all but the router in bfloat16, as loading leaves it
            model.save_pretrained(folder / "float32")
            model = LongCatLiteForCausalLM.from_pretrained(folder / "float32", dtype=torch.bfloat16)
        model.save_pretrained(folder / kind, max_shard_size="3KB" if kind == "sharded" else "5GB")
        config, rows = model.config, [torch.tensor([0, 7, 20 + i]) for i in range(model.config.num_subtables)]
        changed = [(ids, torch.full((3, config.subtable_width), i + 0.5)) for i, ids in enumerate(rows)]
        write_row_delta(folder / f"{kind}-delta" / DELTA, config, changed, "base")
    return [folder / kind for kind in kinds]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors"))


def split(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(path: Path, header: dict | str, data: bytes) -> None:
    text = header if isinstance(header, str) else json.dumps(header)
    encoded = text.encode("utf-8", "surrogatepass")
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def tensor_in(header: dict, draw: random.Random) -> str:
    return draw.choice(sorted(header.keys() - {"__metadata__"}))


def header_field(folder: Path, draw: random.Random):
    """A field of an entry becomes something else, of its type or not."""
    path = draw.choice(shards(folder))
    header, data = split(path)
    entry = header[tensor_in(header, draw)]
    field = draw.choice(sorted(entry))
    value = draw.choice([*JUNK, *DTYPES]) if draw.random() < 0.3 else None
    if value is None and field == "dtype":
        value = draw.choice([dtype for dtype in DTYPES if dtype != entry["dtype"]])
    elif value is None:
        value = list(entry[field])
        place = draw.randrange(len(value))
        steps = [-(2**70), -1000, -8, -4, -1, 1, 4, 8, 1000, 2**40, 2**63, 2**64]
        value[place] = draw.choice([value[place] + draw.choice(steps), draw.choice(JUNK)])
    entry[field] = value
    join(path, header, data)


def header_offsets(folder: Path, draw: random.Random):
    """Two tensors of different sizes exchange their places, or one lies over its neighbour, or leaves a gap."""
    path = draw.choice(shards(folder))
    header, data = split(path)
    one, other = (header[tensor_in(header, draw)] for _ in range(2))
    (a, b), (c, d) = one["data_offsets"], other["data_offsets"]
    if b - a != d - c:
        one["data_offsets"], other["data_offsets"] = [c, d], [a, b]
    else:
        move = draw.choice([-4, -2, -1, 1, 2, 4])
        one["data_offsets"] = [a + move, b + move]
    join(path, header, data)


def header_reading(folder: Path, draw: random.Random):
    """The same bytes in another shape or dtype, which the safetensors library accepts."""
    path = draw.choice(shards(folder))
    header, data = split(path)
    entry = header[tensor_in(header, draw)]
    others = {"F32": ["I32", "U32"], "BF16": ["F16", "I16", "U16"], "U8": ["I8", "F8_E4M3", "BOOL"]}
    shape = entry["shape"]
    shapes = [s for s in (shape[::-1], [1, *shape], [*shape, 1], [math.prod(shape)]) if s != shape]
    if draw.random() < 0.5:
        entry["dtype"] = draw.choice(others[entry["dtype"]])
    elif draw.random() < 0.5:
        entry["shape"] = draw.choice(shapes)
    else:
        wide = {"F32": ("BF16", 2), "BF16": ("U8", 2), "U8": ("F4", 2)}[entry["dtype"]]
        entry["dtype"], entry["shape"] = wide[0], [*shape[:-1], shape[-1] * wide[1]]
    join(path, header, data)


def header_names(folder: Path, draw: random.Random):
    """A tensor gets another name, which may be taken, or is not there any more, with its bytes or without."""
    path = draw.choice(shards(folder))
    header, data = split(path)
    name, other = tensor_in(header, draw), tensor_in(header, draw)
    how = draw.randrange(5)
    if how == 0:
        place = draw.randrange(len(name))
        header[name[:place] + draw.choice("0123x.é\ud800") + name[place:]] = header.pop(name)
    elif how == 1:  # twice, with other bytes the second time
        return join(path, f"{json.dumps(header)[:-1]}, {json.dumps(name)}: {json.dumps(header[other])}}}", data)
    elif how == 2:
        del header[name]
    elif how == 3:
        weights = load_file(path)
        del weights[name]
        return save_file(weights, path, metadata={"format": "pt"})
    else:
        header[name] = draw.choice([None, [], 7, {**header[name], "more": 1}, list(header[name].values())])
    return join(path, header, data)


def header_text(folder: Path, draw: random.Random):
    """Any byte of length or header is another one; or the text is of another kind."""
    path = draw.choice(shards(folder))
    header, data = split(path)
    content = bytearray(path.read_bytes())
    how = draw.randrange(6)
    if how < 3:
        place = draw.randrange(len(content) - len(data)) if how else draw.randrange(8)
        content[place] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    elif how == 3:
        nested = "[" * (deep := draw.choice([130, 5000, 200_000])) + "]" * deep
        join(path, f'{json.dumps(header)[:-1]}, "x": {nested}}}', data)
    elif how == 4:
        header["__metadata__"] = draw.choice([*JUNK, {"a": 1}, {"a": None}, {"a": "\ud800"}])
        join(path, header, data)
    else:
        text = json.dumps(header).encode(draw.choice(["utf-16", "utf-32", "utf-8-sig"]))
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def file_size(folder: Path, draw: random.Random):
    """Bytes are missing at the end, or too many."""
    path = draw.choice(shards(folder))
    content = path.read_bytes()
    cut = draw.choice([1, 2, 4, 8, len(content) // 2, len(content) - 7, len(content)])
    path.write_bytes(content[:-cut] if draw.random() < 0.5 else content + bytes(draw.choice([1, 4, 1000])))


def index_entries(folder: Path, draw: random.Random):
    """The index says something else of a tensor or of itself."""
    path = folder / INDEX
    if not path.exists():  # of a single file: an index that contradicts it
        names = [key for key in split(folder / WEIGHTS)[0] if key != "__metadata__"]
        draw.shuffle(names)
        path.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names[1:], WEIGHTS)}))
        return
    index = json.loads(path.read_text())
    weight_map = index["weight_map"]
    name, files = draw.choice(sorted(weight_map)), sorted(set(weight_map.values()))
    how = draw.randrange(6)
    if how == 0:
        other = [file for file in files if file != weight_map[name]]
        weight_map[name] = draw.choice([*other, "absent.safetensors", f"../{folder.name}/{files[0]}", *JUNK])
    elif how == 1:
        del weight_map[name]
    elif how == 2:
        weight_map[f"{name}x"] = draw.choice(files)
    elif how == 3:
        index[draw.choice(["weight_map", "metadata"])] = draw.choice([None, True, 3, "x", [], [name]])
    elif how == 4:
        text = json.dumps(index)
        path.write_text(text[: draw.randrange(len(text))])
        return
    else:
        content = bytearray(json.dumps(index).encode())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        return
    path.write_text(json.dumps(index))


def shard_files(folder: Path, draw: random.Random):
    """A shard is missing or another one; a tensor is in another shard, in two, or in none; two sets of weights."""
    files = shards(folder)
    path, other = draw.choice(files), draw.choice(files)
    weights = load_file(path)
    name = draw.choice(sorted(weights))
    how = draw.randrange(5)
    if how == 0 or len(files) == 1:
        weights[f"{name}.more"] = torch.zeros(2)
        save_file(weights, path, metadata={"format": "pt"})
    elif how == 1:
        path.unlink()
    elif how == 2:
        if path != other:
            shutil.copy(other, path)
        else:
            save_file({name: weights[name] + 1}, folder / WEIGHTS, metadata={"format": "pt"})
    else:  # there too, with other values; or there only
        more = load_file(other) if other != path else {}
        more[name] = weights[name] + 1 if weights[name].is_floating_point() else weights[name]
        save_file(more, other, metadata={"format": "pt"})
        if how == 4 and other != path and len(weights) > 1:
            del weights[name]
            save_file(weights, path, metadata={"format": "pt"})


def config_fields(folder: Path, draw: random.Random):
    """A number of `config.json` is none, or out of range."""
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    if draw.random() < 0.4:
        names = ["rope_theta", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"]
        name = draw.choice([*names, "original_max_position_embeddings", "attention_factor"])
        for rope in (fields, fields.get("rope_parameters"), fields.get("rope_scaling")):
            if isinstance(rope, dict) and (rope is not fields or name in fields):
                rope[name] = draw.choice(BAD_ROPE)
    else:
        numbers = [name for name, value in fields.items() if type(value) in (int, float) and "token_id" not in name]
        name = draw.choice(sorted(set(numbers) - {"ngram_table_bits", "rope_theta"}))
        more = [True] if fields[name] != 1 or draw.random() < 0.5 else []
        fields[name] = draw.choice([*BAD_FIELDS, *more, fields[name] + 1 if name in SMALL else "y"])
    path.write_text(json.dumps(fields))


MUTATIONS: list[Callable[[Path, random.Random], object]] = [
    header_field,
    header_offsets,
    header_reading,
    header_names,
    header_text,
    file_size,
    index_entries,
    shard_files,
    config_fields,
]
