# SPDX-License-Identifier: Apache-2.0
"""What accelerate does with its files where there is a GPU, without one.

On a CPU accelerate takes DDP whatever its file says. Here the file goes through accelerate's own launcher to what it
tells the processes, and from there to the function that splits a model.
"""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from accelerate.utils.launch import prepare_multi_gpu_env


def launch_environment(path: Path) -> dict[str, str]:
    """The variables that `accelerate launch --config_file PATH` sets."""
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    arguments, *_ = _validate_launch_command(arguments)
    return {k: v for k, v in prepare_multi_gpu_env(arguments).items() if k.startswith(("ACCELERATE_", "FSDP_"))}


def prepare(model: torch.nn.Module, path: Path) -> torch.nn.Module:
    """The model, split as the file says, in the precision that it has."""
    for name in [name for name in os.environ if name.startswith("FSDP_")]:
        del os.environ[name]
    os.environ.update({k: v for k, v in launch_environment(path).items() if k.startswith("FSDP_")})
    accelerator: Any = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin()),
        mixed_precision="no",
        is_main_process=True,
        device=torch.device("cpu"),
    )
    return fsdp2_prepare_model(accelerator, model)
