# SPDX-License-Identifier: Apache-2.0
"""Experiments that train models and report what came out."""
