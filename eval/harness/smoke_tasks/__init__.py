# SPDX-License-Identifier: Apache-2.0
"""The smoke suite's tasks for lm-eval."""
