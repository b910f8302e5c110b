# SPDX-License-Identifier: Apache-2.0
"""What the training scripts share: options, trainers, and what a run writes."""
