# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: loaded for evaluation, verified, counted, quantized, merged with changed rows."""
