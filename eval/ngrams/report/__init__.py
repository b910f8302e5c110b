# SPDX-License-Identifier: Apache-2.0
"""The n-gram tables of a config and a text, compared with the paper's rules: `python -m eval.ngrams.report`."""
