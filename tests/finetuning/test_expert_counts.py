# SPDX-License-Identifier: Apache-2.0
"""Counts of selected experts equal a plain loop over tokens, once per training forward, without padding."""

import statistics

import pytest
import torch
from conftest import randomize, tiny_config

from eval.checkpoints.parameters import report
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from training.routers.counts import ExpertCounts, activated_parameters


@pytest.fixture
def model() -> LongCatLiteForCausalLM:
    torch.manual_seed(0)
    return randomize(LongCatLiteForCausalLM(tiny_config())).train()


def plain_counts(model, ids, visible=None) -> list[list[list[int]]]:
    """Routed experts of each visible token, by layer, with sorting instead of top-k."""
    with torch.no_grad():
        logits = model.model(ids, attention_mask=visible, output_router_logits=True).router_logits
    visible = torch.ones_like(ids) if visible is None else visible
    layers = []
    for layer, of_layer in zip(model.model.layers, logits, strict=True):
        biased = of_layer.softmax(-1) + layer.mlp.router.e_score_correction_bias
        chosen = [sorted(range(9), key=lambda e, row=row: -row[e])[:3] for row in biased.tolist()]
        layers.append([[e for e in row if e < 6] for row, seen in zip(chosen, visible.flatten(), strict=True) if seen])
    return layers


def of_loop(layers) -> list[list[int]]:
    return [
        [
            *(sum(expert in token for token in tokens) for expert in range(6)),
            sum(len(t) ** 2 for t in tokens),
            len(tokens),
        ]
        for tokens in layers
    ]


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids, visible = torch.randint(4, 64, (3, 12)), torch.ones(3, 12, dtype=torch.long)
    visible[1, 7:] = visible[2, :4] = 0
    return ids, visible


def test_counts_equal_a_loop(model):
    counts = ExpertCounts(model)
    ids, visible = padded_batch()
    model(ids, attention_mask=visible)
    assert counts.end_step().counts.tolist() == of_loop(plain_counts(model, ids, visible))


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_micro_batches_add_up_and_recomputation_does_not(model, reentrant):
    if reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    counts = ExpertCounts(model)
    batches = [padded_batch(), padded_batch()]
    for ids, visible in batches:
        model(ids, attention_mask=visible).logits.sum().backward()
    expected = sum(torch.tensor(of_loop(plain_counts(model, *batch))) for batch in batches)
    assert counts.end_step().counts.tolist() == expected.tolist()


def test_a_packed_row_counts_as_its_documents_do_in_a_padded_batch(model):
    counts = ExpertCounts(model)
    ids, visible = padded_batch()
    model(ids, attention_mask=visible)
    padded = counts.end_step().counts
    lengths = visible.sum(1).tolist()
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    model(ids[visible.bool()][None], position_ids=positions)
    assert torch.equal(counts.end_step().counts, padded)
    assert padded[:, -1].tolist() == [sum(lengths)] * 2


def test_only_training_forwards_count_and_an_interrupted_step_does_not(model):
    counts = ExpertCounts(model)
    ids, _ = padded_batch()
    with torch.no_grad():
        model(ids)
    model.eval()(ids)
    assert counts.end_step().counts.sum() == 0
    model.train()(ids)
    counts.begin_step()
    assert counts.end_step().counts.sum() == 0 and counts.pop_metrics() == {}


def test_metrics_are_those_of_a_loop_over_all_steps_since_the_last_log(model):
    counts = ExpertCounts(model)
    layers: list[list[list[int]]] = [[], []]
    for _ in range(2):
        ids, visible = padded_batch()
        model(ids, attention_mask=visible)
        counts.end_step()
        for tokens, new in zip(layers, plain_counts(model, ids, visible), strict=True):
            tokens += new
    numbers = [[len(token) for token in tokens] for tokens in layers]
    means = [statistics.mean(of_layer) for of_layer in numbers]
    loads = [[sum(expert in token for token in tokens) for expert in range(6)] for tokens in layers]
    always, expert = activated_parameters(model.config)
    assert counts.pop_metrics() == pytest.approx(
        {
            "experts/mean": statistics.mean(means),
            "experts/std": statistics.mean(statistics.pvariance(of_layer) for of_layer in numbers) ** 0.5,
            "experts/load_spread": statistics.mean(statistics.pstdev(load) / statistics.mean(load) for load in loads),
            "experts/layer_0": means[0],
            "experts/layer_1": means[1],
            "activated_parameters": always + expert * sum(means),
        }
    )
    assert counts.pop_metrics() == {}


@pytest.mark.parametrize("config", [LongCatLiteConfig(), tiny_config(num_nextn_predict_layers=1)])
def test_activated_parameters_are_those_of_the_report(config):
    always, expert = activated_parameters(config)
    for routed, expected in report(config)["activated_by_routed_experts"].items():
        assert always + int(routed) * config.num_layers * expert == expected
