# SPDX-License-Identifier: Apache-2.0
"""What random cases share: rows and masks drawn for one case, its models, and the comparison with each row alone.

Shapes: B batch rows, L tokens with history (columns of the batch), T tokens of a row.
"""

import random

import torch
from cache_argument import holding
from random_generation import ASSISTED, Case
from random_models import PAD, assistant, loaded, reference_model
from rows_alone import beams, greedy, samples
from transformers import CompileConfig, DynamicCache, QuantizedCache, StaticCache

ATOL = 2e-4
ROOM = 160  # columns that no case exceeds
BEAMS = 3
Rows = list[list[int]]


class Bench:
    """The models and the random choices of one case."""

    def __init__(self, case: Case):
        self.case, self.rng = case, random.Random(case.draw)
        self.plain = reference_model(case.model, case.bits, bool(case.delta))
        self.model = loaded(case.model, case.bits, case.placement, bool(case.delta), bool(case.hot))
        self.model.set_attn_implementation(case.attention)
        self.model.set_experts_implementation(case.experts)
        self.config = self.plain.config

    def text(self, shortest: int, longest: int) -> list[int]:
        """A row of tokens; of few different ones half the time, so that it repeats itself."""
        few = self.rng.random() < 0.5
        known = [self.rng.randrange(self.config.vocab_size) for _ in range(4)]
        tokens = []
        for _ in range(self.rng.randint(shortest, longest)):
            token = self.rng.choice(known) if few else self.rng.randrange(self.config.vocab_size)
            tokens.append(2 if self.rng.random() < 0.08 else token)
        return tokens

    def rows(self, shortest: int = 1, longest: int = 8) -> Rows:
        """One row for assisted modes, else up to four; of one length where nothing is masked."""
        count = 1 if self.case.mode in ASSISTED else self.rng.randint(1, 4)
        if self.case.mask == "none":
            shortest = longest = self.rng.randint(shortest, longest)
        return [self.text(shortest, longest) for _ in range(count)]

    def laid_out(self, rows: Rows, trailing: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask `[B, L]`: padding on the left and, of masks with holes, anywhere but in the last column."""
        padded = []
        for row in rows:
            columns = [(token, 1) for token in row]
            for _ in range(self.rng.randint(0, 3) if self.case.mask == "holes" else 0):
                place = self.rng.randint(0, len(columns) - (0 if trailing else 1))
                columns.insert(place, (self.hidden_token(), 0))
            padded.append(columns)
        width = max(map(len, padded))
        padded = [[(self.hidden_token(), 0)] * (width - len(columns)) + columns for columns in padded]
        ids, mask = torch.tensor(padded).unbind(-1)
        return ids.clone(), mask.clone()

    def hidden_token(self) -> int:
        return self.rng.choice((PAD, self.rng.randrange(self.config.vocab_size)))

    def cache(self):
        """A cache of the user's own; None where `generate` or the model makes it."""
        kinds = {
            "lazy": DynamicCache,
            "own_dynamic": lambda: DynamicCache(config=self.config),
            "own_static": lambda: StaticCache(config=self.config, max_cache_len=ROOM),
            "quantized": lambda: QuantizedCache("fp8", self.config),
        }
        return kinds[self.case.cache]() if self.case.cache in kinds else None

    def options(self) -> dict:
        """Of `generate`: mode, cache, chunks and compilation."""
        modes = {
            "greedy": {},
            "sample": {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
            "returns": {"do_sample": True, "top_k": 1, "num_return_sequences": 2},
            "beam": {"num_beams": BEAMS, "num_return_sequences": 1 + self.case.draw % 2},
            "mtp": {"use_mtp": True},
            "lookup": {"prompt_lookup_num_tokens": 3},
            "assistant": {},
        }
        options = {"do_sample": False, "pad_token_id": PAD, **modes[self.case.mode]}
        if self.case.mode == "assistant":
            options["assistant_model"] = assistant(self.config.vocab_size)
        if self.case.cache == "none":
            options["use_cache"] = False
        elif self.case.cache == "static":
            options["cache_implementation"] = "static"
        if self.case.chunk:
            options["prefill_chunk_size"] = self.case.chunk
        if self.case.compiled:
            torch._dynamo.reset()
            compiled = CompileConfig(fullgraph=True, backend="eager", mode=None)
            compiled._compile_all_devices = True
            options["compile_config"] = compiled
        return options

    def expected(self, texts: Rows, count: int) -> tuple[Rows, list[torch.Tensor] | None, int | None]:
        """The next tokens of each row, with their logits where they are greedy, and what ends rows early."""
        mode, seed = self.case.mode, self.case.draw
        if mode == "beam":
            returned = 1 + self.case.draw % 2
            return [found for row in texts for found in beams(self.plain, row, count, BEAMS, returned)], None, None
        if mode == "sample":
            return samples(self.plain, texts, count, seed), None, None
        found = [greedy(self.plain, row, count) for row in texts]
        eos = None
        if self.case.ends:
            eos = self.rng.choice(found)[0][self.rng.randrange(count)]
            found = [greedy(self.plain, row, count, eos) for row in texts]
        tokens, logits = [tokens for tokens, _ in found], [logits for _, logits in found]
        if mode == "returns":
            return [each for each in tokens for _ in range(2)], None, None
        return tokens, logits, eos

    def generate(self, ids, mask, texts: Rows, cache=None, **prompt):
        """Generates from `texts`, laid out as `ids` and `mask`; checks and returns the tokens, with the output."""
        count = self.rng.randint(2, 7)
        tokens, logits, eos = self.expected(texts, count)
        records_states = self.rng.random() < 0.25 and self.case.mode != "beam" and not self.case.compiled
        options = self.options()
        torch.manual_seed(self.case.draw)  # nothing may draw a number before `generate` does
        output = self.model.generate(
            **(prompt or {"input_ids": ids}),
            attention_mask=mask,
            max_new_tokens=count,
            eos_token_id=eos,
            return_dict_in_generate=True,
            output_logits=logits is not None,
            output_hidden_states=records_states,
            **options,
            **holding(cache),
        )
        width = max(map(len, tokens))
        found, wanted = output.sequences[:, -width:].tolist(), [row + [PAD] * (width - len(row)) for row in tokens]
        assert found == wanted, f"tokens {found}, alone {wanted}"
        if logits is not None:
            assert len(output.logits) == width, f"logits of {len(output.logits)} tokens, not {width}"
            for i, alone in enumerate(logits):
                got = torch.stack([step[i] for step in output.logits[: len(alone)]]).float()
                torch.testing.assert_close(got, alone, atol=ATOL, rtol=0)
        if records_states:
            assert len(output.hidden_states) == width, f"states of {len(output.hidden_states)} tokens, not {width}"
        return tokens, output


def positions(mask: torch.Tensor) -> torch.Tensor:
    """As `generate` makes them."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def fill(bench: Bench, ids, mask, cache, first: int = 0):
    """Forwards of the columns from `first` on, in chunks of any length; returns their logits `[B, L - first, V]`."""
    seen, width, logits = first, ids.shape[1], []
    name = bench.rng.choice(("cache", "past_key_values"))  # a forward of ours takes both, on every version
    while seen < width:
        end = width if cache is None else min(width, seen + bench.rng.randint(1, 5))
        chunk = slice(seen, end)
        output = bench.model(
            ids[:, chunk],
            attention_mask=mask[:, :end],
            position_ids=positions(mask)[:, chunk],
            use_cache=cache is not None,
            **holding(cache, name),
        )
        logits.append(output.logits)
        seen = end
    return torch.cat(logits, 1)


def check_logits(found: torch.Tensor, mask: torch.Tensor, wanted: list[torch.Tensor]):
    """Of visible tokens, `[B, L, V]` by `[B, L]`, against each row's own."""
    for i, each in enumerate(wanted):
        torch.testing.assert_close(found[i][mask[i].bool()].float(), each, atol=ATOL, rtol=0)


__all__ = ["ATOL", "BEAMS", "Bench", "Rows", "check_logits", "fill", "positions"]
