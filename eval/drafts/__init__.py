# SPDX-License-Identifier: Apache-2.0
"""What the draft head's drafts are worth: `python -m eval.drafts`."""
