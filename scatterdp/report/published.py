"""Published accuracies on the public test sets, to hold runs against: what others report, each with its source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """One method's result.

    Args:
        dataset: name in :data:`scatterdp.datasets.DATASET_NAMES`.
        method: in a few words.
        points: ε → test accuracy in [0, 1], at δ = 1e-5.
        source: a key of :data:`SOURCES`.
    """

    dataset: str
    method: str
    points: dict[float, float]
    source: str


SOURCES = {
    "Tramèr & Boneh 2021": (
        "Tramèr & Boneh, “Differentially Private Learning Needs Better Features (Or Much More Data)”, ICLR 2021, arXiv 2011.11660, "
        "at δ = 1e-5"
    ),
    "Papernot et al. 2021": (
        "Papernot, Thakurta, Song, Chien & Erlingsson, “Tempered Sigmoid Activations for Deep Learning with Differential Privacy”, "
        "AAAI 2021, arXiv 2007.14191"
    ),
    "CMU 2021": (
        "Carnegie Mellon University 2021, an experiment with Opacus and Juneberry: at each ε the best by test accuracy of 36 runs "
        "of two residual networks"
    ),
}
"""Short name → citation."""

_TRAMER = "Tramèr & Boneh 2021"


def _at_three(dataset: str, end_to_end: float, linear: float, cnn: float) -> tuple[PublishedResult, ...]:
    return (
        PublishedResult(dataset=dataset, method="ScatterNet + CNN", points={3.0: cnn}, source=_TRAMER),
        PublishedResult(dataset=dataset, method="ScatterNet + linear", points={3.0: linear}, source=_TRAMER),
        PublishedResult(dataset=dataset, method="end-to-end CNN", points={3.0: end_to_end}, source=_TRAMER),
    )


PUBLISHED_RESULTS: tuple[PublishedResult, ...] = (
    *_at_three("mnist", 0.981, 0.987, 0.987),
    *_at_three("fmnist", 0.860, 0.897, 0.890),
    *_at_three("cifar10", 0.592, 0.670, 0.693),
    PublishedResult(
        dataset="cifar10", method="tempered-sigmoid CNN", points={7.53: 0.662}, source="Papernot et al. 2021"
    ),
    PublishedResult(
        dataset="cifar10",
        method="residual networks",
        points={2.0: 0.4817, 5.0: 0.5209, 10.0: 0.5458},
        source="CMU 2021",
    ),
)


def published_on(dataset: str) -> list[PublishedResult]:
    """What others report on a published set; nothing for other data."""
    return [result for result in PUBLISHED_RESULTS if result.dataset == dataset]
