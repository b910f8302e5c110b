# SPDX-License-Identifier: Apache-2.0
"""How many drafts of the draft head are accepted, and the time that saves: `python -m eval.drafts`."""
