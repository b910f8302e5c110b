# SPDX-License-Identifier: Apache-2.0
"""N-gram embeddings against experts at equal parameters: `python -m eval.studies.scaling`."""
