# SPDX-License-Identifier: Apache-2.0
"""Speed and memory compared with an earlier commit: `python -m eval.speed.commits`."""
