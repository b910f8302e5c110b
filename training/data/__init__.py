# SPDX-License-Identifier: Apache-2.0
"""Rows to train on: read from files, or made from the documentation of Python."""
