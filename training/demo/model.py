# SPDX-License-Identifier: Apache-2.0
"""What the demo and the studies share: the shape of a small model, saving it untrained, and running stages."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# N-gram tables hold just under half of the parameters; their ratio is far from an integer (paper, section 3.2.2).
MODEL: dict[str, Any] = {
    "hidden_size": 192,
    "num_layers": 2,
    "num_attention_heads": 4,
    "ffn_hidden_size": 384,
    "expert_ffn_hidden_size": 96,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "zero_expert_num": 2,
    "moe_topk": 2,
    "routed_scaling_factor": 1.0,
    "emb_neighbor_num": 4,
    "emb_split_num": 2,
    "ngram_vocab_size_ratio": 5.37,
    "embedding_amplification": "layer_norm",
    "num_nextn_predict_layers": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "max_position_embeddings": 2048,
}


def set_environment(output: Path) -> None:
    """Set what libraries read when they are imported: no downloads, and caches next to the other files of the run."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_CACHE"] = str(output.resolve() / "cache")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Such small steps gain little from a second thread, and are ten times slower if another process uses the core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@contextmanager
def stage(name, seconds):
    """Announce a stage and time it."""
    from rich.console import Console

    Console().rule(f"[bold]{name}", align="left")
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)


def save_untrained(folder, tokenizer, shape, seed):
    """Save a tokenizer with a freshly initialised model of `shape` (configuration keys) for it."""
    from transformers import set_seed

    from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM

    set_seed(seed)
    model = LongCatLiteForCausalLM(
        LongCatLiteConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **shape,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters())
    tables = sum(p.numel() for name, p in model.named_parameters() if ".embedders." in name)
    print(f"{parameters / 1e6:.2f} M parameters, of which {tables / 1e6:.2f} M in n-gram tables")


def run_module(module: str, *arguments: str | Path) -> None:
    """`python -m module` with these arguments."""
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


__all__ = ["MODEL", "run_module", "save_untrained", "set_environment", "stage"]
