"""scikit-learn estimators whose fit is differentially private, each with its certificate.

| name | what |
|---|---|
| :class:`DPClassifier` | fits a linear classifier of features, or of images through fixed extractors |
| :class:`DPStandardScaler` | fits means and variances of features |
| :class:`DPRandomSearch` | fits the best of a random number of candidates |
| :class:`NoisyAccuracy` | a scorer for ``GridSearchCV`` |
| :func:`composed_certificate` | what a pipeline's fits cost together |
| :func:`tuning_certificate` | what a grid search cost |

Importing them costs no torch; fitting does.
"""

from scatterdp.estimators.classifier import DPClassifier
from scatterdp.estimators.composition import composed_certificate
from scatterdp.estimators.random_search import DPRandomSearch
from scatterdp.estimators.scaler import DPStandardScaler
from scatterdp.estimators.tuning import NoisyAccuracy, tuning_certificate

__all__ = [
    "DPClassifier",
    "DPRandomSearch",
    "DPStandardScaler",
    "NoisyAccuracy",
    "composed_certificate",
    "tuning_certificate",
]
