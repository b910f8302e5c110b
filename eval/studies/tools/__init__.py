# SPDX-License-Identifier: Apache-2.0
"""A small model trained to call two tools: `python -m eval.studies.tools`."""
