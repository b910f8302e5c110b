# SPDX-License-Identifier: Apache-2.0
"""What fits on a machine for inference: `python -m eval.fit`."""
