"""scikit-learn estimators whose fit is differentially private, each with its certificate.

| estimator | what it fits |
|---|---|
| :class:`DPClassifier` | a linear classifier of features, or of images through fixed extractors |

Importing them costs no torch; fitting does.
"""

from scatterdp.estimators.classifier import DPClassifier

__all__ = ["DPClassifier"]
