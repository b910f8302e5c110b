# SPDX-License-Identifier: Apache-2.0
"""N-gram tables trained by rows."""
