"""DPClassifier: labels, certificates, arrays of every kind, images, files."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from typing import Any

import h5py
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from scatterdp.errors import BudgetError, ConfigError, UserError
from scatterdp.estimators import DPClassifier
from scatterdp.estimators.composition import fresh
from scatterdp.linear import HEADS
from scatterdp.privacy.certificate import rounded_up
from scatterdp.privacy.checking import check_certificate
from scatterdp.privacy.ledger import Ledger
from scatterdp.report.guarantee import guarantee_in_words


class Spy:
    """Rows that are only given in slices, and what was asked for."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.shape, self.dtype, self.longest = rows, rows.shape, rows.dtype, 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        part = self.rows[rows]
        self.longest = max(self.longest, len(part))
        return part


@pytest.fixture(scope="module")
def fitted(blobs) -> DPClassifier:
    return DPClassifier(epsilon=3.0, delta=1e-4, random_state=0).fit(*blobs)


class TestFit:
    def test_labels_are_the_users_own(self, blobs):
        X, y = blobs
        names = np.array(["pear", "apple", "fig"])[y]
        classifier = DPClassifier(delta=1e-4, random_state=0).fit(X, names)
        assert classifier.classes_.tolist() == ["apple", "fig", "pear"]
        assert classifier.score(X, names) > 0.9
        probabilities = classifier.predict_proba(X)
        assert probabilities.shape == (600, 3)
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
        assert (classifier.classes_[probabilities.argmax(1)] == classifier.predict(X)).all()

    @pytest.mark.parametrize("head", HEADS)
    def test_every_head_has_a_certificate_that_holds(self, blobs, head):
        X, y = blobs
        classifier = DPClassifier(epsilon=2.0, delta=1e-4, head=head, random_state=1).fit(X, y)
        certificate = json.loads(json.dumps(classifier.privacy_certificate_, allow_nan=False))
        checked = check_certificate(certificate)
        assert checked.disagreements == []
        assert 1.99 < certificate["epsilon"] <= 2.0
        assert certificate["epsilon"] == pytest.approx(Ledger.from_json(certificate["ledger"]).epsilon(delta=1e-4))
        assert certificate["data"] == {"name": "the arrays given to fit", "num_train": 600, "classes": ["0", "1", "2"]}
        assert certificate["model"]["head"] == head
        told = " ".join(guarantee_in_words(certificate, checked).split())
        assert "600 examples of 3 classes, on given features" in told
        assert f"ε = {rounded_up(certificate['epsilon'])} and δ = 0.0001" in told
        assert "Yes. ε computed again" in told
        training = any(entry["name"] == "training" for entry in certificate["ledger"])
        assert ("every model update" in certificate["statement"]) == training

    @pytest.mark.parametrize("head", HEADS)
    def test_the_plan_is_what_is_spent(self, blobs, head):
        classifier = DPClassifier(epsilon=2.0, delta=1e-4, head=head, random_state=1)
        planned = Ledger(classifier.planned_ledger(600, (6,), 3))
        spent = classifier.fit(*blobs).privacy_certificate_["epsilon"]
        assert planned.epsilon(delta=1e-4) == pytest.approx(spent, rel=1e-9)

    def test_a_further_fit_warns_of_what_all_cost(self, blobs):
        X, y = blobs
        classifier = DPClassifier(epsilon=2.0, delta=1e-4, head="class_means", centre=False, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            classifier.fit(X, y)
            fresh(classifier).fit(X, y)
        (entry,) = Ledger.from_json(classifier.privacy_certificate_["ledger"]).entries
        for fits in (2, 3):
            epsilon = Ledger([entry] * fits).epsilon(delta=1e-4)
            with pytest.warns(UserWarning, match=rf"fresh spend; .* \(ε = {rounded_up(epsilon)}, δ = 0.0001\)-private"):
                classifier.fit(X, y)

    def test_a_smaller_budget_is_told_from_a_larger(self, blobs):
        less, more = (
            np.mean([DPClassifier(epsilon=e, delta=1e-4, random_state=s).fit(*blobs).score(*blobs) for s in range(7)])
            for e in (0.01, 3.0)
        )
        assert less < 0.8 < more

    def test_the_same_seed_gives_the_same_weights(self, blobs, fitted):
        again = fresh(fitted).fit(*blobs)
        np.testing.assert_array_equal(again.predict_proba(blobs[0]), fitted.predict_proba(blobs[0]))
        assert again.privacy_certificate_["noise_source"]["origin"] == "seed"
        assert "comes from a seed" in again.privacy_certificate_["statement"]

    def test_without_a_seed_the_noise_is_fresh(self, blobs):
        X, y = blobs
        one, other = (DPClassifier(delta=1e-4).fit(X, y) for _ in range(2))
        assert (one.predict_proba(X) != other.predict_proba(X)).any()
        assert one.privacy_certificate_["noise_source"]["origin"] == "system"

    def test_a_random_state_object_counts_as_a_seed(self, blobs):
        X, y = blobs
        one, other = (DPClassifier(delta=1e-4, random_state=np.random.RandomState(3)).fit(X, y) for _ in range(2))
        np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))
        assert one.privacy_certificate_["noise_source"]["cryptographic"] is False

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"epsilon": 0}, "epsilon=0: expected a finite number > 0"),
            ({"delta": 2.0}, "delta=2.0"),
            ({"head": "svm"}, "head='svm': expected one of auto"),
            ({"accountant": "moments"}, "accountant='moments'"),
            ({"random_state": True}, "random_state=True: expected None, an integer"),
            ({"random_state": "0"}, "random_state='0'"),
        ],
    )
    def test_parameters_out_of_range(self, blobs, parameters, message):
        with pytest.raises(ConfigError, match=message.replace("(", "\\(")):
            DPClassifier(**parameters).fit(*blobs)

    def test_a_budget_that_cannot_be_met(self, blobs):
        with pytest.raises(BudgetError, match="no noise multiplier"):
            DPClassifier(epsilon=1e-9, delta=1e-12).fit(*blobs)


class TestLabels:
    def test_one_class_is_none(self, blobs):
        with pytest.raises(ValueError, match="one class only"):
            DPClassifier().fit(blobs[0], np.zeros(600, int))

    def test_public_classes_may_be_absent(self, blobs):
        X, y = blobs
        classifier = DPClassifier(delta=1e-4, classes=[3, 0, 1, 2], random_state=0).fit(X, y)
        assert classifier.classes_.tolist() == [0, 1, 2, 3]
        assert classifier.predict_proba(X).shape == (600, 4)
        assert classifier.score(X, y) > 0.9
        assert not any("read from the labels" in limit for limit in classifier.privacy_certificate_["limits"])

    def test_classes_of_the_labels_are_said_to_be_public(self, fitted):
        assert any("read from the labels" in limit for limit in fitted.privacy_certificate_["limits"])

    def test_an_unknown_label_is_not_told(self, blobs):
        X, y = blobs
        with pytest.raises(ValueError, match="not among classes=") as caught:
            DPClassifier(classes=["0", "1"]).fit(X, np.where(y == 2, "secret", y.astype(str)))
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("y", "message"),
        [
            (np.arange(599) % 3, "inconsistent numbers of samples"),
            (np.linspace(0, 1, 600), "continuous"),
            (np.full(600, np.nan), "NaN"),
            (np.zeros((600, 2), int), "1d array"),
            (None, "y"),
        ],
    )
    def test_labels_that_are_none(self, blobs, y, message):
        with pytest.raises(ValueError, match=message):
            DPClassifier().fit(blobs[0], y)


class TestRows:
    @pytest.fixture(params=["float16", "float32", "float64", "uint8"])
    def rows(self, request, blobs) -> np.ndarray:
        X = blobs[0]
        return (
            ((X + 3) * 20).clip(0, 255).astype(request.param) if request.param == "uint8" else X.astype(request.param)
        )

    def test_arrays_on_disk_give_what_arrays_in_memory_give(self, rows, blobs, tmp_path):
        y = blobs[1]
        expected = DPClassifier(delta=1e-4, random_state=0).fit(rows, y).predict_proba(rows)
        np.save(tmp_path / "x.npy", rows)
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["x"] = rows
            for X in (file["x"], np.load(tmp_path / "x.npy", mmap_mode="r"), rows.tolist()):
                if isinstance(X, list) and rows.dtype != np.float64:
                    continue
                classifier = DPClassifier(delta=1e-4, random_state=0).fit(X, y)
                np.testing.assert_array_equal(classifier.predict_proba(X), expected)
                assert classifier.n_features_in_ == 6

    def test_rows_are_read_in_blocks(self, blobs):
        X = Spy(np.repeat(blobs[0], 17, axis=0).astype(np.float16))
        y = np.repeat(blobs[1], 17)
        classifier = DPClassifier(delta=1e-5, random_state=5).fit(X, y)
        assert classifier.score(X, y) > 0.9
        assert X.longest == 4096

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
    def test_values_that_are_none(self, blobs, fitted, value):
        X = blobs[0].copy()
        X[17, 3] = value
        for rows in (X, Spy(X)):
            with pytest.raises(ValueError, match=r"contains (NaN|infinity)"):
                DPClassifier().fit(rows, blobs[1])
            with pytest.raises(ValueError, match=r"contains (NaN|infinity)"):
                fitted.predict(rows)

    @pytest.mark.parametrize(
        ("X", "message"),
        [
            (Spy(np.zeros((600, 2, 3))), r"X has shape \(600, 2, 3\): expected \(N, D\)"),
            (Spy(np.zeros((600, 0))), "at least one row and one feature"),
            (Spy(np.zeros((600, 2), "S1")), "expected numbers"),
        ],
    )
    def test_sliceable_things_that_are_no_rows(self, blobs, X, message):
        with pytest.raises(ValueError, match=message):
            DPClassifier().fit(X, blobs[1])

    def test_another_number_of_features(self, fitted, blobs):
        for X in (blobs[0][:, :5], Spy(blobs[0][:, :5])):
            with pytest.raises(ValueError, match="X has 5 features, but DPClassifier is expecting 6"):
                fitted.predict(X)

    def test_not_fitted(self, blobs, tmp_path):
        for use in (
            lambda c: c.predict(blobs[0]),
            lambda c: c.predict_proba(blobs[0]),
            lambda c: c.save(tmp_path / "x"),
        ):
            with pytest.raises(NotFittedError):
                use(DPClassifier())


class TestImages:
    def test_digits(self, digit_images):
        images, y = digit_images
        classifier = DPClassifier(features="scatternet", random_state=0).fit(images[:1437], y[:1437])
        assert classifier.score(images[1437:], y[1437:]) > 0.72
        assert classifier.n_features_in_ == 64
        certificate = classifier.privacy_certificate_
        assert check_certificate(json.loads(json.dumps(certificate))).disagreements == []
        assert certificate["data"]["image_shape"] == [1, 8, 8]
        assert certificate["features"]["extractor"] == "scatternet"
        assert certificate["features"]["shape"] == [81, 2, 2]
        assert "synthetic" in certificate["features"]["scale"]
        planned = Ledger(classifier.planned_ledger(1437, (8, 8), 10))
        assert planned.epsilon(delta=1e-5) == pytest.approx(certificate["epsilon"], rel=1e-9)

    @pytest.mark.parametrize("features", ["scatternet(L=2)", "pixels+0.5*scatternet(L=2)"])
    def test_colour(self, features, tmp_path):
        rng = np.random.default_rng(0)
        y = np.arange(240) % 2
        images = rng.integers(0, 100, (240, 8, 8, 3), np.uint8)
        images[y == 1, :, :4] += 150
        classifier = DPClassifier(features=features, delta=1e-3, head="preconditioned", random_state=0).fit(images, y)
        assert classifier.score(images, y) > 0.9
        assert classifier.privacy_certificate_["data"]["image_shape"] == [3, 8, 8]
        classifier.save(tmp_path / "model")
        again = DPClassifier.load(tmp_path / "model")
        np.testing.assert_array_equal(again.predict_proba(images), classifier.predict_proba(images))

    def test_many_features_are_held_in_half_precision(self, digit_images, monkeypatch):
        images, y = digit_images
        single = DPClassifier(features="pixels", random_state=0).fit(images, y)
        monkeypatch.setattr("scatterdp.estimators.images._HALF_ABOVE", 1000)
        half = DPClassifier(features="pixels", random_state=0).fit(images, y)
        assert single.privacy_certificate_["features"]["dtype"] == "float32"
        assert half.privacy_certificate_["features"]["dtype"] == "float16"
        assert abs(half.score(images, y) - single.score(images, y)) < 0.05

    def test_other_images(self, digit_images):
        images, y = digit_images
        classifier = DPClassifier(features="pixels", random_state=0).fit(images, y)
        with pytest.raises(
            ValueError, match=r"images of \(C, H, W\) = \(1, 9, 8\): .* fitted on images of \(1, 8, 8\)"
        ):
            classifier.predict(np.zeros((2, 9, 8), np.uint8))
        for X, message in (
            (images / 255, "expected images of bytes"),
            (images.reshape(len(images), -1), r"takes images \(N, H, W\)"),
            (images[:0], "takes images"),
        ):
            with pytest.raises(ValueError, match=message):
                DPClassifier(features="pixels").fit(X, y)

    def test_an_unknown_extractor(self, digit_images):
        with pytest.raises(ConfigError, match="extractor='resnet'"):
            DPClassifier(features="resnet").fit(*digit_images)


class TestFiles:
    def facts(self, path) -> dict[str, Any]:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["facts"])

    @pytest.mark.parametrize(
        "labels", [np.array(["a", "b", "c"]), np.array([3, 5, 9]), np.array(["a", "b", "c"], object)]
    )
    def test_what_is_saved_is_loaded(self, blobs, tmp_path, labels):
        X, y = blobs
        classifier = DPClassifier(delta=1e-4, classes=labels, random_state=12345).fit(X, labels[y])
        classifier.save(tmp_path / "model.safetensors")
        again = DPClassifier.load(tmp_path / "model.safetensors")
        np.testing.assert_array_equal(again.predict_proba(X), classifier.predict_proba(X))
        np.testing.assert_array_equal(again.predict(X), classifier.predict(X))
        assert again.classes_.dtype == classifier.classes_.dtype
        assert again.privacy_certificate_ == classifier.privacy_certificate_
        assert again.get_params()["delta"] == 1e-4
        assert again.random_state is None
        assert "12345" not in json.dumps(self.facts(tmp_path / "model.safetensors"))
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]

    def test_pickles(self, fitted, blobs):
        again = pickle.loads(pickle.dumps(fitted))
        np.testing.assert_array_equal(again.predict_proba(blobs[0]), fitted.predict_proba(blobs[0]))

    @pytest.mark.parametrize("content", [None, b"", b"not a model"])
    def test_files_that_are_none(self, tmp_path, content):
        path = tmp_path / "model"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=r"path=.*model: is no saved classifier"):
            DPClassifier.load(path)

    def test_another_model(self, tmp_path):
        import torch
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(1)}, tmp_path / "model", metadata={"facts": "{}"})
        with pytest.raises(UserError, match=r"is not what DPClassifier.save writes"):
            DPClassifier.load(tmp_path / "model")

    def test_a_damaged_model(self, fitted, tmp_path):
        from safetensors.torch import load_file, save_file

        fitted.save(tmp_path / "model")
        tensors = load_file(tmp_path / "model")
        del tensors["classifier.bias"]
        save_file(tensors, tmp_path / "model", metadata={"facts": json.dumps(self.facts(tmp_path / "model"))})
        with pytest.raises(UserError, match="is damaged"):
            DPClassifier.load(tmp_path / "model")

    def test_a_class_too_many(self, fitted, tmp_path):
        from safetensors.torch import load_file, save_file

        fitted.save(tmp_path / "model")
        facts = self.facts(tmp_path / "model")
        facts["classes"].append(9)
        save_file(load_file(tmp_path / "model"), tmp_path / "model", metadata={"facts": json.dumps(facts)})
        with pytest.raises(UserError, match="3 rows of weights for 4 classes"):
            DPClassifier.load(tmp_path / "model")

    def test_a_place_that_cannot_be_written(self, fitted, tmp_path):
        with pytest.raises(UserError, match="cannot be written"):
            fitted.save(tmp_path / "nowhere" / "model")

    def test_features_of_another_version_are_refused(self, digit_images, tmp_path):
        images, y = digit_images
        classifier = DPClassifier(features="pixels", random_state=0).fit(images, y)
        object.__setattr__(classifier.images_, "fingerprint", "0" * 64)
        with pytest.raises(UserError, match="computes other features"):
            classifier.predict(images)


def test_in_a_pipeline(blobs):
    pipeline = make_pipeline(Normalizer(), DPClassifier(delta=1e-4, random_state=0)).fit(*blobs)
    assert pipeline.score(*blobs) > 0.9


def test_importing_costs_no_torch():
    code = "import sys; from scatterdp import DPClassifier, DPStandardScaler; DPClassifier(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
