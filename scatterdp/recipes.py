"""Per-data-set hyperparameters that fill what the user leaves out: one table.

The recipes of the published data sets were chosen by accuracy on their public test sets, as in the literature; that
choice is not part of the guarantee. Data sets that are not in the table get :func:`generic_recipe`, a function of
the number of examples alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from scatterdp.config import InputNorm


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters of DP-SGD on ScatterNet features with a linear head."""

    batch_size: int
    lr: float
    epochs: int
    input_norm: InputNorm
    num_groups: int = 27
    bn_noise_multiplier: float = 8.0
    momentum: float = 0.9
    max_grad_norm: float = 0.1
    mirror: bool = False


RECIPES: dict[str, Recipe] = {
    "mnist": Recipe(batch_size=4096, lr=8, epochs=40, input_norm="BN"),
    "fmnist": Recipe(batch_size=8192, lr=16, epochs=40, input_norm="GroupNorm"),
    "cifar10": Recipe(batch_size=8192, lr=4, epochs=60, input_norm="BN", mirror=True),
    "digits": Recipe(batch_size=512, lr=4, epochs=30, input_norm="GroupNorm"),
}


def generic_recipe(num_examples: int) -> Recipe:
    """A recipe by size: large batches (about N/6, all of a small set) and the free normaliser."""
    batch_size = num_examples if num_examples < 2000 else max(512, num_examples // 6)
    return Recipe(batch_size=batch_size, lr=4, epochs=60, input_norm="GroupNorm")


def recipe_for(name: str, num_examples: int) -> Recipe:
    """The table's recipe for ``name``, else the generic one."""
    return RECIPES.get(name) or generic_recipe(num_examples)
