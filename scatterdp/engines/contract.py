"""The contract of every engine: a sum of per-example gradients, each clipped to an L2 bound.

**Formal guarantee.** For a set of examples S the answer is :math:`\\sum_{i \\in S} c(g_i)` over all trainable parameters jointly,
where c is a clipping function of :mod:`scatterdp.engines.clipping` (``flat``: :math:`g_i \\min(1, C/\\lVert g_i\\rVert)`), so adding or
removing an example moves it by at most C = ``max_grad_norm`` in L2, but for the rounding of float32 or float64
(:mod:`scatterdp.engines.precision`).

| edge case | answer |
|---|---|
| no examples | zeros, no norms |
| gradient 0 | contributes 0 |
| gradient with NaN or infinite entries | contributes 0; its reported norm is what it is (``nan`` or ``inf``) |
| gradients at an output below 1e-30 after clipping, of all an example's copies (``ghost``, ``mixed_ghost``, ``linear``) | contribute 0 to matrices |
| gradient whose norm an engine cannot compute (``linear``: ‖x‖² overflows double precision) | contributes 0, norm ``inf`` |
| a bound C below 1e-15 | refused: squares of single precision vanish |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from scatterdp.engines.clipping import Clipping
from scatterdp.engines.precision import SUM_DTYPES

#: ``(outputs (b, …), labels (b,)) -> losses (b,)``; an example's loss may depend on its own row only.
PerExampleLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ClippedSum:
    """Clipped gradient sums by parameter name, and the norms ``(b,)`` before clipping (private: never published).

    Raises:
        TypeError: a sum that is neither float32 nor float64.
    """

    gradients: dict[str, Tensor]
    norms: Tensor

    def __post_init__(self) -> None:
        for name, total in self.gradients.items():
            if total.dtype not in SUM_DTYPES:
                raise TypeError(f"{name}: a sum in {total.dtype}, which rounds by more than the bound allows")


class Engine(Protocol):
    """Anything that computes a :class:`ClippedSum`."""

    def __call__(
        self,
        model: nn.Module,
        loss: PerExampleLoss,
        x: Tensor,
        y: Tensor,
        *,
        max_grad_norm: float,
        clipping: Clipping = "flat",
        squared_norms: Tensor | None = None,
        copies: int = 1,
    ) -> ClippedSum:
        """Clip and sum.

        Args:
            model: maps ``x (b, …)`` to outputs ``(b, …)``, example by example.
            loss: per-example loss.
            x: inputs ``(b · copies, …)`` of one physical batch.
            y: ``(b · copies,)`` labels.
            max_grad_norm: C ≥ 1e-15.
            clipping: which clipping function.
            squared_norms: ``(b,)`` of ``‖x‖²`` where the caller has them; engines without use ignore them.
            copies: rows in succession that are copies of one example, augmented each in its own way: the mean of their gradients is
                the example's, which is clipped once (De et al. 2022, arXiv 2204.13650, section 3.3).
        """
        ...


def check_copies(x: Tensor, copies: int) -> None:
    """Raise ValueError unless the rows are whole examples of so many copies."""
    if copies < 1 or len(x) % copies:
        raise ValueError(f"copies={copies}: does not divide the {len(x)} rows")
