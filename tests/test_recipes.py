"""Recipes: the published numbers, and a function of N for everything else."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scatterdp.config import BaselinesConfig, CnnsConfig
from scatterdp.datasets.published import PUBLISHED
from scatterdp.recipes import (
    PUBLISHED_RECIPES,
    PUBLISHED_SCATTERING_CNN_RECIPES,
    RECIPES,
    Recipe,
    generic_recipe,
    recipe_for,
    recipe_of,
)
from scatterdp.training.plan import plan_from_config


def test_every_published_data_set_has_a_recipe():
    assert RECIPES.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_plans_can_be_made_of_the_recipes(name):
    recipe = recipe_for(name, PUBLISHED[name].train_count)
    assert recipe is RECIPES[name]
    plan = plan_from_config(BaselinesConfig(dataset=name), dataset_name=name, num_examples=PUBLISHED[name].train_count)
    for field in ("batch_size", "lr", "epochs", "input_norm", "num_groups", "bn_noise_multiplier", "momentum"):
        assert getattr(plan, field) == getattr(recipe, field)
    assert 2.99 < plan.epsilon() <= 3.0


@pytest.mark.parametrize(
    ("name", "noise_multiplier", "epochs"), [("mnist", 3.04, 40), ("fmnist", 4.05, 40), ("cifar10", 5.67, 60)]
)
def test_a_given_noise_multiplier_brings_the_published_settings(name, noise_multiplier, epochs):
    config = BaselinesConfig(dataset=name, noise_multiplier=noise_multiplier, accountant="rdp_classic")
    assert recipe_of(config, name, 50_000) is PUBLISHED_RECIPES[name]
    assert PUBLISHED_RECIPES[name].extractor == "scatternet"
    plan = plan_from_config(config, dataset_name=name, num_examples=PUBLISHED[name].train_count)
    assert plan.epochs == epochs
    assert plan.epsilon() == pytest.approx(3.0, abs=0.01)  # what the published noise multipliers were computed for


@pytest.mark.parametrize("name", ["mnist", "fmnist", "cifar10"])
def test_networks_have_the_published_settings_for_a_given_noise_multiplier(name):
    given = recipe_of(CnnsConfig(dataset=name, use_scattering=True, noise_multiplier=2.0), name, 50_000)
    solved = recipe_of(CnnsConfig(dataset=name, use_scattering=True), name, 50_000)
    assert given is PUBLISHED_SCATTERING_CNN_RECIPES[name]
    assert given.extractor == "scatternet"
    assert (given is solved) == (name != "mnist")
    assert (given.batch_size, given.lr, given.epochs) == (solved.batch_size, solved.lr, solved.epochs)


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_digits_and_their_mirror_images_differ(name):
    assert "mirror=True" not in RECIPES[name].extractor


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
