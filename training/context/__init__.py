# SPDX-License-Identifier: Apache-2.0
"""Context extension: stages, rows and sequence shards."""
