"""Rows that stay on the disk: the same numbers as rows in memory, and nothing left behind."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scatterdp.cache import FeatureCache, extract_features
from scatterdp.errors import CacheError, UserError
from scatterdp.heads import Precondition, Standardize, group_normalizer
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training import streaming as streaming_module
from scatterdp.training.evaluation import evaluate
from scatterdp.training.fit import fit
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.rows import FeatureRows, Piece, load_rows
from scatterdp.training.streaming import StreamedRows, default_budget, matrix_bytes, open_rows, stream_rows

KEY = RandomKey.from_seed(5)
BATCHES = [
    np.arange(60),
    np.arange(60)[::-1].copy(),
    np.array([], np.int64),
    np.array([59]),
    np.array([0, 1, 2, 9, 30, 31, 58]),
    np.array([4, 4, 2]),
]


def kept(pieces: Iterator[Piece]) -> list[Piece]:
    return [dataclasses.replace(piece, x=piece.x.clone()) for piece in pieces]


def precondition() -> nn.Module:
    directions, _ = torch.linalg.qr(torch.randn(24, 5, generator=torch.Generator().manual_seed(0)))
    return Precondition(directions, torch.linspace(0.1, 0.9, 5), 1.5)


@pytest.fixture(params=["float32", "float16"])
def features(request, small_dataset, small_extractor, tmp_path, monkeypatch) -> Iterator[FeatureCache]:
    monkeypatch.setattr("scatterdp.cache.layout._CHUNK_BYTES", 700)  # several chunks
    with extract_features(small_dataset, small_extractor, features_dir=tmp_path, dtype=request.param) as cache:
        yield cache


@pytest.mark.parametrize(
    "make",
    [
        nn.Identity,
        lambda: Standardize(torch.linspace(0, 1, 6), torch.linspace(0.3, 3, 6)),
        lambda: group_normalizer(6, 2),
        lambda: nn.Sequential(Standardize(torch.linspace(0, 1, 6), torch.linspace(0.3, 3, 6)), precondition()),
    ],
    ids=["none", "BN", "GroupNorm", "preconditioned"],
)
@pytest.mark.parametrize("physical_batch_size", [1, 7, 512])
@pytest.mark.parametrize("few_bytes", [1, 1 << 20])
def test_pieces_are_those_of_rows_in_memory_bit_for_bit(features, make, physical_batch_size, few_bytes, monkeypatch):
    monkeypatch.setattr(streaming_module, "_FEW_BYTES", few_bytes)
    normalizer = make()
    memory = load_rows(features, "train", normalizer, physical_batch_size=physical_batch_size)
    disk = stream_rows(features, "train", normalizer, physical_batch_size=physical_batch_size)
    for indices in BATCHES:
        expected, found = (kept(rows.pieces(indices, step=0)) for rows in (memory, disk))
        assert len(found) == len(expected)
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one.x, other.x)
            assert other.x.dtype == torch.float32
            assert torch.equal(one.y, other.y)
            assert one.squared_norms is not None
            assert other.squared_norms is not None
            assert torch.equal(one.squared_norms, other.squared_norms)


@pytest.mark.usefixtures("accounting_once")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"batch_size": 60}, {"sampling": "shuffle"}, {"input_norm": "BN"}, {"precondition": 3}],
    ids=["poisson", "full batch", "shuffle", "BN", "preconditioned"],
)
def test_a_model_is_the_same_bit_for_bit(small_dataset, small_extractor, tmp_path, dtype, changes):
    plan = TrainingPlan(
        **{"num_examples": 60, "batch_size": 20, "epochs": 3, "lr": 1.0, "noise_multiplier": 1.0, "input_norm": "none"}
        | changes
    )
    with extract_features(small_dataset, small_extractor, features_dir=tmp_path, dtype=dtype) as features:
        results = [
            fit(features, plan, extractor=small_extractor, key=KEY, memory_budget=budget, physical_batch_size=7)
            for budget in (10**9, 1, matrix_bytes(features, "test"))
        ]
    first = results[0]
    for other in results[1:]:
        for name, value in first.head.state_dict().items():
            assert torch.equal(value, other.head.state_dict()[name])
        assert first.test_accuracy == other.test_accuracy
        assert first.certificate["ledger"] == other.certificate["ledger"]
    assert {path.suffix for path in tmp_path.iterdir()} <= {".h5", ".lock", ".pid", ".key"}


@pytest.mark.usefixtures("accounting_once")
def test_a_network_is_the_same_bit_for_bit(digits_features):
    plan = TrainingPlan(
        num_examples=1437,
        batch_size=300,
        epochs=1,
        lr=1.0,
        noise_multiplier=1.0,
        head="scatternet_cnn_small",
        engine="mixed_ghost",
    )
    extractor = SimpleNamespace(
        name="scatternet", fingerprint=digits_features.extractor_fingerprint, output_shape=digits_features.output_shape
    )
    weights = [
        fit(digits_features, plan, extractor=extractor, key=KEY, memory_budget=budget).head.state_dict()  # type: ignore[arg-type]
        for budget in (10**9, 1)
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_evaluation_is_the_same(features):
    classifier = nn.Linear(24, 3)
    results = [evaluate(classifier, open_rows(features, "test", nn.Identity(), budget=budget)) for budget in (None, 0)]
    assert results[0] == results[1]


def test_what_fits_the_budget_is_in_memory(features):
    size = matrix_bytes(features, "train")
    assert size == 60 * 24 * (4 if features.dtype == "float32" else 2)
    for budget, kind in ((None, FeatureRows), (size, FeatureRows), (size - 1, StreamedRows), (-5, StreamedRows)):
        assert type(open_rows(features, "train", nn.Identity(), budget=budget)) is kind


def test_the_default_is_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(streaming_module, "available_memory", lambda: 1000)
    assert default_budget("cpu") == 500
    monkeypatch.setattr(streaming_module, "available_memory", lambda: None)  # no such report: of all there is
    assert default_budget("cpu") == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def test_a_row_that_is_not_finite_is_named_before_training(features):
    class Overflows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.inf

    with pytest.raises(UserError, match=r"^features of the train split: row 0 is not finite after normalisation in"):
        stream_rows(features, "train", Overflows())


def test_a_file_that_fails_in_the_middle_of_a_batch(features):
    rows = stream_rows(features, "train", nn.Identity(), physical_batch_size=4)
    os.truncate(features.path, 4000)
    with pytest.raises(CacheError, match="is shorter than it was"):
        list(rows.pieces(np.arange(60), step=0))


def test_nobody_has_to_want_all_pieces(features):
    rows = stream_rows(features, "train", nn.Identity(), physical_batch_size=2)
    pieces = rows.pieces(np.arange(60), step=0)
    assert torch.equal(next(pieces).y, rows.y[:2])
    pieces.close()  # type: ignore[attr-defined]
    assert len(kept(rows.pieces(np.arange(60), step=0))) == 30


def test_the_reader_is_told_of_rows_before_they_are_read(features):
    told: list[int] = []

    class Reader:
        def __init__(self) -> None:
            self.file = features.row_reader("train")

        def expect(self, rows: np.ndarray) -> None:
            told.extend(rows.tolist())

        def read(self, rows: np.ndarray) -> np.ndarray:
            last = int(rows[-1])
            assert told[: last + 1] == list(range(last + 1))
            assert last == 59 or len(told) > last + 1
            return self.file.read(rows)

    rows = dataclasses.replace(stream_rows(features, "train", nn.Identity(), physical_batch_size=2), reader=Reader())
    assert len(kept(rows.pieces(np.arange(60), step=0))) == 30
    assert told == list(range(60))  # once each


def test_no_room_for_preconditioned_rows(features, monkeypatch):
    folder = features.path.parent
    before = sorted(folder.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        with pytest.raises(UserError) as raised:
            stream_rows(features, "train", precondition())
    assert str(raised.value) == (
        f"features_dir={folder}: preconditioned features beyond the memory budget need {matrix_bytes(features, 'train')} bytes there "
        "while training runs, 100 are free; free some space, or give a larger --memory_budget or --precondition=0"
    )
    rows = stream_rows(features, "train", precondition())
    assert sorted(Path(folder).iterdir()) == before  # the file has no name
    assert len(kept(rows.pieces(np.arange(60), step=0))) == 1
