# SPDX-License-Identifier: Apache-2.0
"""Losses on held-out text, answers and positions: `python -m eval.losses`."""
