"""What several processes compute, and one alone: test_distributed.py starts this file with ``torchrun`` and compares.

torchrun --nproc_per_node=K tests/training/distributed_cases.py FEATURES_FOLDER OUT_FOLDER
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

import scatterdp
from scatterdp.cache import FeatureCache
from scatterdp.engines import ENGINES
from scatterdp.errors import UserError
from scatterdp.heads import Standardize
from scatterdp.linear import Budget, Problem, class_means, covariance, fit_linear, least_squares, newton
from scatterdp.linear import sphere as centring
from scatterdp.linear.choice import HEADS, make_method
from scatterdp.linear.gradient_descent import GradientDescent
from scatterdp.linear.sphere import UnitSphere, release_centre
from scatterdp.privacy.noise import gaussian_noise
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.statistics import bounds_from_norm, release_channel_statistics
from scatterdp.training import loop
from scatterdp.training.device import resolve_device
from scatterdp.training.distributed import BLOCK, Processes, RowsOfProcess, in_order, part_of, processes_of_environment
from scatterdp.training.evaluation import evaluate
from scatterdp.training.fit import fit
from scatterdp.training.loop import TrainingState, train
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.privacy_engine import PrivacyEngine
from scatterdp.training.rows import AugmentedRows, FeatureRows, Rows

N, CLASSES = 1437, 10
KEY = RandomKey.from_seed(1)

PLANS: dict[str, dict[str, Any]] = {
    "poisson": {"batch_size": 300},
    "few rows a batch": {"batch_size": 2, "epochs": 1, "max_steps": 6},
    "without noise": {"batch_size": 300, "noise_multiplier": 0.0, "momentum": 0.0},
    "full batch": {"batch_size": N},
    "shuffled": {"batch_size": 300, "sampling": "shuffle"},
    "Adam": {"batch_size": 300, "optimizer": "Adam", "lr": 0.01},
}


def all_rows() -> FeatureRows:
    digits = scatterdp.load_dataset("digits")
    x = torch.from_numpy(digits.x_train).flatten(1).float() / 16
    return FeatureRows(x, torch.from_numpy(digits.y_train), x.square().sum(1), 100)


def held_rows(processes: Processes) -> FeatureRows:
    rows = all_rows()
    part = slice(*part_of(N, processes.rank, processes.size))
    return FeatureRows(rows.x[part], rows.y[part], rows.squared_norms[part], 100)


def make_plan(**changes: Any) -> TrainingPlan:
    values: dict[str, Any] = {"num_examples": N, "epochs": 3, "lr": 2.0, "noise_multiplier": 2.0, "input_norm": "none"}
    return TrainingPlan(**(values | changes))


@contextmanager
def noise_of_the_key_alone() -> Iterator[None]:
    """Noise that is not bound to sums, whose last digits tell how many processes added them: what is compared is then all but the noise's key."""
    with ExitStack() as patches:
        for module in (loop, class_means, covariance, least_squares, newton, centring):
            patches.enter_context(mock.patch.object(module, "bound_to_sums", lambda key, *sums: key))
        yield


def weights_of(model: nn.Module, rows: Rows, plan: TrainingPlan, processes: Processes, *, begin: int) -> dict[str, Any]:
    first, stop = part_of(N, processes.rank, processes.size)
    held = RowsOfProcess(rows, first, stop, begin=begin)
    state = TrainingState.begin(model, plan)
    entry = train(state, held, plan, key=KEY, engine=ENGINES[plan.engine], processes=processes)
    return {"weights": dict(model.state_dict()), "event": repr(entry.event)}


def trainings(processes: Processes) -> dict[str, Any]:
    rows, (first, _) = held_rows(processes), part_of(N, processes.rank, processes.size)
    found: dict[str, Any] = {}
    for name, changes in PLANS.items():
        model = nn.Linear(64, CLASSES)
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        found[name] = weights_of(model, rows, make_plan(**changes), processes, begin=first)
        found[name]["accuracy and loss"] = evaluate(model, rows, processes=processes)
    return found


def convolutional(processes: Processes) -> dict[str, Any]:
    """A network on images that are augmented anew at every step, two copies each."""
    digits = scatterdp.load_dataset("digits")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, CLASSES)
    )
    rows = AugmentedRows(
        images=digits.x_train,
        y=torch.from_numpy(digits.y_train),
        extractor=scatterdp.make_extractor("pixels", digits.image_shape),
        normalizer=Standardize(torch.full((1,), 0.5), torch.full((1,), 2.0)),
        key=KEY,
        physical_batch_size=64,
        copies=2,
    )
    plan = make_plan(batch_size=200, epochs=1, engine="mixed_ghost", head="cnn", augmentation_multiplicity=2)
    return weights_of(model, rows, plan, processes, begin=0)


def linear_heads(processes: Processes) -> dict[str, Any]:
    """Every way to fit a linear head, with the same key, and the centre."""
    sphere, held = UnitSphere(64), held_rows(processes)
    x = sphere(held.x)
    rows = FeatureRows(x, held.y, x.square().sum(1))
    problem = Problem(num_examples=N, num_features=64, num_classes=CLASSES)
    found: dict[str, Any] = {}
    for head in HEADS[1:]:
        for channels in (None, 4) if head == "preconditioned" else (None,):
            method = make_method(head, problem, Budget(epsilon=3.0, delta=1e-5), channels=channels)
            if isinstance(method, GradientDescent):
                method = dataclasses.replace(method, epochs=3)
            solution = method.solve(rows, noise_multiplier=3.0, key=KEY, processes=processes)
            found[f"{head} {channels}"] = {
                "weights": {"weight": solution.weight, "bias": solution.bias},
                "event": repr([entry.event for entry in solution.entries]),
            }
    centre, _ = release_centre(rows, problem, noise_multiplier=3.0, key=KEY, processes=processes)
    return found | {"centre": {"weights": {"mean": centre}}}


def linear_fit(processes: Processes) -> dict[str, Any]:
    """From arrays, chosen and solved for; the noise of another number of processes is other noise."""
    rows = all_rows()
    found = fit_linear(
        rows.x.numpy(),
        rows.y.numpy(),
        num_classes=CLASSES,
        budget=Budget(epsilon=3.0, delta=1e-5),
        key=KEY if processes.rank == 0 else RandomKey.from_seed(99),  # rank 0's counts
        head="class_means",
        processes=processes,
    )
    return {"weights": dict(found.head.state_dict()), "ledger": found.ledger.to_json(), "settings": found.settings}


def statistics(processes: Processes) -> torch.Tensor:
    """Released from each process's blocks."""
    images = all_rows().x.view(N, 1, 8, 8)[slice(*part_of(N, processes.rank, processes.size))]
    released, _ = release_channel_statistics(
        images.split(BLOCK),
        num_examples=N,
        bounds=bounds_from_norm(8.0, 1),
        noise_multiplier=1.0,
        key=KEY,
        of_all=lambda sums: in_order(sums, processes),
    )
    return torch.stack([released.mean, released.variance])


def whole_fits(processes: Processes, features: FeatureCache) -> dict[str, Any]:
    """:func:`scatterdp.training.fit.fit` with released statistics and a preconditioner."""
    digits = scatterdp.load_dataset("digits")
    extractor = scatterdp.make_extractor("scatternet", digits.image_shape)
    found: dict[str, Any] = {}
    for noise_multiplier in (0.0, 4.0):
        plan = make_plan(
            batch_size=512,
            noise_multiplier=noise_multiplier,
            input_norm="BN",
            precondition=8,
            epochs=2,
            early_stop=True,
        )
        told: list[int] = []
        result = fit(
            features,
            plan,
            extractor=extractor,
            key=KEY if processes.rank == 0 else RandomKey.from_seed(99),
            train_metrics=True,
            on_metrics=lambda row, told=told: told.append(row["epoch"]),
            on_checkpoint=lambda checkpoint, told=told: told.append(-checkpoint.history[-1][1]),
            processes=processes,
        )
        found[f"noise {noise_multiplier:g}"] = {
            "weights": dict(result.head.state_dict()),
            "average": result.average,
            "certificate": result.certificate,
            "metrics": [{k: v for k, v in row.items() if k != "seconds"} for row in result.metrics],
            "told": told,
        }
    return found


def refused(call: Callable[[], object]) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return "not refused"


def refusals(processes: Processes, features: FeatureCache) -> dict[str, str]:
    """What several processes are told; all of them raise it."""
    digits = scatterdp.load_dataset("digits")
    extractor = scatterdp.make_extractor("scatternet", digits.image_shape)
    plan = make_plan(batch_size=512, epochs=2, input_norm="GroupNorm")

    def diverging() -> None:
        """The last process draws other noise."""
        before = loop.gaussian_noise

        def other(*arguments: Any, key: RandomKey, **named: Any) -> torch.Tensor:
            last = processes.rank == processes.size - 1
            return gaussian_noise(*arguments, key=key.bound_to("other") if last else key, **named)

        loop.gaussian_noise = other
        try:
            fit(features, plan, extractor=extractor, key=KEY, processes=processes)
        finally:
            loop.gaussian_noise = before

    here = dataclasses.replace(plan, lr=float(1 + processes.rank))
    return {
        "diverging": refused(diverging),
        "other settings": refused(lambda: fit(features, here, extractor=extractor, processes=processes)),
        "nobody named": refused(lambda: fit(features, plan, extractor=extractor)),
        "engine": refused(
            lambda: PrivacyEngine(
                nn.Linear(2, 2), batch_size=2, sample_size=4, epochs=1, max_grad_norm=1.0, noise_multiplier=1.0
            )
        ),
        "device": refused(lambda: resolve_device("cuda:0")),
    }


def added_up(processes: Processes) -> list[torch.Tensor]:
    """Numbers whose sum depends on the order; of a length that no number of processes divides."""
    generator = torch.Generator().manual_seed(processes.rank)
    tensors = [torch.randn(shape, generator=generator) * 10 ** (3 * processes.rank) for shape in ((7,), (2, 3), ())]
    processes.add_up(tensors)
    return tensors


def results(processes: Processes, features_dir: Path) -> dict[str, Any]:
    """Everything that is compared."""
    (path,) = features_dir.glob("digits-scatternet-*.h5")
    with FeatureCache(path) as features:
        with noise_of_the_key_alone():
            compared = {
                "trainings": trainings(processes),
                "convolutional": convolutional(processes),
                "linear heads": linear_heads(processes),
            }
        return {
            **compared,
            "linear fit": linear_fit(processes),
            "statistics": statistics(processes),
            "whole fits": whole_fits(processes, features),
            "refusals": refusals(processes, features) if processes.size > 1 else {},
            "added up": added_up(processes),
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    PROCESSES = processes_of_environment()
    RESULTS = results(PROCESSES, Path(sys.argv[1]))
    torch.save(RESULTS, Path(sys.argv[2]) / f"{PROCESSES.rank}.pt")
