# SPDX-License-Identifier: Apache-2.0
"""What fits on a machine for training: `python -m eval.fit.training`."""
