# SPDX-License-Identifier: Apache-2.0
"""The demo: train, package and ask a small model: `python -m training.demo`."""
