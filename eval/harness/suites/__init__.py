# SPDX-License-Identifier: Apache-2.0
"""The suites: each file and each folder here defines `SUITE`. `../adding_a_suite.md` shows how to add one."""
