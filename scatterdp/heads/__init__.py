"""Trainable heads on fixed features."""

from scatterdp.heads.head import CLASSIFIERS, Head, linear_head, make_classifier
from scatterdp.heads.normalizers import Precondition, Standardize, group_normalizer

__all__ = ["CLASSIFIERS", "Head", "Precondition", "Standardize", "group_normalizer", "linear_head", "make_classifier"]
