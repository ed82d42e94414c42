"""Trainable heads on fixed features."""

from scatterdp.heads.convolutional import Images
from scatterdp.heads.head import CLASSIFIERS, Head, linear_head, make_classifier
from scatterdp.heads.normalizers import Precondition, Standardize, group_normalizer
from scatterdp.heads.patch_cnn import PatchCNN

__all__ = [
    "CLASSIFIERS",
    "Head",
    "Images",
    "PatchCNN",
    "Precondition",
    "Standardize",
    "group_normalizer",
    "linear_head",
    "make_classifier",
]
