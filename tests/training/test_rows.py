"""Training rows: in memory and augmented."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scatterdp.cache import FeatureCache, extract_features
from scatterdp.datasets import Dataset
from scatterdp.datasets.images import to_channels_first_float
from scatterdp.errors import UserError
from scatterdp.extractors.base import Extractor
from scatterdp.heads import Standardize, group_normalizer
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.rows import AugmentedRows, FeatureRows, Piece, load_rows


def copies(pieces: Iterable[Piece]) -> list[Piece]:
    """Pieces to keep: the next one may be written over the last."""
    return [dataclasses.replace(piece, x=piece.x.clone()) for piece in pieces]


def joined(pieces: Iterable[Piece]) -> tuple[Tensor, Tensor]:
    kept = copies(pieces)
    return torch.cat([piece.x for piece in kept]), torch.cat([piece.y for piece in kept])


class TestFeatureRows:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_all_rows_in_order_and_all_in_another_order(self, dtype):
        x = torch.randn(9, 4).to(dtype)
        rows = FeatureRows(x, torch.arange(9), x.float().square().sum(1), 4)
        for indices in (np.arange(9), np.array([0, 2, 1, 3, 4, 5, 6, 7, 8]), np.arange(8), np.arange(9)[::-1].copy()):
            all_x, all_y = joined(rows.pieces(indices, step=0))
            assert torch.equal(all_x, x[indices].float())
            assert torch.equal(all_y, torch.from_numpy(indices))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize(("physical_batch_size", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (100, [5])])
    def test_pieces_are_the_rows_in_order(self, dtype, physical_batch_size, sizes):
        x = torch.randn(9, 4).to(dtype)
        rows = FeatureRows(x, torch.arange(9), x.float().square().sum(1), physical_batch_size)
        indices = np.array([7, 0, 3, 3, 8])
        pieces = copies(rows.pieces(indices, step=0))
        assert [len(piece.x) for piece in pieces] == sizes
        assert all(piece.x.dtype == torch.float32 for piece in pieces)
        all_x, all_y = joined(pieces)
        assert torch.equal(all_x, x[indices].float())
        assert all_y.tolist() == [7, 0, 3, 3, 8]
        for piece in pieces:
            assert piece.squared_norms is not None
            torch.testing.assert_close(piece.squared_norms, piece.x.square().sum(1))

    def test_an_empty_batch_has_no_pieces(self):
        rows = FeatureRows(torch.ones(3, 2), torch.arange(3), torch.ones(3))
        assert list(rows.pieces(np.array([], dtype=np.int64), step=0)) == []


class OneRowTooLarge(nn.Module):
    """Multiplies one row, counted over all calls, by a number."""

    def __init__(self, row: int, factor: float) -> None:
        super().__init__()
        self.row, self.factor, self.seen = row, factor, 0

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        if self.seen <= self.row < self.seen + len(x):
            x[self.row - self.seen] *= self.factor
        self.seen += len(x)
        return x


class TestLoadRows:
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_equals_the_normaliser_applied_to_the_whole(self, digits_features: FeatureCache, split):
        normalizer = group_normalizer(81, 27)
        whole = torch.from_numpy(digits_features.read(split, np.arange(digits_features.num_rows(split))))
        assert len(whole) == {"train": 1437, "test": 360}[split]  # more than one block of 512 rows
        expected = normalizer(whole).flatten(1)
        rows = load_rows(digits_features, split, normalizer, physical_batch_size=77)
        torch.testing.assert_close(rows.x, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(rows.squared_norms, expected.square().sum(1))
        assert rows.x.dtype == rows.squared_norms.dtype == torch.float32
        assert rows.y.dtype == torch.int64
        assert np.array_equal(rows.y.numpy(), digits_features.labels(split))
        assert rows.physical_batch_size == 77
        assert not rows.x.requires_grad

    def test_half_precision_rows_and_the_norms_of_what_is_stored(
        self, small_dataset: Dataset, small_extractor: Extractor, tmp_path
    ):
        normalizer = Standardize(torch.full((6,), 0.3), torch.full((6,), 7.1))
        with (
            extract_features(small_dataset, small_extractor, features_dir=tmp_path, dtype="float16") as half,
            extract_features(small_dataset, small_extractor, features_dir=tmp_path) as single,
        ):
            rows, exact = load_rows(half, "train", normalizer), load_rows(single, "train", normalizer)
        assert rows.x.dtype == torch.float16
        assert rows.squared_norms.dtype == torch.float32
        torch.testing.assert_close(rows.squared_norms, rows.x.float().square().sum(1), rtol=1e-6, atol=0)
        torch.testing.assert_close(rows.x.float(), exact.x, rtol=2e-3, atol=1e-2)
        assert not torch.equal(rows.squared_norms, exact.squared_norms)

    def test_overflow_in_half_precision_names_the_row(
        self, small_dataset: Dataset, small_extractor: Extractor, tmp_path
    ):
        with extract_features(small_dataset, small_extractor, features_dir=tmp_path, dtype="float16") as features:
            load_rows(features, "test", OneRowTooLarge(17, 100.0))
            with pytest.raises(
                UserError,
                match=r"^features of the test split: row 17 is not finite after normalisation in float16; "
                r"use --feature_dtype=float32 or another --input_norm$",
            ):
                load_rows(features, "test", OneRowTooLarge(17, 1e6))

    def test_rows_are_counted_over_blocks(self, digits_features: FeatureCache):
        with pytest.raises(UserError, match=r"^features of the train split: row 1030 is not finite .* in float32"):
            load_rows(digits_features, "train", OneRowTooLarge(1030, torch.inf))


class TestAugmentedRows:
    @pytest.fixture
    def make(self, small_dataset: Dataset, small_extractor: Extractor):
        def make_rows(*, seed: int = 0, physical_batch_size: int = 256, copies: int = 1) -> AugmentedRows:
            return AugmentedRows(
                small_dataset.x_train,
                torch.from_numpy(small_dataset.y_train),
                small_extractor,
                Standardize(torch.full((6,), 0.5), torch.full((6,), 2.0)),
                RandomKey.from_seed(seed),
                physical_batch_size,
                copies,
            )

        return make_rows

    INDICES = np.array([3, 4, 10, 11, 40, 59])

    def test_shapes_labels_and_no_norms(self, make, small_dataset):
        pieces = copies(make(physical_batch_size=4).pieces(self.INDICES, step=2))
        assert [tuple(piece.x.shape) for piece in pieces] == [(4, 24), (2, 24)]
        assert all(piece.squared_norms is None and piece.x.dtype == torch.float32 for piece in pieces)
        assert joined(pieces)[1].tolist() == small_dataset.y_train[self.INDICES].tolist()

    def test_copies_stand_in_succession_and_whole(self, make, small_dataset):
        pieces = copies(make(physical_batch_size=7, copies=3).pieces(self.INDICES, step=2))
        assert [tuple(piece.x.shape) for piece in pieces] == [(6, 24)] * 3  # two examples each: 7 rows hold no third
        x, y = joined(pieces)
        assert y.tolist() == small_dataset.y_train[self.INDICES].repeat(3).tolist()
        assert len(torch.unique(x.view(6, 3, -1)[0], dim=0)) == 3  # each copy in its own way
        again, _ = joined(make(physical_batch_size=100, copies=3).pieces(self.INDICES[2:3], step=2))
        assert torch.equal(again, x[6:9])  # whatever else is in the batch

    def test_rows_are_features_of_windows_of_their_images(self, make, small_dataset, small_extractor):
        x, _ = joined(make().pieces(self.INDICES, step=0))
        for row, index in zip(x, self.INDICES, strict=True):
            padded = np.pad(to_channels_first_float(small_dataset.x_train[[index]])[0], ((0, 0), (4, 4), (4, 4)))
            windows = np.stack([padded[:, t : t + 8, s : s + 8] for t in range(9) for s in range(9)])
            windows = np.concatenate([windows, windows[..., ::-1]])
            candidates = ((small_extractor(torch.from_numpy(windows.copy())) - 0.5) * 2).flatten(1)
            assert (candidates - row).abs().amax(1).min() < 1e-6

    def test_same_key_and_step_same_rows(self, make):
        first, second = (joined(make().pieces(self.INDICES, step=5))[0] for _ in range(2))
        assert torch.equal(first, second)

    @pytest.mark.parametrize("other", [{"seed": 1}, {"step": 6}])
    def test_another_key_or_step_other_rows(self, make, other):
        first, _ = joined(make().pieces(self.INDICES, step=5))
        second, _ = joined(make(seed=other.get("seed", 0)).pieces(self.INDICES, step=other.get("step", 5)))
        assert not torch.allclose(first, second)

    @pytest.mark.parametrize("physical_batch_size", [1, 2, 5])
    def test_physical_batch_size_changes_nothing(self, make, physical_batch_size):
        whole, _ = joined(make().pieces(self.INDICES, step=5))
        parts, _ = joined(make(physical_batch_size=physical_batch_size).pieces(self.INDICES, step=5))
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)

    def test_an_examples_augmentation_does_not_depend_on_other_examples(self, make):
        together, _ = joined(make().pieces(self.INDICES, step=5))
        alone, _ = joined(make().pieces(self.INDICES[3:], step=5))
        torch.testing.assert_close(alone, together[3:], rtol=0, atol=1e-6)

    def test_an_empty_batch_has_no_pieces(self, make):
        assert list(make().pieces(np.array([], dtype=np.int64), step=0)) == []

    def test_rows_can_be_trained_on(self, make):
        """Rows made in inference mode may not be saved for a backward pass."""
        x, y = joined(make().pieces(self.INDICES, step=0))
        layer = nn.Linear(24, 3)
        nn.functional.cross_entropy(layer(x), y).backward()
        assert layer.weight.grad is not None
