# SPDX-License-Identifier: Apache-2.0
"""How much of its context a model uses: `python -m eval.long_context`."""
