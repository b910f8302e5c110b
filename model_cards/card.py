# SPDX-License-Identifier: Apache-2.0
"""The model card: facts read off the model, numbers read off a report, put into `card_template.md`."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

TEMPLATE = Path(__file__).with_name("card_template.md")
TAGS = ["longcat", "mixture-of-experts", "custom_code"]


def render_card(model: Any, report: Path | None = None, license: str | None = None) -> str:
    """Return the text of the card, front matter included.

    Args:
        model (`LongCatLiteForCausalLM`): The model that the card is about.
        report (`Path`, *optional*):
            JSON file. Of its keys the card uses `training_data` and `training_steps`, and as evaluation results
            `heldout_loss_before` and `heldout_loss_after`.

        license (`str`, *optional*):
            Licence of the weights, as the Hub names it; for those who made them to say, left out if not given.

    Raises:
        `ValueError`: The report lacks one of these keys.
    """
    numbers = None if report is None else read_report(report)
    tags = [*TAGS, "n-gram-embedding"] if model.config.use_ngram_embedding else TAGS
    metadata = ModelCardData(license=license, library_name="transformers", pipeline_tag="text-generation", tags=tags)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(p.numel() for name, p in model.named_parameters() if ".embedders." in name)
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        config=model.config,
        parameters=f"{parameters / 1e6:,.1f} M",
        table_share=f"{100 * tables / parameters:.0f} %",
        report=numbers,
    )
    return str(card)


def read_report(report: Path) -> dict[str, Any]:
    """The report's numbers; missing ones are named."""
    numbers = json.loads(report.read_text(encoding="utf-8"))
    needed = ("training_data", "training_steps", "heldout_loss_before", "heldout_loss_after")
    missing = [key for key in needed if key not in numbers]
    if missing:
        raise ValueError(f"`report` {report} lacks {', '.join(missing)}")
    return numbers
