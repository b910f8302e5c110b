# SPDX-License-Identifier: Apache-2.0
"""A model's n-grams compared with the paper's rules: `python -m eval.ngrams.report`."""
