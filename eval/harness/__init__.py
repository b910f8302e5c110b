# SPDX-License-Identifier: Apache-2.0
"""Benchmarks through lm-eval: `python -m eval.harness`."""
