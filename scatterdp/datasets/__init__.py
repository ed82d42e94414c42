"""Data sets: published ones by name, fetched and checked, and a person's own from a folder or an ``.npz``."""

from scatterdp.datasets.dataset import Dataset
from scatterdp.datasets.load import DATASET_NAMES, load_dataset

__all__ = ["DATASET_NAMES", "Dataset", "load_dataset"]
