# SPDX-License-Identifier: Apache-2.0
"""A warning, before TRL and PEFT are imported, when training runs on versions that it was not tested with."""

import warnings
from importlib.metadata import version

TRANSFORMERS = "5.23"


def warn_of_untested_versions() -> None:
    """Warn if the installed transformers is not the one that TRL, PEFT and these scripts were tested with."""
    installed = version("transformers")
    if not f"{installed}.".startswith(f"{TRANSFORMERS}."):
        warnings.warn(
            f"training was tested with transformers {TRANSFORMERS}, TRL 1.16 and PEFT 0.21, and transformers "
            f"{installed} is installed (5.24's own adapter methods ask for PEFT 0.22, which does not exist yet): "
            f'if training fails, run `pip install "transformers=={TRANSFORMERS}.*"`',
            stacklevel=3,
        )


__all__ = ["warn_of_untested_versions"]
