# SPDX-License-Identifier: Apache-2.0
"""What is in the n-gram tables and what reads them."""
