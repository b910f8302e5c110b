# SPDX-License-Identifier: Apache-2.0
"""SGLang's own configuration class on a folder, for `tests/checkpoints/test_vllm.py`: runs in vLLM's environment.

SGLang itself needs CUDA to be imported; the file of its configuration class needs nothing but transformers, here in
the version that SGLang asks for.

.venv-vllm/bin/python tests/checkpoints/sglang_config.py FOLDER
"""

import importlib.util
import json
import sys
from pathlib import Path

# As SGLang's model reads them.
FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "moe_intermediate_size"),
    *("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts"),
    *("zero_expert_num", "zero_expert_type", "moe_topk", "routed_scaling_factor", "router_bias", "rms_norm_eps"),
    *("mla_scale_q_lora", "mla_scale_kv_lora", "vocab_size", "max_position_embeddings", "eos_token_id"),
    *("use_ngram_embedding", "ngram_embedding_m", "ngram_embedding_n", "ngram_embedding_k", "rope_theta"),
    *("architectures", "rope_scaling"),
)


def main(folder: str) -> None:
    """Prints the fields as an object, with `index_topk`: null where SGLang takes the model for a dense one."""
    package = importlib.util.find_spec("sglang").submodule_search_locations[0]
    file = Path(package, "srt", "configs", "longcat_flash.py")
    spec = importlib.util.spec_from_file_location("longcat_flash", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.LongcatFlashConfig.from_pretrained(folder)
    fields = {name: getattr(config, name) for name in FIELDS}
    print(json.dumps({**fields, "index_topk": getattr(config, "index_topk", None)}))


if __name__ == "__main__":
    main(sys.argv[1])
