# SPDX-License-Identifier: Apache-2.0
"""`transformers serve` with this architecture in it: an OpenAI-compatible server for a packaged or trained model.

    python -m training.serve outputs/demo/package --device cpu --port 8000

Everything behind the name is an option of `transformers serve`. Its own command looks for a model's class among the
attributes of the `transformers` module alone, with `--trust-remote-code` too, and so finds no class of any package or
of the model's folder. This puts the class there and runs the command. `--continuous-batching` is refused: the paged
cache fits neither latents nor n-grams.
"""

import os
import sys

ARCHITECTURES = ("LongcatFlashNgramForCausalLM", "LongCatLiteForCausalLM")  # as `config.json` may name the class
REFUSED = "--continuous-batching"


def main(arguments: list[str]) -> None:
    if REFUSED in arguments:
        raise ValueError(
            f"`{REFUSED}` is not supported: the paged cache fits neither latents nor n-grams. Leave it out; without "
            "it requests are answered one after the other"
        )
    import transformers
    from transformers.cli.transformers import app

    from modeling_longcat_lite import LongCatLiteForCausalLM

    for name in ARCHITECTURES:
        setattr(transformers, name, LongCatLiteForCausalLM)
    app(["serve", *arguments])


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(sys.argv[1:])
