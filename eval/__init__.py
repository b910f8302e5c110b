# SPDX-License-Identifier: Apache-2.0
"""Reports and benchmarks, run from a checkout: `python -m eval.checkpoints.parameters`."""
