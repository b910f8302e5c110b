# SPDX-License-Identifier: Apache-2.0
"""A README.md that somebody wrote stays, whatever the trainer would write in its place.

TRL writes a card into the output folder with every checkpoint and every push, and PEFT edits the one that it finds in
the folder of an adapter. Both are drafts. A card of `model_cards.write_card`, or one written by hand, is none: the
trainer leaves it as it is, and pushes it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import Trainer
from transformers.utils import logging

from training.folder_replacement import write_beside

logger = logging.get_logger(__name__)

CARD = "README.md"
DRAFT_TAG = "generated_from_trainer"  # of transformers and TRL; PEFT takes it out again
DRAFT_TEXTS = (
    "It has been trained using [TRL](https://github.com/huggingface/trl).",
    "[More Information Needed]",  # the gaps of the Hub's template, which is PEFT's
)


def is_draft(card: Path) -> bool:
    """Whether a library wrote this card, and nobody has gone over it."""
    read = ModelCard.load(card, ignore_metadata_errors=True)
    return DRAFT_TAG in (read.data.tags or []) or any(text in read.text for text in DRAFT_TEXTS)


@contextmanager
def card_kept(folder: Path) -> Iterator[None]:
    """Gives back the card in `folder` as it was before, if it is no draft."""
    card = folder / CARD
    before = card.read_bytes() if card.is_file() and not is_draft(card) else None
    yield
    if before is not None and card.read_bytes() != before:
        write_beside(card, before)


class KeptCardTrainer(Trainer):
    """Stands before a trainer of TRL in the bases of a class."""

    def create_model_card(self, *args, **kwargs) -> None:
        """As the trainer's own, where the output folder has no card but a draft."""
        card = Path(str(self.args.output_dir)) / CARD
        if not card.is_file() or is_draft(card):
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            logger.warning_once(
                f"{card} is kept. If these weights are new to it, its figures are not theirs: evaluate them and write "
                "it again with `python -m model_cards.write_card`."
            )

    def _save(self, output_dir=None, state_dict=None) -> None:
        with card_kept(Path(str(output_dir or self.args.output_dir))):
            super()._save(output_dir, state_dict)


__all__ = ["KeptCardTrainer", "is_draft"]
