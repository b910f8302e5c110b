# SPDX-License-Identifier: Apache-2.0
"""A folder's tokenizer without trust in its code and without this package: runs in any environment with transformers.

python tests/checkpoints/untrusted_tokenizer.py FOLDER
"""

import json
import sys

import transformers
from transformers import AutoTokenizer

MESSAGES = [{"role": "user", "content": "What does function 3 do?"}]


def main(folder: str) -> None:
    """Prints `version`, and `ids` of a chat's prompt, as it is read where the question of trust is left open too."""
    for trust in ({"trust_remote_code": False}, {}):
        tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
        ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True)["input_ids"]
        print(json.dumps({"version": transformers.__version__, "ids": ids}))


if __name__ == "__main__":
    main(sys.argv[1])
