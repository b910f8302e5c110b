# SPDX-License-Identifier: Apache-2.0
"""Tokenizer, chat template and tool calls of LongCat-Flash-Lite."""
