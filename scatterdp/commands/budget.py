"""``python -m scatterdp budget``: how much noise a budget needs, before any data are touched.

    python -m scatterdp budget --num_samples=50000 --batch_size=8192 --epochs=20 --target_epsilon=3
    python -m scatterdp budget --num_samples=1000 --batch_size=1000 --epochs=100 --bn_noise_multiplier=8 --plot=budget.png

Poisson sampling, add or remove one example; the accountants are those of every run.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import tyro

from scatterdp.commands.pictures import check_picture
from scatterdp.errors import ConfigError
from scatterdp.privacy.accounting import ACCOUNTANTS, delta_warning, epsilon_of
from scatterdp.training.plan import TrainingPlan

_TIMES_SIGMA = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
_TIMES_EPOCHS = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """The noise multiplier for a budget, by every accountant, and ε around it; no data are read."""

    num_samples: int
    """N, the number of training examples."""
    batch_size: int
    """Expected batch size; N itself for full batches."""
    epochs: int
    """Passes over the data."""
    target_epsilon: float = 3.0
    """ε of statistics and training together."""
    target_delta: float = 1e-5
    """δ; below 1/N."""
    bn_noise_multiplier: float | None = None
    """Noise multiplier of two releases of normalisation statistics before training. None: none are released."""
    plot: Path | None = None
    """Also draw ε against noise and against epochs, into this new .png file."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected an integer ≥ 1")
        if self.plot is not None:
            check_picture("plot", self.plot)
            if self.plot.exists():
                raise ConfigError(f"plot={self.plot}: is there already and is left alone; give another")

    def plan(self) -> TrainingPlan:
        """The plan that these numbers make, its noise unknown."""
        plan = TrainingPlan(
            num_examples=self.num_samples,
            batch_size=self.batch_size,
            epochs=self.epochs,
            lr=1.0,
            input_norm="none",
            delta=self.target_delta,
        )
        if self.bn_noise_multiplier is None:
            return plan
        return dataclasses.replace(plan, input_norm="BN", bn_noise_multiplier=self.bn_noise_multiplier)


def epsilon_around(plan: TrainingPlan) -> tuple[dict[str, dict[float, float]], dict[int, float]]:
    """ε of plans near this one, whose noise multiplier is known.

    Returns:
        ε by accountant and noise multiplier, and ε by epochs at the plan's noise (privacy loss distributions).
    """
    sigmas = [round(times * plan.sigma, 4) for times in _TIMES_SIGMA]
    by_accountant = {
        name: {
            sigma: epsilon_of(
                dataclasses.replace(plan, noise_multiplier=sigma).event(), delta=plan.delta, accountant=name
            )
            for sigma in sigmas
        }
        for name in ACCOUNTANTS
    }
    epochs = sorted({max(1, round(times * plan.epochs)) for times in _TIMES_EPOCHS})
    by_epochs = {number: dataclasses.replace(plan, epochs=number).epsilon() for number in epochs}
    return by_accountant, by_epochs


def budget(config: BudgetConfig) -> None:
    """Print the noise that the budget needs and what other choices would spend.

    Raises:
        UserError: see the message.
    """
    plan = config.plan()
    calibrated = {
        name: dataclasses.replace(plan, accountant=name).calibrated(target_epsilon=config.target_epsilon)
        for name in ACCOUNTANTS
    }
    best = calibrated["pld"]
    print(
        f"{plan.steps} steps, sample rate {plan.selection().sample_rate:.4g}"
        + (f", two statistics at noise multiplier {config.bn_noise_multiplier:g}" if config.bn_noise_multiplier else "")
    )
    print(f"noise multiplier for ε = {config.target_epsilon:g} at δ = {config.target_delta:g}:")
    for name, found in calibrated.items():
        print(f"  {name:<12}{found.sigma:>10.4f}")
    if warning := delta_warning(config.target_delta, config.num_samples):
        print(f"warning: {warning}")
    by_accountant, by_epochs = epsilon_around(best)
    print("\nε with other noise:")
    print("  noise multiplier" + "".join(f"{name:>13}" for name in ACCOUNTANTS))
    for sigma in by_accountant["pld"]:
        print(f"  {sigma:>16.4f}" + "".join(f"{by_accountant[name][sigma]:>13.3f}" for name in ACCOUNTANTS))
    print(f"\nε with noise multiplier {best.sigma:g} after other numbers of epochs (pld):")
    for epochs, epsilon in by_epochs.items():
        print(f"  {epochs:>6}{epsilon:>10.3f}")
    if config.plot is not None:
        from scatterdp.report.budget import plot_budget  # matplotlib takes a second to import

        plot_budget(by_accountant, by_epochs, config.plot, title=_title(config), delta=config.target_delta)
        print(f"picture: {config.plot}")


def _title(config: BudgetConfig) -> str:
    return f"N = {config.num_samples}, batch size {config.batch_size}, {config.epochs} epochs"


def run(argv: list[str]) -> None:
    """Run ``budget`` with its arguments.

    Raises:
        UserError: see the message.
    """
    budget(tyro.cli(BudgetConfig, prog="scatterdp budget", args=argv, use_underscores=True, description=__doc__))
