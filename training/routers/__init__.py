# SPDX-License-Identifier: Apache-2.0
"""Balance of experts: selection bias, balance loss, counts."""
