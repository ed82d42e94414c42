"""Which device to compute on."""

from __future__ import annotations

import os

import torch

from scatterdp.errors import ConfigError
from scatterdp.processor import cpu_fingerprint
from scatterdp.ranks import several


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU. On CUDA products are then computed in full single precision.

    Of several processes (``torchrun``) on a machine, each takes the CUDA device of its number there.

    Raises:
        ConfigError: an unknown device, CUDA where there is none or not enough, or one device for several processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and several():
        if device.index is not None:
            raise ConfigError(f"device={name}: each of several processes takes a device of its own; use --device=cuda")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        name = str(device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={name}: this machine shows {torch.cuda.device_count()} CUDA devices; use --device=cpu"
        )
    if device.type == "cuda":
        # TensorFloat-32 keeps 10 bits: features would differ from the CPU's. Private sums switch it off themselves.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device


def processor_of(device: torch.device | str) -> str:
    """What torch computes on, as far as its rounding depends on it: the CPU and what torch uses of it and, on CUDA, the device's model."""
    cpu = f"{cpu_fingerprint()} ({torch.backends.cpu.get_cpu_capability()})"
    device = torch.device(device)
    return f"{torch.cuda.get_device_name(device)}, {cpu}" if device.type == "cuda" else cpu
