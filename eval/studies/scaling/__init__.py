# SPDX-License-Identifier: Apache-2.0
"""N-gram embeddings compared with experts at equal parameters: `python -m eval.studies.scaling`."""
