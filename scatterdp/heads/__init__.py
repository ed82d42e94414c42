"""Small trainable heads on fixed features."""

from scatterdp.heads.linear import LinearHead
from scatterdp.heads.normalizers import Standardize, group_normalizer

__all__ = ["LinearHead", "Standardize", "group_normalizer"]
