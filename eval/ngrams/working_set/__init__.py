# SPDX-License-Identifier: Apache-2.0
"""Which table rows real text reads: `python -m eval.ngrams.working_set`."""
