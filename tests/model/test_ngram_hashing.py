# SPDX-License-Identifier: Apache-2.0
"""N-gram ids against loops over Python integers, at released size and on random streams, and against golden ids."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_ngram import naive_ngram_ids
from safetensors.torch import load_file

from modeling_longcat_lite import LongCatLiteConfig, ngram_hashing
from modeling_longcat_lite.ngram_hashing import (
    HIDDEN,
    encode_tokens,
    ngram_contexts,
    ngram_ids,
    power_residues,
    visible_windows,
)
from modeling_longcat_lite.visible_tokens import document_starts, lookback_slots

RELEASED = LongCatLiteConfig()
VOCABULARY, EOS = 131072, 2
# Rows of the sub-tables with V, V**2 and V**3 modulo these rows: arithmetic on the shapes of the released checkpoint.
RELEASED_POWERS = {
    10223617: [131072],
    10223619: [131072],
    10223621: [131072],
    10223623: [131072],
    10223625: [131072, 4179184],
    10223627: [131072, 4175824],
    10223629: [131072, 4172464],
    10223631: [131072, 4169104],
    10223633: [131072, 4165744, 9053570],
    10223635: [131072, 4162384, 8161143],
    10223637: [131072, 4159024, 7268888],
    10223639: [131072, 4155664, 6376805],
}
MAX = VOCABULARY - 1
STREAMS = {
    "zeros": [0] * 8,
    "highest id": [MAX] * 8,
    "EOS first": [EOS, MAX, 5, 0, 7],
    "EOS last": [MAX, 5, 0, 7, EOS],
    "EOS twice in a row": [MAX, 9, EOS, EOS, MAX, 9, 11, MAX],
    "EOS throughout": [EOS] * 6,
    "EOS at every distance": [MAX, EOS, 8, EOS, MAX, 7, EOS, MAX, 7, 6, EOS, MAX, 7, 6, 5, EOS],
    "EOS around zero": [EOS, 0, EOS, 0, 0, EOS, MAX],
    "one token": [MAX],
    "one EOS": [EOS],
}


def hash_ids(codes: torch.Tensor, sizes: list[int], base: int, order: int, eos: tuple[int, ...]) -> list:
    """Codes with their `order - 1` codes of history to ids `[row][sub-table][token]`."""
    residues = torch.tensor(power_residues(base, sizes, order))
    ids = ngram_ids(ngram_contexts(codes, order, eos), residues, torch.tensor(sizes))
    assert ids.dtype == torch.int64
    return ids.transpose(0, 1).tolist()


def without_history(codes: torch.Tensor, order: int) -> torch.Tensor:
    return torch.nn.functional.pad(codes, (order - 1, 0), value=HIDDEN)


def masked_ids(codes: torch.Tensor, visible: torch.Tensor, start: int, sizes, base, order: int, eos) -> list:
    """Ids `[row][sub-table][token]` of the tokens from `start` on, of codes `[B, N - 1 + L]` and a mask `[B, L]`."""
    slots = torch.arange(start, visible.shape[1])
    windows = visible_windows(codes, slots, lookback_slots(visible.bool(), slots, order - 1))  # [B * T, N]
    ids = torch.tensor(hash_ids(windows, sizes, base, order, eos))  # [B * T, S, 1]
    return ids.view(len(visible), len(slots), -1).transpose(1, 2).tolist()


def released_ids(tokens: list[int]) -> list:
    codes = without_history(encode_tokens(torch.tensor([tokens])), 4)
    return hash_ids(codes, RELEASED.subtable_sizes, VOCABULARY, 4, (EOS,))[0]


def test_power_residues_of_the_released_model():
    assert list(RELEASED_POWERS) == RELEASED.subtable_sizes
    residues = power_residues(VOCABULARY, RELEASED.subtable_sizes, 4)
    # An order that a sub-table does not reach counts for nothing.
    padded = [powers + [0] * (3 - len(powers)) for powers in RELEASED_POWERS.values()]
    assert residues == [list(distance) for distance in zip(*padded, strict=True)]


@pytest.mark.parametrize("name", STREAMS)
def test_released_size_on_boundary_ids(name):
    tokens = STREAMS[name]
    assert released_ids(tokens) == naive_ngram_ids(tokens, RELEASED.subtable_sizes, VOCABULARY, 4, {EOS})


def test_released_size_on_random_ids():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (400,), generator=generator)
    tokens[torch.rand(400, generator=generator) < 0.15] = EOS
    tokens = tokens.tolist()
    assert released_ids(tokens) == naive_ngram_ids(tokens, RELEASED.subtable_sizes, VOCABULARY, 4, {EOS})


@st.composite
def hashings(draw):
    """Sub-table sizes, base, order and end-of-sequence tokens of a small model."""
    order, per_order = draw(st.integers(2, 6)), draw(st.integers(1, 3))
    base = draw(st.integers(4, 40))
    smallest = draw(st.integers(1, 300))
    sizes = [smallest + 2 * i for i in range(per_order * (order - 1))]
    return sizes, base, order, draw(st.sampled_from([(2,), (2, 3), ()]))


@st.composite
def streams(draw, any_start: bool = True):
    """Rows of tokens with positions that restart and a mask: `(tokens, positions, visible)`, lists of rows."""
    length = draw(st.integers(1, 14))
    tokens, positions, visible = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        tokens.append(draw(st.lists(st.integers(0, 7), min_size=length, max_size=length)))
        visible.append(draw(st.lists(st.sampled_from([True, True, True, False]), min_size=length, max_size=length)))
        row = [draw(st.sampled_from([0, 0, 5]))]
        while len(row) < length:
            restart = draw(st.sampled_from([None, None, None, 0, 4] if any_start else [None, None, None, 0]))
            row.append(row[-1] + 1 if restart is None else restart)
        positions.append(row)
    return tokens, positions, visible


@settings(max_examples=150, derandomize=True, deadline=None)
@given(hashing=hashings(), stream=streams(), with_positions=st.booleans(), with_mask=st.booleans())
def test_random_streams(hashing, stream, with_positions, with_mask):
    sizes, base, order, eos = hashing
    tokens, positions, visible = stream
    mask = torch.tensor(visible) if with_mask else None
    codes = encode_tokens(torch.tensor(tokens), torch.tensor(positions) if with_positions else None, mask)
    codes = without_history(codes, order)
    expected = [
        naive_ngram_ids(
            row, sizes, base, order, eos, positions[i] if with_positions else None, visible[i] if with_mask else None
        )
        for i, row in enumerate(tokens)
    ]
    if with_mask:
        assert masked_ids(codes, mask, 0, sizes, base, order, eos) == expected
    else:
        assert hash_ids(codes, sizes, base, order, eos) == expected


@settings(max_examples=100, derandomize=True, deadline=None)
@given(hashing=hashings(), stream=streams(any_start=False), data=st.data())
def test_pieces_equal_the_whole(hashing, stream, data):
    sizes, base, order, eos = hashing
    tokens, positions, visible = (torch.tensor(rows) for rows in stream)
    length = tokens.shape[1]
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1)))) if length > 1 else []
    # A cache keeps no positions: a later piece learns of a document from its first token, if that is visible.
    visible |= positions == 0
    history = torch.full((len(tokens), order - 1), HIDDEN)
    pieces = []
    for start, end in zip([0, *cuts], [*cuts, length], strict=True):
        codes = encode_tokens(tokens[:, start:end], positions[:, start:end], visible[:, start:end])
        history = torch.cat([history, codes], dim=1)
        pieces.append(torch.tensor(masked_ids(history, visible[:, :end], start, sizes, base, order, eos)))
    whole = without_history(encode_tokens(tokens, positions, visible), order)
    assert torch.cat(pieces, dim=-1).tolist() == masked_ids(whole, visible, 0, sizes, base, order, eos)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(hashing=hashings(), stream=streams(), data=st.data())
def test_a_row_of_a_4d_mask_shows_what_its_token_reads(hashing, stream, data):
    # Any subset of the earlier tokens, another one for each token: the ids are those of the subset alone.
    sizes, base, order, eos = hashing
    row = torch.tensor(stream[0][:1])
    length = row.shape[1]
    seen = torch.tensor([[data.draw(st.booleans()) for _ in range(length)] for _ in range(length)]).tril(-1)
    seen |= torch.eye(length, dtype=torch.bool)
    slots = torch.arange(length)
    windows = visible_windows(
        without_history(encode_tokens(row), order), slots, lookback_slots(seen[None], slots, order - 1)
    )
    found = [ids for (ids,) in torch.tensor(hash_ids(windows, sizes, base, order, eos)).transpose(1, 2).tolist()]
    for t in range(length):
        alone = row[0][seen[t]].tolist()
        assert found[t] == [column[-1] for column in naive_ngram_ids(alone, sizes, base, order, eos)]


def test_golden_ids(conformance_folder):
    config = LongCatLiteConfig.from_pretrained(conformance_folder)
    golden = load_file(conformance_folder / "golden.safetensors")
    codes = without_history(encode_tokens(golden["input_ids"]), config.max_ngram_order)
    ids = hash_ids(
        codes, config.subtable_sizes, config.ngram_base_vocab_size, config.max_ngram_order, (config.eos_token_id,)
    )
    assert ids == golden["ngram_ids"].transpose(0, 1).tolist()


def test_worked_example_of_the_docstring():
    shown = {
        label: [int(number) for number in re.findall(r"\d+", line.split(label)[1])[:5]]
        for label in ("tokens  ", "2-gram id  ", "3-gram id  ")
        for line in ngram_hashing.__doc__.splitlines()
        if line.strip().startswith(label)
    }
    tokens, bigrams, trigrams = shown.values()
    assert (tokens, bigrams, trigrams) == ([4, 7, 2, 5, 6], [4, 47, 1, 5, 56], [4, 47, 34, 5, 56])
    codes = without_history(encode_tokens(torch.tensor([tokens])), 3)
    assert hash_ids(codes, [71, 73], 10, 3, (2,)) == [[bigrams, trigrams]]


def test_codes_carry_their_boundaries():
    codes = encode_tokens(
        torch.tensor([[9, 4, 7, 5, 6]], dtype=torch.int32),
        torch.tensor([[0, 0, 1, 0, 1]]),
        torch.tensor([[0, 1, 1, 1, 1]]),
    )
    assert codes.dtype == torch.int64
    assert codes.tolist() == [[HIDDEN, -5, 7, -6, 6]]


def test_one_row_of_positions_serves_a_batch():
    codes = encode_tokens(torch.tensor([[4, 5, 6], [7, 8, 9]]), torch.tensor([[0, 1, 0]]))
    assert codes.tolist() == [[-5, 5, -7], [-8, 8, -10]]


def test_document_starts():
    positions = torch.tensor([[0, 1, 2, 0, 1, 9, 10]])
    assert document_starts(positions).int().tolist() == [[1, 0, 0, 1, 0, 1, 0]]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 9, 10]]
    # History may stand in a cache: a first position above 0 is no start. A repeated or falling one is.
    assert document_starts(torch.tensor([[5, 6, 6, 5]])).int().tolist() == [[0, 0, 1, 1]]


def test_left_padding_does_not_change_an_id():
    tokens, padded = torch.tensor([[9, 4, 7]]), torch.tensor([[3, 3, 9, 4, 7]])
    alone = hash_ids(without_history(encode_tokens(tokens), 4), RELEASED.subtable_sizes, VOCABULARY, 4, (EOS,))
    codes = encode_tokens(padded, torch.tensor([[0, 0, 0, 1, 2]]), torch.tensor([[0, 0, 1, 1, 1]]))
    found = hash_ids(without_history(codes, 4), RELEASED.subtable_sizes, VOCABULARY, 4, (EOS,))
    assert [column[2:] for column in found[0]] == alone[0]


@pytest.mark.parametrize(
    "config",
    [
        RELEASED,
        LongCatLiteConfig(vocab_size=163840, hidden_size=8192, emb_neighbor_num=5, ngram_vocab_size_ratio=100.567),
        # V**7 alone has 126 bits.
        LongCatLiteConfig(vocab_size=262144, hidden_size=7168, emb_neighbor_num=8, ngram_vocab_size_ratio=4000),
    ],
    ids=["released", "LongCat-2.0", "order 8"],
)
def test_int64_has_head_room(config):
    base, order, sizes = config.ngram_base_vocab_size, config.max_ngram_order, config.subtable_sizes
    residues = power_residues(base, sizes, order)
    largest = max((base - 1) * (1 + sum(residue[i] for residue in residues)) for i in range(len(sizes)))
    assert largest < 2**62
    tokens = [base - 1] * (order + 1)
    codes = without_history(encode_tokens(torch.tensor([tokens])), order)
    assert hash_ids(codes, sizes, base, order, (EOS,))[0] == naive_ngram_ids(tokens, sizes, base, order, {EOS})


def test_released_intermediates_stay_below_the_stated_bound():
    residues = power_residues(VOCABULARY, RELEASED.subtable_sizes, 4)
    assert max(MAX * (1 + sum(column)) for column in zip(*residues, strict=True)) < 4.1e12
