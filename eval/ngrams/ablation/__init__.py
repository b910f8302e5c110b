# SPDX-License-Identifier: Apache-2.0
"""What a model loses without its n-gram tables: `python -m eval.ngrams.ablation`."""
