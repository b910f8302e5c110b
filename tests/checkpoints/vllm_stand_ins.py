# SPDX-License-Identifier: Apache-2.0
"""What vLLM's CPU build lacks to run LongCat-Flash-Lite, for `test_vllm.py`: runs in vLLM's own environment.

vLLM's second model runner, which the n-gram embedding needs, is made of Triton kernels. Two more kernels are written
for CUDA only. The CPU kernel for plain RoPE turns only the first head right if queries have a dimension for heads, as
in latent attention; the one for YaRN is right. Everything else is vLLM's own: configuration, loading, attention,
experts, zero experts, scheduler and sampling. A kernel that a later build brings, or mends, is left alone.
"""

import os
from types import SimpleNamespace

# Read when triton is imported.
os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton.backends

NGRAM_IDS, TOPK_SOFTMAX = "_C.ngram_compute_n_gram_ids", "_moe_C.topk_softmax"
TRITON, PLAIN_ROPE = "triton's interpreter", "_C.rotary_embedding"


def compute_ngram_ids(order, tables_per_order, weights, sizes, offsets, request_starts, tokens, rows, columns, ids):
    """As `csrc/libtorch_stable/ngram_embedding_kernels.cu` says: from each token backwards, to the first negative one.

    A token that ends a sequence is stored negated, and stops its own walk too: see `eval/checkpoints/runtimes.py`.
    """
    for request, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        first, last = request_starts[request : request + 2].tolist()
        for step in range(last - first):
            history = tokens[row, : column + step + 1].tolist()[::-1]
            for i in range(order - 1):
                for j in range(tables_per_order):
                    size, total = int(sizes[i, j]), 0
                    for back, token in enumerate(history[: i + 2]):
                        if token < 0:
                            break
                        total += token * int(weights[i, j, back]) % size
                    table = i * tables_per_order + j
                    ids[first + step, table] = total % size + int(offsets[table])


def topk_softmax(chosen_weights, chosen, token_experts, logits, renormalize, bias, is_padding):
    """Experts with the highest softmax plus bias, weighted by the softmax alone. Nobody reads what padding chooses."""
    assert not renormalize
    probabilities = logits.float().softmax(dim=-1)
    chosen.copy_((probabilities + bias.float()).topk(chosen.shape[1], dim=-1).indices)
    chosen_weights.copy_(probabilities.gather(1, chosen.long()))


KERNELS = {
    NGRAM_IDS: (
        "(int order, int tables_per_order, Tensor weights, Tensor sizes, Tensor offsets, Tensor request_starts, "
        "Tensor tokens, Tensor rows, Tensor columns, Tensor(a!) ids) -> ()",
        compute_ngram_ids,
    ),
    TOPK_SOFTMAX: (
        "(Tensor(a!) weights, Tensor(b!) chosen, Tensor(c!) token_experts, Tensor logits, bool renormalize, "
        "Tensor? bias, Tensor? is_padding) -> ()",
        topk_softmax,
    ),
}
LIBRARIES = []  # a library that is dropped takes its kernels with it


def install() -> list[str]:
    """Puts stand-ins where kernels are missing; their names. Before the first import of `vllm`'s engine."""
    stood_in = []
    if "cpu" not in triton.backends.backends:
        # vLLM asks for triton-cpu by the name of its backend; interpreted kernels need no backend at all.
        triton.backends.backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))
        stood_in.append(TRITON)
    import vllm._custom_ops  # noqa: F401 (registers the kernels of this build)

    for name, (signature, kernel) in KERNELS.items():
        library, operator = name.split(".")
        if not hasattr(getattr(torch.ops, library), operator):
            fragment = torch.library.Library(library, "FRAGMENT")
            fragment.define(operator + signature)
            fragment.impl(operator, kernel, "CPU")
            LIBRARIES.append(fragment)
            stood_in.append(name)
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    if not plain_rope_is_right():
        RotaryEmbedding.forward_cpu = RotaryEmbedding.forward_native
        stood_in.append(PLAIN_ROPE)
    return stood_in


def plain_rope_is_right() -> bool:
    """Whether the kernel turns the same pair of two heads by the same quarter: `(1, 0)` to `(0, 1)`."""
    queries, key = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]])
    cosine_and_sine = torch.tensor([[0.0, 1.0]])
    torch.ops._C.rotary_embedding(torch.tensor([0]), queries, key, 2, cosine_and_sine, False)
    return queries.tolist() == [[[0.0, 1.0], [0.0, 1.0]]]
