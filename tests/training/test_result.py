"""The certificate of a run on cached features."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from typing import Any

import dp_accounting
import numpy as np
import pytest
import torch
from torch import nn

from scatterdp.cache import FeatureCache
from scatterdp.heads import linear_head
from scatterdp.privacy.ledger import Ledger, LedgerEntry
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.result import FitResult, certify

PLAN = TrainingPlan(num_examples=60, batch_size=60, epochs=3, lr=1.0, noise_multiplier=4.0, delta=1e-3)


def make(features: FeatureCache, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "key": RandomKey.from_seed(2),
        "published_data": False,
        "augmented": False,
        "not_private": [],
    }
    return certify(
        features,
        PLAN,
        Ledger([LedgerEntry("training", PLAN.selection().event(4.0))]),
        **(arguments | changes),
    )


def test_facts_are_those_of_features_and_plan(small_features: FeatureCache):
    certificate = make(small_features)
    data, features = certificate["data"], certificate["features"]
    assert (data["name"], data["num_train"], data["num_test"]) == ("small", 60, 24)
    assert data["image_shape"] == [1, 8, 8]
    assert data["classes"] == ["above", "below", "left"]
    assert features == {
        "extractor": "textures",
        "config": {"gain": 1.0},
        "fingerprint": small_features.extractor_fingerprint,
        "shape": [6, 2, 2],
        "dtype": "float32",
        "augmented": False,
    }
    assert certificate["delta"] == 1e-3
    assert certificate["accountant"] == "pld"
    assert certificate["sampler"] == PLAN.selection().describe()
    assert certificate["adjacency"] == PLAN.selection().adjacency
    assert json.loads(json.dumps(certificate, allow_nan=False)) == certificate


def test_epsilon_comes_from_the_ledger(small_features: FeatureCache):
    certificate = make(small_features)
    assert certificate["private"] is True
    assert certificate["epsilon"] == certificate["epsilon_by_accountant"]["pld"]
    assert certificate["epsilon"] == pytest.approx(PLAN.epsilon(), rel=1e-9)
    claimed = re.search(r"ε = (\d+\.\d{4}), δ = 0\.001", certificate["statement"])
    assert claimed is not None
    assert certificate["epsilon"] <= float(claimed[1]) <= certificate["epsilon"] + 1e-4


def test_private_data_are_named_by_a_commitment(small_features: FeatureCache):
    certificate = make(small_features)
    data = certificate["data"]
    secret = (small_features.path.parent / "commitment.key").read_bytes()
    message = f"{data['commitment_nonce']} {small_features.dataset_fingerprint}".encode()
    assert data["commitment"] == hmac.new(secret, message, hashlib.sha256).hexdigest()
    assert re.fullmatch("[0-9a-f]{32}", data["commitment_nonce"])
    text = json.dumps(certificate)
    assert small_features.dataset_fingerprint not in text
    assert secret.hex() not in text


def test_commitments_do_not_tell_that_the_data_are_the_same(small_features: FeatureCache):
    first, second = (make(small_features)["data"] for _ in range(2))
    assert first["commitment"] != second["commitment"]
    assert first["commitment_nonce"] != second["commitment_nonce"]


def test_published_data_are_named_by_their_fingerprint(small_features: FeatureCache):
    data = make(small_features, published_data=True)["data"]
    assert data["fingerprint"] == small_features.dataset_fingerprint
    assert "commitment" not in data


def test_what_is_not_private_is_listed(small_features: FeatureCache):
    assert make(small_features)["not_private"] == [
        "test_accuracy",
        "test_accuracy_ema",
        "test_predictions",
        "seconds",
        "peak_memory_bytes",
    ]
    assert make(small_features, not_private=["more"])["not_private"][-1] == "more"
    assert make(small_features, augmented=True)["features"]["augmented"] is True


def test_another_sampler_than_the_plans(small_features: FeatureCache):
    assert make(small_features, sampler={"kind": "none"})["sampler"] == {"kind": "none"}


@pytest.mark.parametrize("key", [RandomKey.from_seed(2), RandomKey.from_system()])
def test_the_key_is_not_in_it(small_features: FeatureCache, key):
    text = json.dumps(make(small_features, key=key))
    assert key.secret.hex() not in text
    assert ("derived from a seed" in text) == (key.origin == "seed")


def test_without_noise_there_is_no_epsilon(small_features: FeatureCache):
    certificate = certify(
        small_features,
        PLAN,
        Ledger([LedgerEntry("all", dp_accounting.NonPrivateDpEvent())]),
        key=RandomKey.from_seed(2),
        published_data=False,
        augmented=False,
        not_private=[],
    )
    assert certificate["private"] is False
    assert certificate["epsilon"] is None
    assert set(certificate["epsilon_by_accountant"].values()) == {None}
    assert certificate["statement"].startswith("This run is NOT differentially private")


def test_results_print_without_weights_and_rows():
    result = FitResult(
        head=linear_head(nn.Identity(), (1, 1, 1), 2),
        average={"weight": torch.tensor([123.456])},
        test_accuracy=0.5,
        test_accuracy_ema=0.25,
        certificate={"secret": "certificate"},
        metrics=[{"step": 98765}],
        test_predictions=np.array([43210]),
        seconds=1.5,
    )
    assert "test_accuracy=0.5" in repr(result)
    assert not any(text in repr(result) for text in ("123.456", "certificate", "98765", "43210"))
