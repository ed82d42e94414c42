"""Which modules hold trainable parameters, and which of them cannot be trained privately.

A *layer* is a module with trainable parameters of its own; per-layer clipping and the book-keeping engines go by layers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import Tensor, nn

from scatterdp.engines.precision import SUM_DTYPES
from scatterdp.errors import UserError

#: The way out where only layers with a rule, used once, are served.
GENERAL = "take engine='vmap' (PrivacyEngine has none)"
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


def layers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of every layer, in the order of ``named_modules``."""
    return [(name, module) for name, module in model.named_modules() if any(True for _ in own_parameters(module))]


def own_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of the trainable parameters that belong to the module itself."""
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.requires_grad:
            yield name, parameter


def full_name(layer: str, parameter: str) -> str:
    """The name of a layer's parameter in the whole model."""
    return f"{layer}.{parameter}" if layer else parameter


def check_private(model: nn.Module) -> None:
    """Refuse what mixes examples or hides a parameter's gradient.

    Raises:
        UserError: batch normalisation, an instance normalisation with running statistics, a parameter in two places or of half
            precision; says the module and the way out.
    """
    seen: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and (
            module.max_norm is not None or module.scale_grad_by_freq or module.sparse
        ):
            raise UserError(
                f"module {name or 'Embedding'!r} (Embedding): max_norm changes weights by the examples' indices, scale_grad_by_freq mixes "
                "examples, and sparse gradients have no per-example form; make it without them"
            )
    for name, module in model.named_modules(remove_duplicate=False):
        label = f"module {name or type(model).__name__!r} ({type(module).__name__})"
        if isinstance(module, nn.modules.instancenorm._InstanceNorm):
            if module.track_running_stats:
                raise UserError(f"{label}: keeps running statistics of private data; set track_running_stats=False")
        elif isinstance(module, _BATCH_NORMS) and (module.training or not module.track_running_stats):
            raise UserError(
                f"{label}: batch normalisation mixes examples, so no per-example gradient exists; swap it for group "
                "normalisation (scatterdp.engines.without_batch_norm(model) does), or freeze it with .eval()"
            )
        for parameter_name, parameter in own_parameters(module):
            full = full_name(name, parameter_name)
            if id(parameter) in seen:
                raise UserError(
                    f"{label}: its {parameter_name} is the same tensor as {seen[id(parameter)]}; give each module a "
                    "parameter of its own, or freeze it with requires_grad_(False)"
                )
            seen[id(parameter)] = full
            if parameter.dtype not in SUM_DTYPES:
                raise UserError(
                    f"{label}: its {parameter_name} is {parameter.dtype}, and sums over examples in it would exceed the bound; keep trainable "
                    "parameters in float32 (.float()) and compute in half precision by torch.autocast"
                )


#: Parameters and buffers by name, each with a number that grows when it is changed in place.
Versions = dict[str, tuple[Tensor, int]]


def versions_of(model: nn.Module) -> Versions:
    """The model's state as it is now, to be recognised by :func:`check_unchanged`."""
    return {
        name: (value, 0 if value.is_inference() else value._version)  # torch counts no changes of inference tensors
        for name, value in (*model.named_parameters(), *model.named_buffers())
    }


def check_unchanged(model: nn.Module, before: Versions) -> None:
    """Refuse a model whose forward pass writes to its own parameters or buffers: what is written there comes from private data.

    Tensors in plain attributes are not looked at: no state dict holds them.

    Raises:
        UserError: names what has changed.
    """
    for name, (value, version) in versions_of(model).items():
        known, known_version = before.get(name, (None, 0))
        if known is not value or known_version != version:
            raise UserError(
                f"{name}: the model's forward pass changes it, so private data would reach the model without noise; "
                "switch that off (.eval(), track_running_stats=False), or remove it"
            )


def without_batch_norm(model: nn.Module, *, max_groups: int = 32) -> nn.Module:
    """A copy in which every batch normalisation is a group normalisation (Wu & He 2018) of as many channels.

    The number of groups is the largest up to ``max_groups`` that divides the channels into groups of two or more: a channel that is normalised by
    itself tells nothing of its mean. A ``BatchNorm1d``, whose channels may have one value each, becomes one group. Scale and shift are kept, frozen or not. timm's
    ``BatchNormAct2d`` does more than normalise: its dropout and activation follow the group normalisation.

    Raises:
        UserError: a batch normalisation of somebody's own, whose forward pass may do more, or one that has not seen its channels yet.
        ValueError: ``max_groups`` is below 1, or no whole number.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model={model!r}: expected a torch.nn.Module")
    if not isinstance(max_groups, int) or max_groups < 1:
        raise ValueError(f"max_groups={max_groups}: expected a whole number ≥ 1")
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORMS) and module.num_features == 0:
            raise UserError(
                f"module {name or type(module).__name__!r} ({type(module).__name__}): does not know its channels yet; call the model once "
                "on an example"
            )
    if isinstance(model, _BATCH_NORMS):
        return _replacement_of(model, max_groups)
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):  # named_children() tells one that is used twice once
            if isinstance(child, _BATCH_NORMS) and not isinstance(child, nn.modules.instancenorm._InstanceNorm):
                setattr(module, name, _replacement_of(child, max_groups))
    return model


def _replacement_of(norm: nn.modules.batchnorm._BatchNorm, max_groups: int) -> nn.Module:
    group_norm = _group_norm_of(norm, max_groups)
    if type(norm).__module__.startswith("torch.nn."):
        return group_norm
    parts = dict(norm.named_children())
    if list(parts) != ["drop", "act"]:
        raise UserError(
            f"module of type {type(norm).__name__}: a batch normalisation of its own kind, whose forward pass may do more than normalise; "
            "swap it by hand"
        )
    return nn.Sequential(group_norm, *parts.values()).train(norm.training)


def _group_norm_of(norm: nn.modules.batchnorm._BatchNorm, max_groups: int) -> nn.GroupNorm:
    channels = norm.num_features
    most = 1 if isinstance(norm, nn.BatchNorm1d) else max(1, min(max_groups, channels // 2))
    groups = max(g for g in range(1, most + 1) if channels % g == 0)
    replacement = nn.GroupNorm(groups, channels, eps=norm.eps, affine=norm.affine)
    if norm.affine:
        replacement.load_state_dict(
            {name: value for name, value in norm.state_dict().items() if name in ("weight", "bias")}
        )
        replacement.to(norm.weight.device, norm.weight.dtype)
        for name, parameter in replacement.named_parameters():
            parameter.requires_grad_(norm.get_parameter(name).requires_grad)
    return replacement.train(norm.training)
