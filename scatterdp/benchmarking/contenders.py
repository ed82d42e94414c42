"""The ways to a batch's gradient that are compared: without clipping, every engine of this project, and Opacus' own two.

| name | a step |
|---|---|
| ``non_private`` | the gradient of the mean loss, by autograd: what a step costs without privacy |
| ``loop``, ``vmap``, ``hooks``, ``crb``, ``ghost``, ``mixed_ghost`` | an engine of :mod:`scatterdp.engines`: clipped gradients, summed |
| ``privacy_engine`` | what :class:`scatterdp.training.privacy_engine.PrivacyEngine` does with a batch: ``mixed_ghost`` on all of it at once: the forward pass is the user's |
| ``opacus_hooks`` | Opacus' ``GradSampleModule``, and its ``DPOptimizer.clip_and_accumulate`` (Yousefpour et al. 2021, arXiv 2109.12298) |
| ``opacus_ghost`` | Opacus' fast gradient clipping with ghost norms: two backward passes (Li et al. 2022, arXiv 2110.05679) |

No step adds noise or changes weights: both cost the same for all.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.engines import ENGINES
from scatterdp.engines.bookkeeping import Recorder, by_the_shapes, clip
from scatterdp.heads import Images

#: Gradients by parameter name.
Step = Callable[[], dict[str, Tensor]]
#: ``(model, x (b, …), y (b,), max_grad_norm)`` → a step on this batch that can be called again and again.
Prepare = Callable[[nn.Module, Tensor, Tensor, float], Step]


@dataclass(frozen=True)
class Contender:
    """How to prepare a step; ``clips``: it gives the sum of clipped gradients, otherwise the mean of plain ones."""

    prepare: Prepare
    clips: bool = True


def losses(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of each example, ``(b,)``."""
    return F.cross_entropy(outputs, y, reduction="none")


def non_private(model: nn.Module, x: Tensor, y: Tensor, max_grad_norm: float) -> Step:
    """The mean loss and its gradient; nothing is clipped."""
    parameters = dict(model.named_parameters())

    def step() -> dict[str, Tensor]:
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(parameters.values()))
        return dict(zip(parameters, gradients, strict=True))

    return step


def engine_contender(name: str) -> Contender:
    """An engine of this project."""
    engine = ENGINES[name]

    def prepare(model: nn.Module, x: Tensor, y: Tensor, max_grad_norm: float) -> Step:
        return lambda: engine(model, losses, x, y, max_grad_norm=max_grad_norm).gradients

    return Contender(prepare)


def privacy_engine(model: nn.Module, x: Tensor, y: Tensor, max_grad_norm: float) -> Step:
    """The clipped sum of one whole batch, from the losses that the user computes."""
    own = copy.deepcopy(model)
    recorder = Recorder(own)

    def step() -> dict[str, Tensor]:
        rules = recorder.rules(losses(own(x), y), use_ghost=by_the_shapes)
        return clip(rules, len(x), max_grad_norm=max_grad_norm, clipping="flat").gradients

    return step


def channels_first(model: nn.Module) -> nn.Module:
    """The model itself, its images laid in memory as Opacus 1.6 takes them to be: of others it gets the norms wrong."""
    for module in model.modules():
        if isinstance(module, Images):
            module.channels_last = False
    return model


def opacus_hooks(model: nn.Module, x: Tensor, y: Tensor, max_grad_norm: float) -> Step:
    """Per-example gradients by Opacus' hooks, clipped and summed by its optimizer."""
    from opacus.grad_sample import GradSampleModule  # a second to import
    from opacus.optimizers import DPOptimizer

    wrapped: Any = GradSampleModule(channels_first(copy.deepcopy(model)))
    sgd = torch.optim.SGD(wrapped.parameters())
    optimizer = DPOptimizer(sgd, noise_multiplier=0.0, max_grad_norm=max_grad_norm, expected_batch_size=len(x))

    def step() -> dict[str, Tensor]:
        with warnings.catch_warnings(action="ignore"):
            F.cross_entropy(wrapped(x), y).backward()
        optimizer.clip_and_accumulate()
        sums = {name: vars(p)["summed_grad"] for name, p in wrapped._module.named_parameters()}
        optimizer.zero_grad(set_to_none=True)
        return sums

    return step


def opacus_ghost(model: nn.Module, x: Tensor, y: Tensor, max_grad_norm: float) -> Step:
    """Norms from a first backward pass, the clipped sum from a second one of the weighted loss."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    bound: Any = max_grad_norm  # annotated as an int there
    wrapped: Any = GradSampleModuleFastGradientClipping(channels_first(copy.deepcopy(model)), max_grad_norm=bound)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(wrapped.parameters()),
        noise_multiplier=0.0,
        max_grad_norm=max_grad_norm,
        expected_batch_size=len(x),
    )
    criterion = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss())

    def step() -> dict[str, Tensor]:
        with warnings.catch_warnings(action="ignore"):
            criterion(wrapped(x), y).backward()
        sums = {name: p.grad for name, p in wrapped._module.named_parameters()}
        optimizer.zero_grad(set_to_none=True)
        return sums

    return step


#: ``linear`` is for one linear layer; these are for networks.
CONTENDERS: dict[str, Contender] = {
    "non_private": Contender(non_private, clips=False),
    **{name: engine_contender(name) for name in ENGINES if name != "linear"},
    "privacy_engine": Contender(privacy_engine),
    "opacus_hooks": Contender(opacus_hooks),
    "opacus_ghost": Contender(opacus_ghost),
}
