# SPDX-License-Identifier: Apache-2.0
"""A hidden token is not there: rows with padding anywhere get what their visible tokens get alone.

The reference of each test is the row without its hidden tokens, without a cache.
"""

import pytest
import torch
from cache_argument import CACHE, held, holding, keep_every_number
from conftest import randomize, tiny_config
from rows_alone import greedy, logits_of
from transformers import DynamicCache, QuantizedCache, StaticCache

from modeling_longcat_lite import LongCatLiteForCausalLM

EOS, PAD = 2, 3
OWN_CACHES = {
    "lazy": lambda config: DynamicCache(),
    "dynamic": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=64),
    "quantized": lambda config: QuantizedCache("fp8", config),
}
every_cache = pytest.mark.parametrize("kind", [*OWN_CACHES, "none"])
own_cache = pytest.mark.parametrize("kind", OWN_CACHES)
every_order = pytest.mark.parametrize("order", [2, 3, 4])


@pytest.fixture(autouse=True)
def quantized_caches_keep_every_number(monkeypatch):
    keep_every_number(monkeypatch)


def make_model(order: int = 4, **overrides) -> LongCatLiteForCausalLM:
    tables = {2: 3, 3: 4, 4: 4}[order]
    config = tiny_config(emb_neighbor_num=order, emb_split_num=tables, **overrides)
    return randomize(LongCatLiteForCausalLM(config), seed=order).eval()


def made_cache(kind: str, model):
    return OWN_CACHES[kind](model.config) if kind in OWN_CACHES else None


def some_tokens(length: int, seed: int) -> list[int]:
    return torch.randint(4, 64, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def left_padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, `[B, W]`."""
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


def places(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def generated(model, ids, mask, cache=None, count: int = 5, **options):
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD, **options}
    return model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **options, **holding(cache))


def check_rows(model, found: torch.Tensor, rows: list[list[int]]):
    """The last columns of generated rows against what each row chooses alone."""
    for row, tokens in zip(rows, found.tolist(), strict=True):
        assert tokens[-5:] == greedy(model, row, 5)[0]


@every_order
@every_cache
def test_turns_of_a_batch_are_padded_between(order, kind):
    model, cache = make_model(order), None
    rows = [some_tokens(6, 1), some_tokens(3, 2), some_tokens(1, 3)]
    ids, mask = left_padded(rows)
    cache = made_cache(kind, model)
    for turn in range(2):
        output = generated(model, ids, mask, cache, **({"use_cache": False} if kind == "none" else {}))
        check_rows(model, output.sequences, rows)
        rows = [row + tokens[-5:] for row, tokens in zip(rows, output.sequences.tolist(), strict=True)]
        said = [some_tokens(length, 10 * turn + length) for length in (2, 5, 4)]
        new_ids, new_mask = left_padded(said)
        ids = torch.cat([output.sequences, new_ids], 1)
        mask = torch.cat([mask, torch.ones(3, 5, dtype=torch.long), new_mask], 1)
        rows = [row + added for row, added in zip(rows, said, strict=True)]


@every_order
@own_cache
def test_rows_that_ended_early_are_padded_at_their_end(order, kind):
    model, cache = make_model(order), made_cache(kind, make_model(order))
    rows = [some_tokens(5, 4), some_tokens(5, 5)]
    ids, mask = left_padded(rows)
    end = greedy(model, rows[0], 3)[0][1]  # the second token of the first row ends rows
    output = generated(model, ids, mask, cache, eos_token_id=end)
    ended = [greedy(model, row, 5, eos=end)[0] for row in rows]
    assert len(ended[0]) < len(ended[1])
    width = len(ended[1])
    assert output.sequences[:, -width:].tolist() == [tokens + [PAD] * (width - len(tokens)) for tokens in ended]
    mask = torch.cat([mask, torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in ended])], 1)
    ids, mask = (
        torch.cat([output.sequences, torch.tensor([[9, 8], [7, 6]])], 1),
        torch.nn.functional.pad(mask, (0, 2), value=1),
    )
    rows = [row + tokens + added for row, tokens, added in zip(rows, ended, ([9, 8], [7, 6]), strict=True)]
    check_rows(model, generated(model, ids, mask, held(output)).sequences, rows)


@every_order
@pytest.mark.parametrize("kind", ["lazy", "dynamic"])
def test_one_prefix_serves_suffixes_of_unequal_length(order, kind):
    model, cache = make_model(order), made_cache(kind, make_model(order))
    prefix, suffixes = some_tokens(6, 6), [some_tokens(n, n) for n in (1, 4, 2)]
    with torch.no_grad():
        model(torch.tensor([prefix]), **holding(cache))
    cache.batch_repeat_interleave(3)
    ids, mask = left_padded(suffixes)
    ids = torch.cat([torch.tensor([prefix]).expand(3, -1), ids], 1)
    output = generated(model, ids, torch.nn.functional.pad(mask, (6, 0), value=1), cache)
    check_rows(model, output.sequences, [prefix + suffix for suffix in suffixes])


@every_order
@own_cache
@pytest.mark.parametrize("taken_back", [1, 2, 5])
@torch.no_grad()
def test_a_mask_given_later_hides_what_the_cache_holds(order, kind, taken_back):
    model, cache = make_model(order), made_cache(kind, make_model(order))
    kept, said = some_tokens(4, 7), some_tokens(3, 8)
    model(torch.tensor([kept + some_tokens(taken_back, 9)]), **holding(cache))
    mask = torch.tensor([[1] * 4 + [0] * taken_back + [1] * 3])
    for column in range(3):  # token by token: windows that begin before the hidden ones
        end = 4 + taken_back + column + 1
        found = model(
            torch.tensor([said[column : column + 1]]),
            attention_mask=mask[:, :end],
            position_ids=places(mask)[:, end - 1 : end],
            **holding(cache),
        ).logits[0, -1]
        torch.testing.assert_close(found, logits_of(model, kept + said[: column + 1])[-1], atol=2e-4, rtol=0)


@every_order
@every_cache
@torch.no_grad()
def test_holes_anywhere_in_forwards_of_any_length(order, kind):
    model, cache = make_model(order), made_cache(kind, make_model(order))
    masks = [[1, 0, 1, 1, 0, 0, 0, 1, 1, 0, 1], [0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0], [1] * 11]
    ids, mask = torch.tensor([some_tokens(11, seed) for seed in range(3)]), torch.tensor(masks)
    found = []
    for begin, end in [(0, 11)] if kind == "none" else [(0, 2), (2, 3), (3, 7), (7, 8), (8, 9), (9, 11)]:
        inputs = {"attention_mask": mask[:, :end], "position_ids": places(mask)[:, begin:end]}
        found.append(model(ids[:, begin:end], use_cache=kind != "none", **inputs, **holding(cache)).logits)
    for row, visible, logits in zip(ids, mask.bool(), torch.cat(found, 1), strict=True):
        torch.testing.assert_close(logits[visible], logits_of(model, row[visible].tolist()), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "mask"),
    [
        ([9, EOS, 8, 7, 6], [1, 0, 1, 1, 1]),  # a hidden end of text ends nothing
        ([9, 8, EOS, 7, 6], [1, 1, 1, 0, 1]),  # a visible one does, whatever is hidden after it
        ([EOS, 9, 8, 7, 6], [1, 0, 0, 1, 1]),
        ([9, 8, 7, EOS, EOS], [1, 1, 0, 0, 1]),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
@torch.no_grad()
def test_ends_of_text_that_are_hidden(tokens, mask, cached):
    model, cache = make_model(), DynamicCache() if cached else None
    ids, mask = torch.tensor([tokens]), torch.tensor([mask])
    if cached:
        model(ids[:, :4], attention_mask=mask[:, :4], position_ids=places(mask)[:, :4], **holding(cache))
    begin = 4 if cached else 0
    found = model(ids[:, begin:], attention_mask=mask, position_ids=places(mask)[:, begin:], **holding(cache)).logits
    wanted = logits_of(model, ids[0][mask[0].bool()].tolist())
    torch.testing.assert_close(found[0, -1], wanted[-1], atol=2e-4, rtol=0)


@every_cache
def test_what_a_hole_holds_has_no_say(kind):
    model, mask = make_model(), torch.tensor([[1, 1, 0, 1, 0, 1]])
    outputs = []
    for hidden in (PAD, EOS, 0, 63):
        ids = torch.tensor([[9, 8, hidden, 7, hidden, 6]])
        options = {"use_cache": False} if kind == "none" else {}
        outputs.append(generated(model, ids, mask, made_cache(kind, model), **options).sequences[:, -5:])
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    check_rows(model, outputs[0], [[9, 8, 7, 6]])


@pytest.mark.parametrize("ngram_drafts", [False, True], ids=["word_drafts", "ngram_drafts"])
@pytest.mark.parametrize("assistance", [{"use_mtp": True}, {"prompt_lookup_num_tokens": 3}], ids=["mtp", "lookup"])
def test_drafts_after_holes(assistance, ngram_drafts):
    model = make_model(num_nextn_predict_layers=1, mtp_use_ngram_embedding=ngram_drafts)
    ids = torch.tensor([[5, 9, 7, PAD, 5, 9, 7, 0, 0, 5, 9]])
    mask = torch.tensor([[1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1]])
    output = generated(model, ids, mask, **assistance)
    check_rows(model, output.sequences, [ids[0][mask[0].bool()].tolist()])
    # And a second turn on the cache of the first, with a hole between.
    ids = torch.cat([output.sequences, torch.tensor([[PAD, 9, 7]])], 1)
    mask = torch.cat([mask, torch.tensor([[1] * 5 + [0, 1, 1]])], 1)
    output = generated(model, ids, mask, held(output), **assistance)
    check_rows(model, output.sequences, [ids[0][mask[0].bool()].tolist()])


@every_order
@pytest.mark.parametrize("cached", [False, True], ids=["one_forward", "prefix_in_a_cache"])
@pytest.mark.parametrize("form", [torch.bool, torch.float32], ids=["bool", "added"])
@torch.no_grad()
def test_branches_of_a_mask_are_rows_of_their_own(order, cached, form):
    model, cache = make_model(order), DynamicCache() if cached else None
    prefix, branches = some_tokens(5, 1), [some_tokens(3, 2), some_tokens(2, 3), some_tokens(4, 4)]
    row, positions, width = list(prefix), list(range(5)), 5 + 3 + 2 + 4
    sees = torch.tril(torch.ones(width, width)).bool()
    sees[:, 1] = False  # a hidden token in the prefix
    wanted = []
    for branch in branches:
        sees[len(row) :, 5 : len(row)] = False
        row, positions = row + branch, positions + list(range(4, 4 + len(branch)))
        wanted.append(logits_of(model, prefix[:1] + prefix[2:] + branch)[4:])
    positions[1:5] = [0, 1, 2, 3]
    sees[1, 1] = True  # it sees itself, as a row of a mask has to see something
    mask = sees if form is torch.bool else torch.where(sees, 0.0, torch.finfo(torch.float32).min)
    begin = 5 if cached else 0
    if cached:
        visible = torch.tensor([[1, 0, 1, 1, 1]])
        model(
            torch.tensor([prefix]),
            attention_mask=visible,
            position_ids=torch.tensor([positions[:5]]),
            **holding(cache),
        )
    found = model(
        torch.tensor([row[begin:]]),
        attention_mask=mask[None, None, begin:],
        position_ids=torch.tensor([positions[begin:]]),
        **holding(cache),
    ).logits[0, 5 - begin :]
    torch.testing.assert_close(found, torch.cat(wanted), atol=2e-4, rtol=0)


@every_cache
@pytest.mark.parametrize("positions", ["given", "counted"])
@torch.no_grad()
def test_a_mask_of_one_row_with_columns_for_tokens_to_come(kind, positions):
    model, cache = make_model(), made_cache(kind, make_model())
    ids, mask = torch.tensor([some_tokens(9, 1), some_tokens(9, 2)]), torch.tensor([[1, 1, 0, 1, 0, 0, 1, 1, 1]])
    given = {"position_ids": places(mask).expand(2, -1)} if positions == "given" else {}
    wanted = model(ids, attention_mask=mask.expand(2, -1), use_cache=False, **given).logits
    wide, found = torch.nn.functional.pad(mask, (0, 4)), []
    for begin, end in [(0, 9)] if kind == "none" else [(0, 4), (4, 5), (5, 9)]:
        inputs = {name: value[:, begin:end] for name, value in given.items()}
        options = {"use_cache": kind != "none", **holding(cache)}
        found.append(model(ids[:, begin:end], attention_mask=wide, **inputs, **options).logits)
    visible = mask[0].bool()
    torch.testing.assert_close(torch.cat(found, 1)[:, visible], wanted[:, visible], atol=2e-4, rtol=0)


@pytest.mark.skipif(CACHE == "past_key_values", reason="transformers before 5.24 cannot do this with any model")
def test_flex_attention_with_a_static_cache():
    model = make_model()
    model.set_attn_implementation("flex_attention")
    rows = [some_tokens(6, 1), some_tokens(3, 2)]
    ids, mask = left_padded(rows)
    with torch.compiler.set_stance("force_eager"):  # the compiler for CPUs takes minutes, and has no say here
        output = generated(model, ids, mask, cache_implementation="static", disable_compile=True)
        check_rows(model, output.sequences, rows)
