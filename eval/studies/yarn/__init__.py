# SPDX-License-Identifier: Apache-2.0
"""Context extension by YaRN, four ways: `python -m eval.studies.yarn`."""
