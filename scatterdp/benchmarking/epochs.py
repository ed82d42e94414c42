"""Training by whole steps, as each framework is meant to be used: batch selection, gradients, clipping, noise, update.

| name | a step |
|---|---|
| ``torch`` | without privacy: shuffled batches, autograd, SGD |
| ``scatterdp`` | :class:`scatterdp.training.privacy_engine.PrivacyEngine`, engine ``mixed_ghost``: Poisson batches |
| ``opacus_hooks``, ``opacus_ghost`` | Opacus' ``make_private`` with ``grad_sample_mode`` of that name, Poisson batches, ``BatchMemoryManager`` |

All compute a logical batch in pieces of one physical size and divide sums by the expected batch size. Opacus' loader gathers a piece at once, not row by
row as a ``TensorDataset`` would: in its favour.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scatterdp.benchmarking.agreement import compare
from scatterdp.benchmarking.contenders import channels_first, losses
from scatterdp.engines import loop_engine
from scatterdp.training.privacy_engine import PrivacyEngine

_ENDLESS = 10**6  # epochs
_ROUNDING = 5e-7  # of activations below one in float32, after a few layers
_CHECK_LR = 100.0  # large, so that rounding the weights takes nothing off the gradient's digits


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The same for all frameworks.

    Args:
        batch_size: expected logical batch.
        physical_batch_size: rows that are computed at once, at most.
        noise_multiplier, max_grad_norm, lr, momentum: of DP-SGD; the first two have no effect without privacy.
    """

    batch_size: int
    physical_batch_size: int
    noise_multiplier: float
    max_grad_norm: float
    lr: float
    momentum: float


class TorchTraining:
    """A copy of ``model`` that is trained a few steps at a time.

    Args:
        start: a key of :data:`TRAININGS`.
        model: its initial weights; stays as it is.
        x: ``(N, D)`` float32.
        y: ``(N,)`` int64.
        settings: see there.
    """

    def __init__(self, start: str, model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> None:
        self.model = copy.deepcopy(model)
        self._steps = TRAININGS[start](self.model, x, y, settings)

    def train(self, steps: int) -> None:
        """Take steps."""
        for _ in itertools.islice(self._steps, steps):
            pass

    def weights(self) -> list[np.ndarray]:
        """Of every parameter, in the model's order."""
        return [p.detach().numpy().copy() for p in self.model.parameters()]


def _sgd(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)


def non_private(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> Iterator[None]:
    """Endless steps of ``torch``."""
    optimizer = _sgd(model, settings)
    while True:
        full = len(x) // settings.batch_size * settings.batch_size
        for rows in torch.randperm(len(x))[:full].split(settings.batch_size):
            optimizer.zero_grad()
            for piece in rows.split(settings.physical_batch_size):
                losses(model(x[piece]), y[piece]).sum().div(settings.batch_size).backward()
            optimizer.step()
            yield


def scatterdp(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> Iterator[None]:
    """Steps of ``scatterdp``, more than anyone takes."""
    engine = PrivacyEngine(
        model,
        batch_size=settings.batch_size,
        sample_size=len(x),
        epochs=_ENDLESS,
        max_grad_norm=settings.max_grad_norm,
        noise_multiplier=settings.noise_multiplier,
    )
    optimizer: Any = _sgd(model, settings)
    engine.attach(optimizer)
    for rows, last in engine.batches(settings.physical_batch_size):
        loss = losses(model(x[rows]), y[rows])
        if last:
            optimizer.step(loss=loss)
            yield
        else:
            optimizer.virtual_step(loss=loss)


class _Rows(torch.utils.data.Dataset[Any]):
    """Rows that a loader may ask for together."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(indices, dtype=torch.long)
        return self.x[rows], self.y[rows]


def opacus(mode: str) -> Callable[[nn.Module, Tensor, Tensor, Settings], Iterator[None]]:
    """Endless steps of Opacus.

    Args:
        mode: ``hooks`` or ``ghost``.
    """

    def steps(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> Iterator[None]:
        from opacus import PrivacyEngine as OpacusEngine  # a second to import
        from opacus.utils.batch_memory_manager import BatchMemoryManager

        made: Any = OpacusEngine().make_private(
            module=channels_first(model),
            optimizer=_sgd(model, settings),
            criterion=nn.CrossEntropyLoss(),
            # drop_last: the sampling rate is 1 ÷ the loader's length, which is then ⌊N / batch_size⌋
            data_loader=torch.utils.data.DataLoader(
                _Rows(x, y), batch_size=settings.batch_size, drop_last=True, collate_fn=lambda rows: rows
            ),
            noise_multiplier=settings.noise_multiplier,
            max_grad_norm=settings.max_grad_norm,
            poisson_sampling=True,
            grad_sample_mode=mode,
        )
        wrapped, optimizer, *criterion, loader = made
        loss: Any = criterion[0] if criterion else nn.CrossEntropyLoss()
        with BatchMemoryManager(
            data_loader=loader, max_physical_batch_size=settings.physical_batch_size, optimizer=optimizer
        ) as pieces:
            while True:
                for inputs, labels in pieces:
                    optimizer.zero_grad()
                    loss(wrapped(inputs), labels).backward()
                    optimizer.step()
                    if not optimizer._is_last_step_skipped:
                        yield

    return steps


#: Name → endless steps of ``(model, x, y, settings)``; the model itself is trained.
TRAININGS: dict[str, Callable[[nn.Module, Tensor, Tensor, Settings], Iterator[None]]] = {
    "torch": non_private,
    "scatterdp": scatterdp,
    "opacus_hooks": opacus("hooks"),
    "opacus_ghost": opacus("ghost"),
}


@torch.no_grad()
def separated(model: nn.Module, x: Tensor) -> Tensor:
    """Which of ``(b, D)`` examples rounding cannot lead elsewhere: ``(b,)`` bool.

    Where the two largest values of a max-pooling window differ by rounding alone, one framework passes its gradient to the one and another
    to the other, both rightly, and per-example gradients differ by far more than rounding.
    """
    gaps = [torch.full((len(x),), float("inf"))]

    def look(pool: nn.MaxPool2d, inputs: tuple[Tensor]) -> None:
        size, stride = int(pool.kernel_size), int(pool.stride)  # pyright: ignore[reportArgumentType]
        windows = inputs[0].unfold(2, size, stride).unfold(3, size, stride).flatten(4)
        largest = windows.topk(2, dim=-1).values
        gaps.append((largest[..., 0] - largest[..., 1]).flatten(1).amin(1))

    hooks = [layer.register_forward_pre_hook(look) for layer in model.modules() if isinstance(layer, nn.MaxPool2d)]
    model(x)
    for hook in hooks:
        hook.remove()
    return torch.stack(gaps).amin(0) > _ROUNDING


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Gradient sums of a batch by ``loop``, one example at a time through autograd.

    Args:
        model: initial weights.
        x, y: the batch.
        max_grad_norm: half of the examples' gradients are longer.
        clipped, plain: sums by parameter name, with that bound and without.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    max_grad_norm: float
    clipped: dict[str, Tensor]
    plain: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, y: Tensor) -> Reference:
        """Of these examples and weights."""
        plain = loop_engine(model, losses, x, y, max_grad_norm=1e9)
        median = plain.norms.median().item()
        clipped = loop_engine(model, losses, x, y, max_grad_norm=median)
        return cls(model=model, x=x, y=y, max_grad_norm=median, clipped=clipped.gradients, plain=plain.gradients)

    def settings(self, physical_batch_size: int) -> Settings:
        """One step with these, on the batch as all the data there is, moves the weights by its gradient sum, without noise."""
        return Settings(
            batch_size=len(self.x),
            physical_batch_size=physical_batch_size,
            noise_multiplier=0.0,
            max_grad_norm=self.max_grad_norm,
            lr=_CHECK_LR,
            momentum=0.9,
        )

    def difference(self, weights: list[np.ndarray], *, private: bool) -> float:
        """How far a step that led to ``weights`` is from the sum: largest difference ÷ the parameter's largest entry."""
        named = zip(dict(self.model.named_parameters()).items(), weights, strict=True)
        moved = {name: (before.detach() - torch.from_numpy(after)) / _CHECK_LR for (name, before), after in named}
        return compare(moved, self.clipped if private else self.plain, len(self.x))[1]
