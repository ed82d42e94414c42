"""Pre-train on public images, freeze the first layers, fine-tune the rest with DP on private images (Kurakin et al. 2022, arXiv 2201.12328)."""

from scatterdp.finetuning.config import FinetuneConfig
from scatterdp.finetuning.running import run

__all__ = ["FinetuneConfig", "run"]
