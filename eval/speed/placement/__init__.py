# SPDX-License-Identifier: Apache-2.0
"""What tables in host memory or on disk cost: `python -m eval.speed.placement`."""
