# SPDX-License-Identifier: Apache-2.0
"""Context extension of a small model by YaRN, four ways: `python -m eval.studies.yarn`."""
