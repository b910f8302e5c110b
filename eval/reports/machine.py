# SPDX-License-Identifier: Apache-2.0
"""What a timing depends on besides the code: date, versions, processor, threads and the load of the machine."""

import os
import platform
from datetime import datetime
from pathlib import Path

import torch
import transformers

CPU_INFO = Path("/proc/cpuinfo")


def processor_name() -> str:
    """Model name of the CPU from the kernel; from Python where there is no `/proc/cpuinfo`."""
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def describe_machine() -> dict:
    """Date, versions, processor, cores and torch threads."""
    return {
        "date": datetime.now().isoformat(timespec="minutes"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "cpu": processor_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def load_average() -> list[float]:
    """Processes running on average over the last 1, 5 and 15 minutes; each thread of this program counts as one."""
    return [round(load, 2) for load in os.getloadavg()]


def machine_sentence(machine: dict, *loads: list[float]) -> str:
    """[`describe_machine`] for the head of a report, with the load at the start and, if it was taken, at the end."""
    load = " at the start, ".join(map(str, loads)) + (" at the end" if len(loads) > 1 else "")
    return (
        f"{machine['date']}, torch {machine['torch']}, transformers {machine['transformers']}, {machine['cpu']} "
        f"({machine['cpu_capability']}), cores: {machine['cores']}, threads: {machine['threads']}. Load average "
        f"(1, 5, 15 minutes): {load}."
    )


__all__ = ["describe_machine", "load_average", "machine_sentence", "processor_name"]
