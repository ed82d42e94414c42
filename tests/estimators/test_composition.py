"""Certificates of pipelines: ledgers together, and steps that are not private."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler, scale

from scatterdp.errors import UserError
from scatterdp.estimators import DPClassifier, DPStandardScaler, composed_certificate
from scatterdp.privacy.checking import check_certificate
from scatterdp.privacy.gaussian import gaussian_epsilon, inverse_square_sum
from scatterdp.privacy.ledger import Ledger
from scatterdp.report.guarantee import guarantee_in_words


def private_steps(**parameters) -> list:
    scaler = DPStandardScaler(epsilon=1.0, delta=1e-5, bounds=(-5, 5), random_state=0)
    return [("scale", scaler), ("classify", DPClassifier(epsilon=2.0, delta=1e-4, random_state=0, **parameters))]


@pytest.fixture(scope="module")
def pipeline(blobs) -> Pipeline:
    return Pipeline(private_steps()).fit(*blobs)


def test_ledgers_are_composed_not_epsilons_added(pipeline):
    certificate = composed_certificate(pipeline)
    parts = [step.privacy_certificate_ for _, step in pipeline.steps]
    inverse_squares = sum(inverse_square_sum(Ledger.from_json(part["ledger"]).event) for part in parts)  # type: ignore[misc]
    assert certificate["delta"] == 1e-4
    assert certificate["epsilon"] == pytest.approx(gaussian_epsilon(inverse_squares**-0.5, delta=1e-4), rel=1e-9)
    assert 2.0 < certificate["epsilon"] < 2.9
    assert [entry["name"].split(":")[0] for entry in certificate["ledger"]] == ["scale", *["classify"] * 2]
    checked = check_certificate(json.loads(json.dumps(certificate)))
    assert checked.disagreements == []
    told = " ".join(guarantee_in_words(certificate, checked).split())
    assert "scale: sums of the features and of their squares: a sum with Gaussian noise of" in told
    assert "Yes." in told


def test_a_changed_part_is_found(pipeline):
    certificate = json.loads(json.dumps(composed_certificate(pipeline)))
    certificate["ledger"][-1]["event"]["count"] -= 1
    assert any(
        "classify: training is not that of its sampler" in s for s in check_certificate(certificate).disagreements
    )


def test_delta_and_accountant_can_be_chosen(pipeline):
    certificate = composed_certificate(pipeline, delta=1e-6, accountant="rdp")
    assert (certificate["delta"], certificate["accountant"]) == (1e-6, "rdp")
    assert certificate["epsilon"] > composed_certificate(pipeline)["epsilon"]


def test_steps_that_learn_nothing_are_free(blobs, pipeline):
    steps = private_steps()
    longer = Pipeline(
        [steps[0], ("rows", Normalizer()), ("nothing", "passthrough"), ("same", FunctionTransformer()), steps[1]]
    ).fit(*blobs)
    assert composed_certificate(longer)["epsilon"] == pytest.approx(composed_certificate(pipeline)["epsilon"], rel=1e-6)


class OwnNormalizer(Normalizer):
    """Says that it needs no fit, and looks at all rows."""

    def transform(self, X, copy=None):
        return X - X.mean(0)


@pytest.mark.parametrize("step", [StandardScaler(), PCA(3), FunctionTransformer(scale), OwnNormalizer()])
def test_a_step_that_learns_without_noise_is_named(blobs, step):
    certificate = composed_certificate(Pipeline([("learn", step), *private_steps()]).fit(*blobs))
    assert certificate["private"] is False
    assert certificate["epsilon"] is None
    assert certificate["ledger"][-1]["name"] == "learn, fitted without privacy"
    assert check_certificate(json.loads(json.dumps(certificate))).disagreements == []


def test_a_pipeline_in_a_pipeline(blobs, pipeline):
    scaler, classifier = private_steps()
    nested = Pipeline([("first", Pipeline([scaler])), classifier]).fit(*blobs)
    certificate = composed_certificate(nested)
    assert certificate["epsilon"] == pytest.approx(composed_certificate(pipeline)["epsilon"], rel=1e-9)
    assert certificate["ledger"][0]["name"].startswith("first: scale: ")


def test_a_single_estimator_has_its_own(blobs):
    classifier = DPClassifier(delta=1e-4).fit(*blobs)
    assert composed_certificate(classifier) == classifier.privacy_certificate_
    assert composed_certificate(make_pipeline(classifier)) == classifier.privacy_certificate_


def test_one_known_seed_is_enough(blobs):
    steps = private_steps()
    steps[1][1].set_params(random_state=None)
    assert composed_certificate(Pipeline(steps).fit(*blobs))["noise_source"]["origin"] == "seed"


def test_nothing_private(blobs):
    with pytest.raises(UserError, match="no step is differentially private"):
        composed_certificate(make_pipeline(StandardScaler()).fit(blobs[0]))
    with pytest.raises(NotFittedError):
        composed_certificate(Pipeline(private_steps()))


def test_parts_on_other_examples(blobs):
    steps = private_steps()
    pipeline = Pipeline(steps).fit(*blobs)
    steps[0][1].fit(np.zeros((10, 6)))
    with pytest.raises(UserError, match=r"fitted on \[10, 600\] examples"):
        composed_certificate(pipeline)
