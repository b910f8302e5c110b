# SPDX-License-Identifier: Apache-2.0
"""The demo, `python -m training.demo`: train, package and ask a small model."""
