# SPDX-License-Identifier: Apache-2.0
"""Headers of safetensors files: what the library refuses is refused, by name, and what it reads is read."""

import pytest
from mutated_checkpoints import WEIGHTS, join
from safetensors import SafetensorError, safe_open

from modeling_longcat_lite.checkpoint_header import read_safetensors_header

ENTRY = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
# Header, what the error names, and whether the safetensors library refuses it too.
HEADERS = {
    "negative offset": (ENTRY.replace("[0,8]", "[-8,0]"), "data_offsets", True),
    "minus zero": (ENTRY.replace("[0,8]", "[-0,8]"), "data_offsets", True),
    "float offset": (ENTRY.replace("[0,8]", "[0,8.0]"), "data_offsets", True),
    "true as an offset": (ENTRY.replace("[0,8]", "[false,8]"), "data_offsets", True),
    "three offsets": (ENTRY.replace("[0,8]", "[0,8,8]"), "data_offsets", True),
    "offsets backwards": (ENTRY.replace("[0,8]", "[8,0]"), "data_offsets", True),
    "gap": (ENTRY.replace("[2]", "[1]").replace("[0,8]", "[4,8]"), "data_offsets", True),
    "too few bytes": (ENTRY.replace("[0,8]", "[0,4]"), "`a` must have as many bytes", True),
    "bytes left over": (ENTRY.replace("[0,8]", "[0,4]").replace("[2]", "[1]"), "4 bytes after", True),
    "negative size": (ENTRY.replace("[2]", "[-2]"), "shape", True),
    "two negative sizes": (ENTRY.replace("[2]", "[-1,-2]"), "shape", True),
    "float size": (ENTRY.replace("[2]", "[2.0]"), "shape", True),
    "true as a size": (ENTRY.replace("[2]", "[2,true]"), "shape", True),
    "size as text": (ENTRY.replace("[2]", '["2"]'), "shape", True),
    "huge sizes": (ENTRY.replace("[2]", "[9223372036854775807,9223372036854775807,0]"), "`a`", True),
    "size of 2^64": (ENTRY.replace("[2]", "[18446744073709551616]"), "shape", True),
    "no shape": (ENTRY.replace('"shape":[2],', ""), "shape", True),
    "shape is null": (ENTRY.replace("[2]", "null"), "shape", True),
    "unknown dtype": (ENTRY.replace("F32", "F33"), "dtype", True),
    "dtype in small letters": (ENTRY.replace("F32", "f32"), "dtype", True),
    "dtype is a list": (ENTRY.replace('"F32"', "[]"), "dtype", True),
    "half a byte": (ENTRY.replace("F32", "F4").replace("[2]", "[15]"), "`a`", True),
    "a field twice": (ENTRY.replace('"shape":[2]', '"shape":[1],"shape":[2]'), "`shape`", True),
    "a tensor twice": (ENTRY + ',"a":' + ENTRY, "`a` occurs twice", False),
    "one more field": (ENTRY.replace("}", ',"x":1}'), "`a`", False),
    "deep field": (ENTRY.replace("}", f',"x":{"[" * 200 + "]" * 200}}}'), "`a`", True),
    "very deep": (ENTRY.replace("[2]", "[" * 10**5 + "]" * 10**5), "nested", True),
    "number": ("7", "`a`", True),
    "list": ('["F32",[2],[0,8]]', "`a`", False),
    "metadata of numbers": (ENTRY + ',"__metadata__":{"a":1}', "__metadata__", True),
    "metadata is an empty list": (ENTRY + ',"__metadata__":[]', "__metadata__", True),
    "metadata is zero": (ENTRY + ',"__metadata__":0', "__metadata__", True),
    "half a pair in metadata": (ENTRY + ',"__metadata__":{"a":"\\ud800"}', "surrogates", True),
    "metadata is a list": (ENTRY + ',"__metadata__":[1]', "__metadata__", True),
    "half a surrogate pair": (ENTRY + ',"\\ud800":' + ENTRY.replace("[0,8]", "[8,8]"), "surrogates", True),
    "not JSON": (ENTRY + ",", "not a safetensors file", True),
    "NaN": (ENTRY.replace("[2]", "[NaN]"), "shape", True),
}


@pytest.mark.parametrize(("entry", "named", "by_library"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_contradicts_itself_is_named(entry, named, by_library, tmp_path):
    path = tmp_path / "x.safetensors"
    join(path, f'{{"a":{entry}}}', bytes(8))
    with pytest.raises(ValueError, match=r"x\.safetensors") as raised:
        read_safetensors_header(path)
    assert named in str(raised.value)
    if by_library:
        with pytest.raises(SafetensorError):
            safe_open(path, framework="pt").keys()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "utf-16-le"])
def test_a_header_is_utf_8(encoding, tmp_path):
    text = f'{{"a":{ENTRY}}}'.encode(encoding)
    (tmp_path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_safetensors_header(tmp_path / WEIGHTS)


def test_what_the_library_reads_is_read(tmp_path):
    bits = {"F64": 64, "F32": 32, "F16": 16, "F8_E4M3": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F4": 4, "BOOL": 8, "C64": 64}
    path = tmp_path / WEIGHTS
    for dtype, each in bits.items():
        count = 8 * 24 // each
        for text in (
            f'{{"a: b":{{"dtype":"{dtype}","shape":[{count}],"data_offsets":[0,24]}}}}',
            f' {{"__metadata__":null,"é":{{"shape":[1,{count}],"data_offsets":[0,24],"dtype":"{dtype}"}}}} \n',
            f'{{"z":{{"dtype":"{dtype}","shape":[0,7],"data_offsets":[24,24]}},"a":{{"dtype":"{dtype}","shape":'
            f'[{count}],"data_offsets":[0,24]}},"__metadata__":{{"a":"b:c"}}}}',
        ):
            join(path, text, bytes(24))
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
            tensors, metadata = read_safetensors_header(path)
            assert tensors.keys() == names and metadata in ({}, {"a": "b:c"})
            assert sum(tensor.num_bytes for tensor in tensors.values()) == 24
