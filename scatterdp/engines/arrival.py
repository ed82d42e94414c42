"""Gradients at places in the middle of a network, each the moment it is there.

``torch.autograd.grad`` gives them all at the end of the backward pass, and holds them until then. Here a function of the caller's gets
each in passing, and what it does not keep is freed as in an ordinary backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node


def visit_gradients(
    losses: Tensor, edges: Mapping[str, GradientEdge], visit: Callable[[str, Tensor | None], None], *, weight: float
) -> None:
    """Call ``visit(name, gradient)`` for every edge that the losses reach, with the gradient of ``weight`` times the losses' sum.

    Those that lead to no other edge come last, once the backward pass, which ends there, is over: no weight gradient is computed on the
    way. Others come in the order of the backward pass. An edge that the losses do not reach gets None or is not visited.

    What ``visit`` raises comes out as it is.
    """
    ends = ends_of(edges)
    handles = [
        edge.node.register_prehook(lambda gradients, name=name, edge=edge: visit(name, gradients[edge.output_nr]))
        for name, edge in edges.items()
        if name not in ends
    ]
    try:
        each = torch.full_like(losses, weight)
        found = torch.autograd.grad(losses, list(ends.values()), each, allow_unused=True) if ends else ()
    finally:
        for handle in handles:
            handle.remove()
    for name, gradient in zip(ends, found, strict=True):
        visit(name, gradient)


def nodes_of(losses: Tensor, beyond: Mapping[Node, Node | None]) -> Iterator[Node]:
    """What a backward pass from the losses comes through; from a node of ``beyond`` it goes on with what that says alone."""
    seen: set[Node] = set()
    ahead = [losses.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            yield node
            seen.add(node)
            ahead += [beyond[node]] if node in beyond else [following for following, _ in node.next_functions]


def notes_on(node: Node) -> dict[Any, Any]:
    """What may be written on a node, and goes with it."""
    return node.metadata  # pyright: ignore[reportReturnType]  # a property, which torch's annotations take for a method


def ends_of(edges: Mapping[str, GradientEdge]) -> dict[str, GradientEdge]:
    """The edges from which a backward pass comes to no other."""
    before: dict[Node, list[Node]] = {edge.node: [] for edge in edges.values()}
    ahead = list(before)
    while ahead:
        node = ahead.pop()
        for following, _ in node.next_functions:
            if following is None:
                continue
            if following not in before:
                before[following] = []
                ahead.append(following)
            before[following].append(node)
    passed: set[Node] = set()
    back = [node for edge in edges.values() for node in before[edge.node]]
    while back:
        node = back.pop()
        if node not in passed:
            passed.add(node)
            back += before[node]
    return {name: edge for name, edge in edges.items() if edge.node not in passed}
