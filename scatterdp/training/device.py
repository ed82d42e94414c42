"""Which device to compute on."""

from __future__ import annotations

import torch

from scatterdp.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU. On CUDA products are then computed in full single precision.

    Raises:
        ConfigError: an unknown device, or CUDA where there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={name}: this machine shows {torch.cuda.device_count()} CUDA devices; use --device=cpu"
        )
    if device.type == "cuda":
        # TensorFloat-32 keeps 10 bits: an example's clipped gradient would exceed its bound by more than rounding.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device
