# SPDX-License-Identifier: Apache-2.0
"""Adapters whose folder also holds changed n-gram rows, `ngram_row_delta.safetensors`, as training saves them.

An adapter without its rows is another model, so they are loaded wherever a folder is loaded as a whole:

    AutoModelForCausalLM.from_pretrained(folder), model.load_adapter(folder)      transformers calls our methods
    AutoPeftModelForCausalLM.from_pretrained(folder)                              PEFT does not; see `_rows_for_peft`

`PeftModel.from_pretrained(model, folder)` expects the base from its caller; it only causes a warning.
"""

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, find_adapter_config_file, is_peft_available, logging

from .checkpoint_files import HUB_ARGUMENTS, find_file
from .ngram_row_files import ROW_DELTA_FILE

logger = logging.get_logger(__name__)


def explained(method: Callable) -> Callable:
    """A method of transformers whose error, if it wants a newer PEFT than exists, names what works."""

    @functools.wraps(method)
    def explaining(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except ValueError as error:
            if "version of PEFT" not in str(error):
                raise
            raise ValueError(
                f"`model.{method.__name__}` of this transformers wants a newer PEFT than is installed ({error}). Use "
                "PEFT's own classes, which work with this one: `peft.get_peft_model(model, config)` for a new "
                "adapter, `peft.PeftModel.from_pretrained(model, folder)` for a saved one; or transformers 5.23."
            ) from error

    return explaining


class AdapterRowsMixin(PreTrainedModel):
    """`load_adapter`, and rows of an adapter that PEFT loads."""

    load_ngram_rows: Callable[..., None]
    loaded_row_deltas: tuple[str, ...] = ()  # files, in the order of loading

    # transformers 5.24 runs these only where PEFT 0.22 is installed, which does not exist yet.
    add_adapter = explained(PreTrainedModel.add_adapter)
    set_adapter = explained(PreTrainedModel.set_adapter)
    disable_adapters = explained(PreTrainedModel.disable_adapters)
    enable_adapters = explained(PreTrainedModel.enable_adapters)
    active_adapters = explained(PreTrainedModel.active_adapters)
    get_adapter_state_dict = explained(PreTrainedModel.get_adapter_state_dict)
    delete_adapter = explained(PreTrainedModel.delete_adapter)

    def load_adapter(self, peft_model_id: str | None = None, *args, **kwargs):
        """As [`PreTrainedModel.load_adapter`]; changed n-gram rows in the adapter's folder are loaded with it."""
        loading_info = super().load_adapter(peft_model_id, *args, **kwargs)
        if peft_model_id is not None:
            load_config, adapter_kwargs = kwargs.get("load_config"), kwargs.get("adapter_kwargs") or {}
            download = {} if load_config is None else load_config.download_kwargs
            delta = rows_of_adapter(peft_model_id, {**download, **kwargs, **adapter_kwargs})
            if delta is not None:
                self.load_ngram_rows(delta)
        return loading_info

    def __setattr__(self, name: str, value: Any):
        super().__setattr__(name, value)
        if name == "peft_config":  # PEFT sets it when its layers are in place, and calls no method of ours
            self._rows_for_peft()

    def _rows_for_peft(self):
        folder, arguments, is_whole = adapter_that_peft_loads()
        delta = None if folder is None else rows_of_adapter(folder, arguments)
        if delta is None or os.path.realpath(delta) in self.loaded_row_deltas:
            return
        if is_whole:
            self.load_ngram_rows(delta)
            return
        logger.warning(
            f"{folder} holds changed n-gram rows next to the adapter, {ROW_DELTA_FILE}, which PEFT does not load: "
            f"without them this is another model. Call `model.load_ngram_rows({str(folder)!r})` before "
            "`PeftModel.from_pretrained`, or load the folder with `AutoModelForCausalLM.from_pretrained`."
        )


def rows_of_adapter(adapter: str | os.PathLike, arguments: Mapping[str, Any]) -> str | None:
    """The file of changed rows in an adapter's folder or repository; `None` if there is none."""
    hub_arguments = {name: value for name, value in arguments.items() if name in HUB_ARGUMENTS and value is not None}
    return find_file(adapter, ROW_DELTA_FILE, hub_arguments)


def base_of_adapter(checkpoint: str | os.PathLike, hub_arguments: Mapping[str, Any]) -> str | os.PathLike:
    """The base model of an adapter's folder or repository, from its `adapter_config.json`; otherwise itself."""
    if (Path(checkpoint) / (hub_arguments.get("subfolder") or "") / CONFIG_NAME).exists() or not is_peft_available():
        return checkpoint  # transformers too regards an adapter next to a model's config as part of that model
    arguments = {name: value for name, value in hub_arguments.items() if value is not None}
    path = find_adapter_config_file(str(checkpoint), **arguments)
    if path is None:
        return checkpoint
    return json.loads(Path(path).read_text(encoding="utf-8")).get("base_model_name_or_path") or checkpoint


def adapter_that_peft_loads() -> tuple[Any, dict[str, Any], bool]:
    """The `model_id` of the running `PeftModel.from_pretrained`, its options, and whether an auto class called it.

    PEFT passes none of them on, so they are read from its frame. `None` if there is no such frame: no rows are loaded.
    """
    folder, arguments, frame = None, {}, sys._getframe()
    while (caller := frame.f_back) is not None:
        frame, module = caller, caller.f_globals.get("__name__")
        if module == "peft.peft_model" and frame.f_code.co_name == "from_pretrained" and folder is None:
            found = frame.f_locals
            folder, arguments = found.get("model_id"), {**found, **found.get("kwargs", {})}
        elif module == "peft.auto" and folder is not None:
            return folder, arguments, True
    return folder, arguments, False


__all__ = ["AdapterRowsMixin", "base_of_adapter"]
