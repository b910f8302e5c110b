# SPDX-License-Identifier: Apache-2.0
"""Speed and memory compared with those of an earlier commit: `python -m eval.speed.commits`."""
