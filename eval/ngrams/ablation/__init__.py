# SPDX-License-Identifier: Apache-2.0
"""What the tables buy: `python -m eval.ngrams.ablation`."""
