# SPDX-License-Identifier: Apache-2.0
"""Sizes as people write them: `24GB` is 24 * 10**9 bytes, `24GiB` is 24 * 2**30 bytes."""

import re

FACTORS = {
    "B": 1,
    **{f"{letter}B": 1000 ** (power + 1) for power, letter in enumerate("KMGT")},
    **{f"{letter}iB": 1024 ** (power + 1) for power, letter in enumerate("KMGT")},
}
UNITS = {unit.lower(): factor for unit, factor in FACTORS.items()}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)(/s)?", re.IGNORECASE)


def parse_size(text: str, option: str, per_second: bool = False) -> int:
    """Read a size in bytes.

    Args:
        text (`str`): For example `24GB` or `1.5 GiB`.
        option (`str`): What the user calls it, for the error.
        per_second (`bool`): Whether it is a rate, whose `/s` may be left out.

    Raises:
        `ValueError`: naming `option`, if the text is not a size above zero.
    """
    kind, examples = ("rate", "`25GB/s` or `500MB/s`") if per_second else ("size", "`24GB` (10^9 bytes) or `24GiB`")
    match = SIZE.fullmatch(text.strip())
    if match is None or match[2].lower() not in UNITS or (match[3] and not per_second):
        raise ValueError(f"`{option}` is {text!r}, which is not a {kind}: write it as {examples}.")
    size = int(float(match[1]) * UNITS[match[2].lower()])
    if size < 1:
        raise ValueError(f"`{option}` is {text!r}, but must be above zero: write it as {examples}.")
    return size


def format_size(size: float) -> str:
    """Bytes in decimal units: `512 B`, `6.14 KB`, `62.8 GB`."""
    power = 0
    while abs(size) >= 1000 and power < 4:
        size /= 1000
        power += 1
    unit = ("B", "KB", "MB", "GB", "TB")[power]
    return f"{size:.0f} {unit}" if power == 0 else f"{size:.3g} {unit}" if abs(size) < 100 else f"{size:.0f} {unit}"


__all__ = ["format_size", "parse_size"]
