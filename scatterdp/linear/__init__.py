"""Ways to fit a linear classifier of fixed features with differential privacy, behind one function and one budget.

| head | what it releases | source |
|---|---|---|
| ``gradient_descent`` | full-batch gradients, Gaussian noise, exact accounting | Abadi et al. 2016, with sample rate 1 |
| ``dp_sgd`` | gradients of Poisson batches | Abadi et al. 2016 |
| ``preconditioned`` | a feature covariance, then gradients on evened features (DP-FC) | Mehta et al. 2022 |
| ``newton`` | gradients and Hessians of a few Newton steps | Mehta et al. 2022 |
| ``least_squares`` | ZᵀZ, ZᵀY and the smallest eigenvalue (AdaSSP) | Wang 2018 |
| ``class_means`` | the sum of each class | |

All take rows of length one (:mod:`scatterdp.linear.sphere`).
"""

from scatterdp.linear.choice import HEADS, Budget, HeadName
from scatterdp.linear.fitting import LinearFit, LinearPlan, Matrix, fit_linear, plan_linear
from scatterdp.linear.method import Problem
from scatterdp.linear.sphere import UnitSphere

__all__ = [
    "HEADS",
    "Budget",
    "HeadName",
    "LinearFit",
    "LinearPlan",
    "Matrix",
    "Problem",
    "UnitSphere",
    "fit_linear",
    "plan_linear",
]
