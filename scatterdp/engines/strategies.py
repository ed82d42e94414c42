"""Per-example gradients in full, by the ways of the literature, and the engines that clip them.

| name | how | source |
|---|---|---|
| ``loop`` | one example at a time | the witness of all others |
| ``vmap`` | ``torch.func``: the gradient of one example, vectorised | any layer that it can vectorise |
| ``hooks`` | Opacus' GradSampleModule | Yousefpour et al. 2021, arXiv 2109.12298 |
| ``crb`` | a convolution whose groups are the examples | Rochette, Manoel & Tramel 2019, arXiv 1912.06015 |
| ``unfold`` | inputs laid out as matrices, one product an example | :mod:`scatterdp.engines.rules` |
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.engines import bookkeeping
from scatterdp.engines.contract import Engine, PerExampleLoss, check_copies
from scatterdp.engines.modules import check_private, check_unchanged, full_name, layers_of, own_parameters, versions_of
from scatterdp.engines.precision import full_precision, in_single_precision
from scatterdp.engines.rules import ConvolutionRule, Known, Rule, padded
from scatterdp.errors import UserError

Strategy = Callable[[nn.Module, PerExampleLoss, Tensor, Tensor], dict[str, Tensor]]


def loop(model: nn.Module, loss: PerExampleLoss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """One example at a time through autograd: slow, for any model."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows: list[tuple[Tensor, ...]] = []
    for i in range(len(x)):
        with torch.enable_grad():
            # Copied: products round by where a row lies in memory, too, and one example more shifts the later rows.
            total = loss(model(x[i : i + 1].clone()), y[i : i + 1].clone()).sum()
            rows.append(
                torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)
            )
    return {
        name: torch.stack([row[k] for row in rows]) if rows else p.new_zeros(0, *p.shape)
        for k, (name, p) in enumerate(parameters.items())
    }


def vmap(model: nn.Module, loss: PerExampleLoss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradient of one example by ``torch.func.grad``, vectorised over the batch."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if len(x) == 0:
        return {name: p.new_zeros(0, *p.shape) for name, p in parameters.items()}
    rest = {
        name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers()) if name not in parameters
    }

    def loss_of_one(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, {**rest, **values}, (x[None],))
        return loss(outputs, y[None]).sum()

    return torch.func.vmap(torch.func.grad(loss_of_one), in_dims=(None, 0, 0), randomness="different")(parameters, x, y)


def hooks(model: nn.Module, loss: PerExampleLoss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Opacus' hooks, on a copy of the model: the caller's keeps none.

    Raises:
        UserError: a layer whose gradients Opacus 1.6 gets wrong (padding indices, padding that is not zeros), or that it refuses (with buffers).
    """
    from opacus.grad_sample import GradSampleModule  # a second to import

    for name, module in layers_of(model):
        if next(module.buffers(), None) is not None:
            raise UserError(
                f"module {name or type(module).__name__!r} ({type(module).__name__}): Opacus serves no trainable layer with buffers; take "
                "another engine"
            )
        if getattr(module, "padding_idx", None) is not None or getattr(module, "padding_mode", "zeros") != "zeros":
            raise UserError(
                f"module {name or type(module).__name__!r} ({type(module).__name__}): Opacus ignores its padding; take another engine"
            )
        if isinstance(module, nn.LayerNorm) and module.bias is None:
            raise UserError(
                f"module {name or 'LayerNorm'!r} (LayerNorm): Opacus serves none without a bias; take another engine"
            )
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if len(x) == 0:
        return {name: p.new_zeros(0, *p.shape) for name, p in parameters.items()}
    own = copy.deepcopy(model)
    for _, module in layers_of(own):
        module.training = True  # or Opacus does not look; none of the layers that it serves is another one then
        if isinstance(module, nn.Conv2d):  # Opacus reads images as if their rows came first in memory
            module.register_forward_pre_hook(lambda _, given: tuple(images.contiguous() for images in given))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = GradSampleModule(own, loss_reduction="sum")
        with torch.enable_grad():
            loss(wrapped(x), y).sum().backward()
    gradients: dict[str, Any] = {
        name: vars(p).get("grad_sample") for name, p in wrapped._module.named_parameters() if p.requires_grad
    }
    return {
        name: p.new_zeros(len(x), *p.shape) if gradients[name] is None else gradients[name].detach()
        for name, p in parameters.items()
    }


def crb(model: nn.Module, loss: PerExampleLoss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """One backward pass; a convolution's gradients by one convolution with a group for every example."""
    rules = bookkeeping.backward(model, loss, x, y)
    result: dict[str, Tensor] = {}
    with full_precision(x.device):
        for name, rule in rules:
            if isinstance(rule, ConvolutionRule) and len(x):
                gradients: dict[str, Tensor] = {}
                if "weight" in rule.trainable:
                    gradients["weight"] = _grouped_weight_gradient(rule)
                if "bias" in rule.trainable:
                    gradients["bias"] = rule.gradients.flatten(2).sum(2)
            else:
                gradients = rule.per_example()
            result |= {full_name(name, parameter): values for parameter, values in gradients.items()}
    return result


def _grouped_weight_gradient(rule: ConvolutionRule) -> Tensor:
    """Rochette et al. 2019, section 3: stride and dilation change places, examples become groups."""
    module, a, g = rule.module, padded(rule.module, rule.inputs), rule.gradients
    size, groups = len(a), module.groups
    inputs = a.shape[1] // groups
    # (b, G, C/G, …) → (C/G, b·G, …): what were a group's channels is now the batch.
    a = a.reshape(size * groups, inputs, *a.shape[2:]).transpose(0, 1)
    kernels = g.reshape(size * module.out_channels, 1, *g.shape[2:])
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(module.kernel_size)]
    products = convolve(a, kernels, stride=module.dilation, dilation=module.stride, groups=size * groups)
    # The stride may leave inputs that no kernel position reached: their products come after the kernel's.
    products = products[(slice(None), slice(None), *(slice(k) for k in module.kernel_size))]
    return products.unflatten(1, (size, module.out_channels)).permute(1, 2, 0, *range(3, products.ndim + 1))


STRATEGIES: dict[str, Strategy] = {
    "loop": loop,
    "vmap": vmap,
    "hooks": hooks,
    "crb": crb,
    "unfold": bookkeeping.per_example_gradients,
}


def per_example_gradients(
    model: nn.Module, loss: PerExampleLoss, x: Tensor, y: Tensor, *, strategy: str = "unfold", copies: int = 1
) -> dict[str, Tensor]:
    """The gradient of every example's own loss: ``(b, *shape)`` by parameter name.

    Args:
        model: maps ``x (b, …)`` to outputs ``(b, …)``, example by example.
        loss: per-example loss, ``(outputs, y) -> (b,)``.
        x, y: a batch.
        strategy: a key of :data:`STRATEGIES`.
        copies: rows in succession that are copies of one example; its loss is the mean of theirs.

    Raises:
        UserError: a layer that cannot be private, or that the strategy does not know; losses that are not one an example.
        ValueError: an unknown strategy, or copies that do not divide the rows.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model={model!r}: expected a torch.nn.Module")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r}: expected one of {', '.join(STRATEGIES)}")
    check_private(model)
    check_copies(x, copies)
    before = versions_of(model)

    def of_rows(outputs: Tensor, y: Tensor) -> Tensor:
        losses = loss(outputs, y)
        if losses.shape != y.shape[:1]:
            raise UserError(
                f"loss of shape {tuple(losses.shape)} for {len(y)} examples: expected one number an example, "
                'reduction="none"'
            )
        return losses

    gradients = {name: in_single_precision(g) for name, g in STRATEGIES[strategy](model, of_rows, x, y).items()}
    check_unchanged(model, before)
    if copies == 1:
        return gradients
    return {name: rows.unflatten(0, (-1, copies)).mean(1) for name, rows in gradients.items()}


def engine_of(strategy: str) -> Engine:
    """The engine that computes per-example gradients by a strategy and clips them."""

    def rules_of(
        model: nn.Module, loss: PerExampleLoss, x: Tensor, y: Tensor, *, copies: int
    ) -> list[tuple[str, Rule]]:
        gradients = per_example_gradients(model, loss, x, y, strategy=strategy, copies=copies)
        rules: list[tuple[str, Rule]] = [
            (name, Known(module, {p: gradients[full_name(name, p)] for p, _ in own_parameters(module)}))
            for name, module in layers_of(model)
        ]
        with full_precision(x.device):
            for _, rule in rules:
                rule.measure(ghost=False)
        return rules

    return bookkeeping.engine_on(rules_of)
