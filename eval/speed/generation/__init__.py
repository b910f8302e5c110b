# SPDX-License-Identifier: Apache-2.0
"""Speed of prefill and decoding: `python -m eval.speed.generation`."""
