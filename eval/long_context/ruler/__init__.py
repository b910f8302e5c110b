# SPDX-License-Identifier: Apache-2.0
"""RULER's synthetic tasks, generated without a download."""
