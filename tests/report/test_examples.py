"""Mistakes and images: of public test sets alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from scatterdp.datasets import Dataset, load_dataset
from scatterdp.report.examples import (
    MOST_CLASSES,
    PublicImages,
    confusion_matrix,
    most_confused,
    plot_confusion,
    plot_example,
    plot_misclassified,
)
from scatterdp.report.runs import Run, find_runs


@pytest.fixture(scope="module")
def run(finished_runs) -> Run:
    return find_runs([finished_runs / "seed0"]).runs[0]


@pytest.fixture(scope="module")
def own(finished_runs) -> Run:
    return find_runs([finished_runs / "own"]).runs[0]


def named(run: Run, name: str, fingerprint: str = "f") -> Run:
    data = run.certificate["data"] | {"name": name, "fingerprint": fingerprint}
    return dataclasses.replace(run, certificate=run.certificate | {"data": data})


def test_the_matrix_counts_every_test_example_once(run):
    labels = load_dataset("digits").y_test
    matrix = confusion_matrix(run)
    assert matrix is not None
    assert (matrix.sum(1) == np.bincount(labels)).all()
    assert np.trace(matrix) / matrix.sum() == run.accuracy


def test_the_most_frequent_mistakes(run):
    confused = most_confused(dataclasses.replace(run, confusion=np.array([[0, 0, 9], [1, 2, 3], [4, 5, 7], [3, 1, 3]])))
    assert [(one.true, one.predicted, one.count) for one in confused] == [("4", "5", 7), ("1", "2", 3), ("3", "1", 3)]


def test_the_picture_of_the_matrix_tells_its_numbers(run):
    drawing = plot_confusion(run)
    matrix = confusion_matrix(run)
    assert drawing is not None
    assert matrix is not None
    texts = [text.get_text() for text in drawing.figure.axes[0].texts]
    assert sorted(map(int, texts)) == sorted(matrix[matrix > 0])
    assert f"{100 * (run.accuracy or 0):.1f} % on the diagonal" in drawing.alt


def test_no_picture_of_many_classes_and_none_without_predictions(run):
    many = run.certificate["data"] | {"classes": [str(number) for number in range(MOST_CLASSES + 1)]}
    large = dataclasses.replace(run, certificate=run.certificate | {"data": many})
    assert plot_confusion(large) is None
    assert most_confused(large) == most_confused(run)
    bare = dataclasses.replace(run, confusion=None)
    assert (plot_confusion(bare), most_confused(bare)) == (None, [])


class TestImages:
    def test_of_a_published_set_that_is_there(self, run):
        assert isinstance(PublicImages(None).of(run), Dataset)

    def test_never_of_someones_own(self, own, tmp_path):
        told = PublicImages(tmp_path).of(own)
        assert isinstance(told, str)
        assert "may be of private people" in told

    def test_never_of_someones_own_that_is_called_like_a_published_set(self, own, tmp_path):
        data = own.certificate["data"] | {"name": "digits"}
        imitator = dataclasses.replace(own, certificate=own.certificate | {"data": data})
        assert isinstance(PublicImages(tmp_path).of(imitator), str)

    def test_a_set_that_is_not_there_is_not_fetched(self, run, tmp_path, monkeypatch):
        def fails(*_arguments, **_options):
            raise AssertionError("the network was asked")

        monkeypatch.setattr("scatterdp.datasets.fetch.download", fails)
        monkeypatch.setattr("scatterdp.datasets.fetch.read_mirror", fails)
        told = PublicImages(tmp_path).of(named(run, "mnist"))
        assert isinstance(told, str)
        assert f"mnist is not in the data folder {tmp_path}" in told
        assert list(tmp_path.iterdir()) == []

    def test_other_data_of_that_name(self, run):
        told = PublicImages(None).of(named(run, "digits", fingerprint="another"))
        assert isinstance(told, str)
        assert "on other data" in told


class TestMisclassified:
    def test_shows_the_first_mistakes_under_their_names(self, run):
        dataset = load_dataset("digits")
        drawing = plot_misclassified(run, dataset)
        assert drawing is not None
        wrong = np.flatnonzero(run.predicted != dataset.y_test)[:12]
        shown = [axes for axes in drawing.figure.axes if axes.images]
        assert len(shown) == len(wrong) == 12
        for axes, index in zip(shown, wrong, strict=True):
            assert (np.asarray(axes.images[0].get_array()) == dataset.x_test[index]).all()
            assert axes.get_title() == f"{dataset.y_test[index]}\nas {run.predicted[index]}"  # type: ignore[index]
        assert f"{dataset.y_test[wrong[0]]} as {run.predicted[wrong[0]]}" in drawing.alt  # type: ignore[index]

    def test_nothing_without_predictions_or_mistakes(self, run):
        dataset = load_dataset("digits")
        for predicted in (None, dataset.y_test, dataset.y_test[:5]):
            assert plot_misclassified(dataclasses.replace(run, predicted=predicted), dataset) is None


class TestExample:
    def test_the_filters_of_the_runs_scatternet(self, run):
        drawing = plot_example(run, load_dataset("digits"))
        assert drawing is not None
        assert "2 rows of 8 Morlet wavelets" in drawing.alt
        assert any(axes.images for axes in drawing.figure.axes)

    @pytest.mark.parametrize(
        ("extractor", "config", "is_drawn"),
        [
            ("pixels", {}, False),
            ("scatternet", {"J": 1, "L": 4, "max_order": 1}, True),
            ("deskew", {"extractor": "scatternet", "config": {"J": 1, "L": 4}}, True),
            ("concat", {"parts": {"pixels": {}, "scatternet": {"J": 1, "L": 4}}, "scales": {}}, True),
            ("views", {"extractor": "concat", "config": {"parts": {"pixels": {}}}}, False),
            ("scatternet", {"J": 1, "unknown": 2}, False),
            ("scatternet", None, False),
        ],
    )
    def test_a_scatternet_inside_others_is_found(self, run, extractor, config, is_drawn):
        features = run.certificate["features"] | {"extractor": extractor, "config": config}
        changed = dataclasses.replace(run, certificate=run.certificate | {"features": features})
        drawing = plot_example(changed, load_dataset("digits"))
        assert (drawing is not None) == is_drawn


def test_files_are_named_by_the_data(run, tmp_path: Path):
    drawing = plot_confusion(run)
    assert drawing is not None
    drawing.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits_confusion.png", "digits_confusion.svg"]
