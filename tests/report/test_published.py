"""Published results name their source and data that are known here."""

from __future__ import annotations

from scatterdp.datasets import DATASET_NAMES
from scatterdp.report.published import PUBLISHED_RESULTS, SOURCES, published_on


def test_every_result_has_a_source_and_a_data_set():
    assert {result.source for result in PUBLISHED_RESULTS} == set(SOURCES)
    assert {result.dataset for result in PUBLISHED_RESULTS} <= set(DATASET_NAMES)
    assert all(e > 0 and 0 < a < 1 for result in PUBLISHED_RESULTS for e, a in result.points.items())


def test_the_table_of_the_paper():
    """Tramèr & Boneh 2021 at ε = 3: end to end, ScatterNet + linear, ScatterNet + CNN."""
    methods = ("end-to-end CNN", "ScatterNet + linear", "ScatterNet + CNN")
    table = {"mnist": (98.1, 98.7, 98.7), "fmnist": (86.0, 89.7, 89.0), "cifar10": (59.2, 67.0, 69.3)}
    for dataset, accuracies in table.items():
        found = {result.method: result.points for result in published_on(dataset)}
        assert tuple(round(100 * found[method][3.0], 1) for method in methods) == accuracies


def test_other_data_have_none():
    assert published_on("digits") == []
