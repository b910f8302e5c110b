# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with tables of few bits, made by the command."""

from eval.checkpoints import quantize as quantize_tables


def convert(source, target, *options):
    quantize_tables.main(
        quantize_tables.make_parser().parse_args(["--model", str(source), "--output", str(target), *map(str, options)])
    )
