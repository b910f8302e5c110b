# SPDX-License-Identifier: Apache-2.0
"""Model cards and Hub folders, run from a checkout: `python -m model_cards.build_hub_repo`."""
