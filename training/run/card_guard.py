# SPDX-License-Identifier: Apache-2.0
"""Keeps a README.md that somebody wrote, whatever the libraries would write in its place.

TRL writes a card to the output folder with every checkpoint and every push, and PEFT edits the card that it finds in
the folder of an adapter. Both are drafts. A card from `model_cards.write_card`, or one written by hand, is not: the
trainer leaves it unchanged and pushes it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import Trainer
from transformers.utils import logging

from modeling_longcat_lite.whole_files import write_whole

logger = logging.get_logger(__name__)

CARD = "README.md"
DRAFT_TAG = "generated_from_trainer"  # written by transformers and TRL; PEFT removes it again
DRAFT_TEXTS = (
    "It has been trained using [TRL](https://github.com/huggingface/trl).",
    "[More Information Needed]",  # the gaps of the Hub's template, which PEFT fills in
)


def is_draft(card: Path) -> bool:
    """Whether a library wrote this card and nobody has edited it."""
    read = ModelCard.load(card, ignore_metadata_errors=True)
    return DRAFT_TAG in (read.data.tags or []) or any(text in read.text for text in DRAFT_TEXTS)


@contextmanager
def card_kept(folder: Path) -> Iterator[None]:
    """Restores the card in `folder` when the block ends, unless it is a draft."""
    card = folder / CARD
    before = card.read_bytes() if card.is_file() and not is_draft(card) else None
    yield
    if before is not None and card.read_bytes() != before:
        write_whole(card, before)


class CardGuardMixin(Trainer):
    """Comes before a trainer of TRL in the bases of a class."""

    def create_model_card(self, *args, **kwargs) -> None:
        """As TRL's, but only where the output folder has no card, or a draft."""
        card = Path(str(self.args.output_dir)) / CARD
        if not card.is_file() or is_draft(card):
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            logger.warning_once(
                f"{card} is kept. If the weights have changed since it was written, its figures do not apply to "
                "them: evaluate the model and update the card with `python -m model_cards.write_card`."
            )

    def save_model(self, output_dir=None, _internal_call=False) -> None:
        if not self.args.should_save:
            super().save_model(output_dir, _internal_call)
            return
        with card_kept(Path(str(output_dir or self.args.output_dir))):
            super().save_model(output_dir, _internal_call)


__all__ = ["CardGuardMixin"]
