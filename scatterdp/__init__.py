"""Differentially private learning on fixed features: load → extract → calibrate → fit → certificate.

The names below are imported on first use, so that ``from scatterdp import get_noise_mul`` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scatterdp.cache import FeatureCache, extract_features
    from scatterdp.datasets import Dataset, load_dataset
    from scatterdp.engines import per_example_gradients
    from scatterdp.estimators import (
        DPClassifier,
        DPRandomSearch,
        DPStandardScaler,
        NoisyAccuracy,
        composed_certificate,
        tuning_certificate,
    )
    from scatterdp.extractors import make_extractor
    from scatterdp.privacy.accounting import epsilon_of
    from scatterdp.privacy.calibration import calibrate_noise_multiplier
    from scatterdp.privacy.ledger import Ledger, LedgerEntry
    from scatterdp.privacy.randomness import RandomKey
    from scatterdp.privacy.renyi import ORDERS, get_epsilon, get_noise_mul, get_renyi_divergence
    from scatterdp.training.fit import fit
    from scatterdp.training.plan import TrainingPlan
    from scatterdp.training.privacy_engine import PrivacyEngine
    from scatterdp.training.result import FitResult

_HOMES = {
    "scatterdp.cache": ("FeatureCache", "extract_features"),
    "scatterdp.datasets": ("Dataset", "load_dataset"),
    "scatterdp.engines": ("per_example_gradients",),
    "scatterdp.estimators": (
        "DPClassifier",
        "DPRandomSearch",
        "DPStandardScaler",
        "NoisyAccuracy",
        "composed_certificate",
        "tuning_certificate",
    ),
    "scatterdp.extractors": ("make_extractor",),
    "scatterdp.privacy.accounting": ("epsilon_of",),
    "scatterdp.privacy.calibration": ("calibrate_noise_multiplier",),
    "scatterdp.privacy.ledger": ("Ledger", "LedgerEntry"),
    "scatterdp.privacy.randomness": ("RandomKey",),
    "scatterdp.privacy.renyi": ("ORDERS", "get_epsilon", "get_noise_mul", "get_renyi_divergence"),
    "scatterdp.training.fit": ("fit",),
    "scatterdp.training.plan": ("TrainingPlan",),
    "scatterdp.training.privacy_engine": ("PrivacyEngine",),
    "scatterdp.training.result": ("FitResult",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ORDERS",
    "DPClassifier",
    "DPRandomSearch",
    "DPStandardScaler",
    "Dataset",
    "FeatureCache",
    "FitResult",
    "Ledger",
    "LedgerEntry",
    "NoisyAccuracy",
    "PrivacyEngine",
    "RandomKey",
    "TrainingPlan",
    "calibrate_noise_multiplier",
    "composed_certificate",
    "epsilon_of",
    "extract_features",
    "fit",
    "get_epsilon",
    "get_noise_mul",
    "get_renyi_divergence",
    "load_dataset",
    "make_extractor",
    "per_example_gradients",
    "tuning_certificate",
]


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'scatterdp' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
