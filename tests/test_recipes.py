"""Recipes: the published numbers, and a function of N for everything else."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scatterdp.datasets.published import PUBLISHED
from scatterdp.recipes import RECIPES, Recipe, generic_recipe, recipe_for


def test_every_published_data_set_has_a_recipe():
    assert RECIPES.keys() == PUBLISHED.keys()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnist", {"batch_size": 4096, "lr": 8, "epochs": 40, "input_norm": "BN"}),
        ("fmnist", {"batch_size": 8192, "lr": 16, "epochs": 40, "input_norm": "GroupNorm"}),
        ("cifar10", {"batch_size": 8192, "lr": 4, "epochs": 60, "input_norm": "BN", "mirror": True}),
        ("digits", {"batch_size": 512, "lr": 4, "epochs": 30, "input_norm": "GroupNorm"}),
    ],
)
def test_table(name, expected):
    common = {"num_groups": 27, "bn_noise_multiplier": 8.0, "momentum": 0.9, "max_grad_norm": 0.1, "mirror": False}
    assert dataclasses.asdict(recipe_for(name, PUBLISHED[name].train_count)) == common | expected


@pytest.mark.parametrize(
    ("num_examples", "batch_size"),
    [(1, 1), (2, 2), (1999, 1999), (2000, 512), (3072, 512), (6000, 1000), (60_000, 10_000)],
)
def test_generic_batch_sizes(num_examples, batch_size):
    assert generic_recipe(num_examples).batch_size == batch_size


@given(num_examples=st.integers(1, 10**8))
def test_generic_recipe_fits_any_size_and_costs_no_statistics(num_examples):
    recipe = recipe_for("a person's own images", num_examples)
    assert recipe == generic_recipe(num_examples)
    assert 1 <= recipe.batch_size <= num_examples
    assert recipe.input_norm == "GroupNorm"
    assert 81 % recipe.num_groups == 0


def test_recipes_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["mnist"].lr = 1  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        cast(Any, Recipe)(1, 2, 3, "BN")
