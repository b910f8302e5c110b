# SPDX-License-Identifier: Apache-2.0
"""What each row gets alone: without a cache, without padding, one plain forward a token.

A choice that rounding could turn, because two candidates are closer than `CLOSE`, raises `TooClose`: the case is drawn
anew, not compared with a tolerance.

Shapes: V vocabulary.
"""

import torch

CLOSE = 1e-4


class TooClose(Exception):
    """Two candidates of a case are so close that rounding decides."""


@torch.no_grad()
def logits_of(model, row: list[int]) -> torch.Tensor:
    """Of every token of a row: `[T, V]`."""
    return model(torch.tensor([row]), use_cache=False).logits[0].float()


def check_gap(values: torch.Tensor, kept: int):
    """Raises unless the first `kept` of the sorted `values` are clearly above the others."""
    if len(values) > kept and values[kept - 1] - values[kept] < CLOSE:
        raise TooClose


def greedy(model, row: list[int], count: int, eos: int | None = None) -> tuple[list[int], torch.Tensor]:
    """The next tokens of a row, up to `eos`, and the logits they were chosen from, `[tokens, V]`."""
    tokens, seen = list(row), []
    for _ in range(count):
        scores = logits_of(model, tokens)[-1]
        check_gap(scores.topk(2).values, 1)
        tokens.append(int(scores.argmax()))
        seen.append(scores)
        if tokens[-1] == eos:
            break
    return tokens[len(row) :], torch.stack(seen)


def beams(model, row: list[int], count: int, width: int, returned: int) -> list[list[int]]:
    """The `returned` best continuations of beam search over `width` beams, which no token ends."""
    scored = [(0.0, list(row))]
    for _ in range(count):
        logits = torch.stack([logits_of(model, tokens)[-1] for _, tokens in scored])
        totals = torch.tensor([score for score, _ in scored])[:, None] + logits.log_softmax(-1)
        best = totals.flatten().topk(width + 1)
        check_gap(best.values, width)
        vocabulary = totals.shape[1]
        scored = [
            (float(total), scored[place // vocabulary][1] + [place % vocabulary])
            for total, place in zip(best.values[:width], best.indices[:width].tolist(), strict=True)
        ]
    totals = torch.tensor([score for score, _ in scored])
    for rank in range(1, min(returned, width - 1) + 1):
        check_gap(totals, rank)
    return [tokens[len(row) :] for _, tokens in scored[:returned]]


def samples(model, rows: list[list[int]], count: int, seed: int) -> list[list[int]]:
    """One continuation of each row, drawn at temperature 1 as `generate` draws for the batch of them."""
    torch.manual_seed(seed)
    noise, texts = torch.Generator().manual_seed(1), [list(row) for row in rows]
    for _ in range(count):
        logits = torch.stack([logits_of(model, tokens)[-1] for tokens in texts])
        before = torch.get_rng_state()
        turned = logits + CLOSE * torch.randn(logits.shape, generator=noise)
        other = torch.multinomial(turned.softmax(-1), 1)[:, 0]
        torch.set_rng_state(before)
        drawn = torch.multinomial(logits.softmax(-1), 1)[:, 0]
        if not torch.equal(drawn, other):
            raise TooClose
        for tokens, token in zip(texts, drawn.tolist(), strict=True):
            tokens.append(token)
    return [tokens[len(row) :] for tokens, row in zip(texts, rows, strict=True)]
