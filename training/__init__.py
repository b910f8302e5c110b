# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning scripts and recipes, run from a checkout: `python -m training.sft`."""
