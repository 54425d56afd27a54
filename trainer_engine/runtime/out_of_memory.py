"""Telling that memory ran out, and how much of it there was."""

from __future__ import annotations

import torch


def ran_out_of_memory(error: Exception) -> bool:
    """Whether it was memory that was missing. PyTorch has a class of its own for that on GPUs alone."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def out_of_memory_numbers(device: torch.device) -> str:
    """How full the device is, for people."""
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device)
    return f" {free / 1e9:.2f} of {total / 1e9:.2f} GB were free; the most that was in use is {peak / 1e9:.2f} GB."
