# SPDX-License-Identifier: Apache-2.0
"""What the n-gram tables hold, which rows text reads, and what they are worth."""
