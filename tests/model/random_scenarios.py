# SPDX-License-Identifier: Apache-2.0
"""What each kind of random case does, and that every row gets what it gets alone.

    generate    a batch, padded and with holes in its mask, in every mode and cache
    turns       two or three turns of a batch with one cache, which is cropped, copied, reordered and selected between
    prefix      the cache of one prefix, repeated for suffixes of unequal length
    forward     plain forwards in uneven chunks, padding anywhere
    hidden      a mask that hides, later, what the cache holds already
    packed      documents packed in rows, plain and compiled
    embeds      prompts as embeddings with their tokens, also after a filled cache
    branches    several continuations of one prefix in a 4D mask
    failure     a forward that fails midway, and the cache that it leaves

Shapes: B batch rows, L tokens with history (columns of the batch), T tokens of a row.
"""

import contextlib
import copy
import itertools

import pytest
import torch
from cache_argument import held, holding, keep_every_number
from module_hooks import captured, gathered, not_called
from naive_ngram import naive_ngram_ids
from random_bench import BEAMS, Bench, Rows, check_logits, fill, positions
from random_generation import ASSISTED, Case
from rows_alone import TooClose, logits_of

from modeling_longcat_lite.configuration_longcat_lite import segment_ends


def check_generate(bench: Bench):
    texts = bench.rows()
    bench.generate(*bench.laid_out(texts), texts, bench.cache())


def check_turns(bench: Bench):
    rng, texts, cache = bench.rng, [[] for _ in bench.rows()], bench.cache()
    ids = mask = torch.zeros(len(texts), 0, dtype=torch.long)
    for _turn in range(rng.choice((2, 2, 3))):
        added = [bench.text(1, 5) for _ in texts]
        if bench.case.mask == "none":
            added = [row[: min(map(len, added))] for row in added]
        new_ids, new_mask = bench.laid_out(added)
        ids, mask = torch.cat([ids, new_ids], 1), torch.cat([mask, new_mask], 1)
        texts = [text + row for text, row in zip(texts, added, strict=True)]
        seen = 0 if cache is None else int(cache.get_seq_length())
        # Users pass the whole conversation, or what the cache has not seen, with the mask of the whole.
        passes_new = seen and not bench.case.chunk and bench.case.mode not in ASSISTED and rng.random() < 0.3
        tokens, output = bench.generate(ids[:, seen:] if passes_new else ids, mask, texts, cache)
        cache = held(output)
        # What ended early is padded by `generate`, and hidden from the turns to come.
        width = max(map(len, tokens))
        ended = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in tokens])
        ids = torch.cat([ids[:, :seen], output.sequences], 1) if passes_new else output.sequences
        mask = torch.cat([mask, ended], 1)
        texts = [text + row for text, row in zip(texts, tokens, strict=True)]
        texts, ids, mask, cache = changed_cache(bench, texts, ids, mask, cache)


def changed_cache(bench: Bench, texts: Rows, ids, mask, cache):
    """What users do with a cache between turns."""
    can_change = bench.case.cache in ("dynamic", "lazy", "own_dynamic") and int(cache.get_seq_length()) > 1
    change = bench.rng.choice(("none", "copy", "reorder", *(("crop", "select") if can_change else ())))
    if change == "copy":
        cache = copy.deepcopy(cache)
    elif change == "crop":
        cache.crop(-bench.rng.randint(1, int(cache.get_seq_length()) - 1))
    elif change in ("reorder", "select"):
        order = [bench.rng.randrange(len(texts)) for _ in texts]
        (cache.reorder_cache if change == "reorder" else cache.batch_select_indices)(torch.tensor(order))
        texts, ids, mask = [texts[i] for i in order], ids[order], mask[order]
    return texts, ids, mask, cache


def check_prefix(bench: Bench):
    suffixes, prefix, cache = bench.rows(1, 6), bench.text(2, 8), bench.cache()
    prefix_ids, prefix_mask = bench.laid_out([prefix])
    fill(bench, prefix_ids, prefix_mask, cache)
    cache.batch_repeat_interleave(len(suffixes) * (BEAMS if bench.case.mode == "beam" else 1))
    ids, mask = bench.laid_out(suffixes)
    ids = torch.cat([prefix_ids.expand(len(ids), -1), ids], 1)
    mask = torch.cat([prefix_mask.expand(len(ids), -1), mask], 1)
    bench.generate(ids, mask, [prefix + suffix for suffix in suffixes], cache)


def check_forward(bench: Bench):
    texts = bench.rows(1, 12)
    ids, mask = bench.laid_out(texts, trailing=True)
    found = fill(bench, ids, mask, bench.cache())
    check_logits(found, mask, [logits_of(bench.plain, row) for row in texts])


def check_hidden(bench: Bench):
    rng, cache = bench.rng, bench.cache()
    ids, mask = bench.laid_out(bench.rows(3, 9))
    fill(bench, ids, mask, cache)
    new_ids, new_mask = bench.laid_out([bench.text(1, 4) for _ in ids])
    still = torch.tensor([[int(rng.random() < 0.6) for _ in row] for row in mask])
    whole = torch.cat([ids, new_ids], 1)
    before, after = torch.cat([mask, new_mask], 1), torch.cat([mask * still, new_mask], 1)
    found = fill(bench, whole, after, cache, first=ids.shape[1])
    wanted = [logits_with_two_masks(bench, *row, ids.shape[1]) for row in zip(whole, before, after, strict=True)]
    check_logits(found, new_mask, [each[kept.bool()] for each, kept in zip(wanted, new_mask, strict=True)])


@torch.no_grad()
def logits_with_two_masks(bench: Bench, ids, before, after, split: int) -> torch.Tensor:
    """Of the columns from `split` on, which see `after`; those before it saw `before`. One row, one forward."""
    config, width, names = bench.config, len(ids), ngram_arguments(bench.config)
    row_ids = torch.zeros(1, width, config.num_subtables, dtype=torch.long)
    sees, places = torch.zeros(width, width).bool(), torch.zeros(1, width, dtype=torch.long)
    for mask, columns in ((before, range(split)), (after, range(split, width))):
        visible = mask.nonzero()[:, 0]
        of_visible = torch.tensor(naive_ngram_ids(ids[visible].tolist(), *names)).reshape(config.num_subtables, -1)
        for column in columns:
            sees[column] = mask.bool() & (torch.arange(width) <= column)
            sees[column, column] = True
            places[0, column] = positions(mask)[column]
            if mask[column]:
                row_ids[0, column] = of_visible[:, int((visible < column).sum())]
    allowed = torch.where(sees, 0.0, torch.finfo(torch.float32).min)[None, None]
    output = bench.plain(
        ids[None], attention_mask=allowed, position_ids=places, ngram_row_ids=row_ids, use_cache=False
    )
    return output.logits[0, split:]


def ngram_arguments(config) -> tuple:
    """What `naive_ngram_ids` wants to know, after the tokens."""
    return config.subtable_sizes, config.ngram_base_vocab_size, config.max_ngram_order, segment_ends(config)


def check_packed(bench: Bench):
    case, rng = bench.case, bench.rng
    rows = [[bench.text(1, 6) for _ in range(rng.randint(1, 4))] for _ in range(rng.randint(1, 3))]
    columns = [[(t, 1, place) for text in row for place, t in enumerate(text)] for row in rows]
    if case.mask in ("none", "ones"):  # all rows as long as the longest: their last document grows
        width = max(map(len, columns))
        for row, of_row in zip(rows, columns, strict=True):
            row[-1] += (grown := [rng.randrange(bench.config.vocab_size) for _ in range(width - len(of_row))])
            of_row += [(t, 1, len(row[-1]) - len(grown) + i) for i, t in enumerate(grown)]
    elif case.mask == "holes":
        for of_row in columns:
            for _ in range(rng.randint(0, 3)):
                place = rng.randint(1, len(of_row))
                of_row.insert(place, (bench.hidden_token(), 0, of_row[place - 1][2]))
    width = max(map(len, columns))
    columns = [of_row + [(bench.hidden_token(), 0, 0)] * (width - len(of_row)) for of_row in columns]
    ids, mask, places = torch.tensor(columns).unbind(-1)
    model = bench.model
    if case.compiled:
        torch._dynamo.reset()
        model = torch.compile(model, backend="eager", fullgraph=case.cache == "none")
    cache = bench.cache()
    shown = {} if case.mask == "none" else {"attention_mask": mask}
    with torch.no_grad():
        use = {"use_cache": case.cache != "none", **holding(cache)}
        found = model(ids, position_ids=places, **shown, **use).logits
    check_logits(found, mask, [torch.cat([logits_of(bench.plain, text) for text in row]) for row in rows])


def check_embeds(bench: Bench):
    texts, cache = bench.rows(2, 8), bench.cache()
    ids, mask = bench.laid_out(texts)
    filled, tokens = bench.rng.randint(0, ids.shape[1] - 1), bench.rng.choice(("input_ids", "ngram_input_ids"))
    if bench.case.mode == "lookup":
        # Prompt lookup of transformers goes wrong with ids beside embeddings and with a filled cache: a Llama too.
        filled, tokens = 0, "ngram_input_ids"
    if bench.case.mode == "beam":
        cache = None
    if cache is not None and filled:
        fill(bench, ids[:, :filled], mask[:, :filled], cache)
    with torch.no_grad():
        embeds = bench.plain.get_input_embeddings()(ids)
    bench.generate(ids, mask, texts, cache, inputs_embeds=embeds, **{tokens: ids})


@torch.no_grad()
def check_branches(bench: Bench):
    rng, config, cache, rows = bench.rng, bench.config, bench.cache(), range(bench.rng.randint(1, 3))
    lengths = [rng.randint(1, 4) for _ in range(rng.randint(2, 3))]
    prefixes = [bench.text(6, 6)[: 2 + bench.case.draw % 5] for _ in rows]
    branches = [[bench.text(length, length) for length in lengths] for _ in rows]
    first, names = len(prefixes[0]), ngram_arguments(config)
    width, places = first + sum(lengths), list(range(first))
    sees, wanted, row_ids = torch.tril(torch.ones(width, width)).bool(), [], []
    for end, length in zip(itertools.accumulate(lengths, initial=first), lengths, strict=False):
        sees[end:, first:end] = False  # what later branches would see of those before
        places += range(first, first + length)
    for prefix, of_prefix in zip(prefixes, branches, strict=True):
        alone = [logits_of(bench.plain, prefix)]
        ngrams = [torch.tensor(naive_ngram_ids(prefix, *names))]
        for branch in of_prefix:
            alone.append(logits_of(bench.plain, prefix + branch)[first:])
            ngrams.append(torch.tensor(naive_ngram_ids(prefix + branch, *names))[:, first:])
        wanted.append(torch.cat(alone))
        row_ids.append(torch.cat(ngrams, 1).t())
    ids = torch.tensor([sum(of_prefix, prefix) for prefix, of_prefix in zip(prefixes, branches, strict=True)])
    mask = sees if rng.random() < 0.5 else torch.where(sees, 0.0, torch.finfo(torch.float32).min)
    mask, places = mask.expand(len(ids), 1, -1, -1), torch.tensor([places])
    if cache is None:
        call = {"attention_mask": mask, "position_ids": places, "use_cache": False}
        check_logits(bench.model(ids, ngram_row_ids=torch.stack(row_ids), **call).logits, torch.ones_like(ids), wanted)
        found = bench.model(ids, **call).logits
    else:  # the prefix is in a cache before its branches come
        found = [fill(bench, ids[:, :first], torch.ones_like(ids[:, :first]), cache)]
        call = {"attention_mask": mask[:, :, first:], "position_ids": places[:, first:], **holding(cache)}
        found = torch.cat([*found, bench.model(ids[:, first:], **call).logits], 1)
    check_logits(found, torch.ones_like(ids), wanted)


@torch.no_grad()
def check_failure(bench: Bench):
    texts, cache = bench.rows(2, 8), bench.cache()
    ids, mask = bench.laid_out(texts)
    split = bench.rng.randint(0, ids.shape[1] - 1)
    if split:
        fill(bench, ids[:, :split], mask[:, :split], cache)
    layers = bench.model.model.layers
    broken = bench.rng.choice([layer.self_attn[1] for layer in layers] + [layer.mlp for layer in layers])

    def fail(*_):
        raise RuntimeError("out of memory")

    call = {"attention_mask": mask, "position_ids": positions(mask)[:, split:], **holding(cache)}
    handle = broken.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            bench.model(ids[:, split:], **call)
    finally:
        handle.remove()
    with pytest.raises(ValueError, match=r"cache|past_key_values"):
        bench.model(ids[:, split:], **call)


@contextlib.contextmanager
def hooked(bench: Bench):
    """Hooks of the case on every module; all that take part have to be called."""
    if bench.case.hooks == "none":
        yield
    elif bench.case.hooks == "gathered":
        with gathered(bench.model):
            yield
    else:
        with captured(bench.model) as calls:
            yield
        missed = set(not_called(bench.model, calls))
        missed -= {"model.embed_tokens"} if bench.case.kind == "embeds" else set()
        assert not missed, f"not called as modules: {sorted(missed)}"


def check(case: Case):
    """Runs a case; raises `TooClose` if it has to be drawn anew."""
    bench = Bench(case)
    with pytest.MonkeyPatch.context() as patch, hooked(bench):
        keep_every_number(patch)
        globals()[f"check_{case.kind}"](bench)


__all__ = ["TooClose", "check"]
