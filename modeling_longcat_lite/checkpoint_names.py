# SPDX-License-Identifier: Apache-2.0
"""Names of tensors, derived from the table of `checkpoint_layout.py`: aliases, patterns, conversions of transformers.

checkpoint of                names                                    parameter of this package
LongCat-Flash-Lite           model.ngram_embeddings.embedders.3.weight    the same
LongCat-2.0                  model.oe_embed_tokens3.weight                model.ngram_embeddings.embedders.3.weight
a trunk saved alone          ngram_embeddings.embedders.3.weight          the same
"""

import itertools
import re
from collections.abc import Callable, Collection

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming

from .checkpoint_layout import DRAFT_HEAD_PREFIX, JOINED, LAYER, LAYOUT, OE_TABLE, TABLE, own_tensors
from .configuration_longcat_lite import LongCatLiteConfig


def _module(name: str) -> str:
    """A name without its last part, and without `model.`, which a checkpoint of the trunk alone lacks."""
    return name.rpartition(".")[0].removeprefix("model.")


def _pattern(module: str) -> str:
    """A regular expression for a module's names, with a group for each index."""
    return re.sub(r"\\{\w+\\}", r"(\\d+)", re.escape(module))


def _replacement(module: str, group: int) -> str:
    """The other side of [`_pattern`]: group numbers, from `group` on, in place of indices."""
    numbers = itertools.count(group)
    return re.sub(r"{\w+}", lambda _: rf"\{next(numbers)}", module)


def _renaming(old: str, new: str) -> tuple[re.Pattern[str], str]:
    return re.compile(rf"^(model\.)?{_pattern(old)}\."), rf"\1{_replacement(new, 2)}."


ALIASES = {_module(alias): _module(line.name) for line in LAYOUT for alias in line.aliases}
TO_RELEASED = [_renaming(alias, name) for alias, name in ALIASES.items()]
TO_ALIAS = [_renaming(name, alias) for alias, name in ALIASES.items()]
NGRAM_TABLE = re.compile(rf"^(model\.)?({'|'.join(map(_pattern, map(_module, (f'{TABLE}.', f'{OE_TABLE}.'))))})\.")
# With the index of an attention sublayer, as published, or without.
OF_INDEXERS = dict.fromkeys(
    _module(line.name.split("indexer.")[0]).removesuffix(".{half}") for line in LAYOUT if "indexer" in line.when
)
INDEXER = re.compile(rf"^(model\.)?({'|'.join(map(_pattern, OF_INDEXERS))})(\.\d+)?\.indexer\.")


def released_name(name: str) -> str:
    """The released name of a tensor that LongCat-Flash-Lite-Sparse or LongCat-2.0 call differently."""
    for pattern, replacement in TO_RELEASED:
        name = pattern.sub(replacement, name)
    return name


def spelling_of(found: Collection[str]) -> Callable[[str], str]:
    """How a checkpoint with the names `found` calls a tensor of the released layout."""
    is_trunk = not any(name.startswith("model.") for name in found)
    renamings = TO_ALIAS if any(released_name(name) != name for name in found) else []

    def spelled(name: str) -> str:
        for pattern, replacement in renamings:
            name = pattern.sub(replacement, name)
        return name.removeprefix("model.") if is_trunk else name

    return spelled


def ngram_table_names(config: LongCatLiteConfig, found: Collection[str]) -> list[str]:
    """The n-gram tables in a checkpoint with the names `found`, in order, as it calls them."""
    return [spelling_of(found)(name) for name in own_tensors(config) if is_ngram_table(name)]


def is_ngram_table(name: str) -> bool:
    """Whether a tensor is an n-gram table, under any of its names."""
    return NGRAM_TABLE.match(name) is not None


def is_indexer(name: str) -> bool:
    """Whether a tensor belongs to the indexer of sparse attention."""
    return INDEXER.match(name) is not None


class ReadRenaming(WeightRenaming):
    """A name that is only read: saving leaves the tensor under the name that it got."""

    __slots__ = ()

    def reverse_transform(self) -> WeightRenaming:
        return WeightRenaming("^$", "")  # no tensor has an empty name


def checkpoint_conversions() -> list[WeightConverter | WeightRenaming]:
    """[`LAYOUT`] as transformers reads it. Patterns begin after the layer, because prefixes of names differ."""

    def short(name: str) -> str:
        return re.sub(r"{\w+}", "*", name.removeprefix(f"{LAYER}.").removeprefix("model."))

    aliases = [ReadRenaming(rf"{_pattern(a)}\.", f"{_replacement(b, 1)}.") for a, b in ALIASES.items()]
    joins = [
        WeightConverter(
            [short(line.name) for line in LAYOUT if line.parameter == parameter],
            short(parameter),
            operations=joined.operations(),
        )
        for parameter, joined in JOINED.items()
    ]
    renamed = {
        _module(line.name): _module(line.parameter)
        for line in LAYOUT
        if line.parameter and line.parameter not in JOINED
    }
    return [*aliases, *joins, *(WeightRenaming(rf"{_pattern(a)}\.", f"{b}.") for a, b in renamed.items())]


def register_checkpoint_layout(model_type: str):
    """Makes transformers use the table. Idempotent: remote code is executed more than once per process."""
    register_checkpoint_conversion_mapping(model_type, checkpoint_conversions(), overwrite=True)


# What loading leaves to its own checks, as patterns for transformers, which would report it once more.
MAY_BE_EXTRA = [
    rf"^(model\.)?{re.escape(name.removeprefix('model.'))}"
    for name in (DRAFT_HEAD_PREFIX, *(line.name for line in LAYOUT if line.may_be_extra))
] + [NGRAM_TABLE.pattern, INDEXER.pattern]
MAY_BE_ABSENT = [re.escape(line.name.removeprefix("model.")) for line in LAYOUT if line.may_be_absent]

__all__ = [
    "MAY_BE_ABSENT",
    "MAY_BE_EXTRA",
    "checkpoint_conversions",
    "is_indexer",
    "is_ngram_table",
    "ngram_table_names",
    "register_checkpoint_layout",
    "released_name",
    "spelling_of",
]
