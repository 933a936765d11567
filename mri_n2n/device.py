"""Where and in which precision a network runs."""

from __future__ import annotations

import os
import platform
from contextlib import nullcontext
from pathlib import Path

import torch

from mri_n2n.errors import UserError


def choose_device(device: str) -> torch.device:
    """ "auto" is CUDA when there is one, else the CPU; of several GPUs the one of this process, where torchrun started it. Errors: UserError."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    own = os.environ.get("LOCAL_RANK", "")
    if device == "cuda" and torch.cuda.is_available() and own.isdecimal():
        if int(own) >= torch.cuda.device_count():
            raise UserError(
                f"process {own} of this machine has no GPU of its own; there are {torch.cuda.device_count()}"
            )
        device = f"cuda:{own}"
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return chosen


def machine(device: torch.device) -> dict:
    """What of a machine decides how sums are rounded."""
    return {
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "instructions": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def choose_precision(precision: str, device: torch.device) -> str:
    """ "auto" is bfloat16 where the hardware multiplies it (CUDA, AMX, AVX-512 BF16): elsewhere it is emulated and slow."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "bfloat16" if "amx_bf16" in flags or "avx512_bf16" in flags else "float32"


def autocast(device: torch.device, precision: str):
    """bfloat16 for the convolutions; complex numbers and Fourier transforms stay in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()
