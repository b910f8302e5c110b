# SPDX-License-Identifier: Apache-2.0
"""One training run: arguments, trainers, curves and what it leaves in its folder."""
