r"""What each kind of layer knows about its per-example gradients, from its inputs a and the gradients g at its outputs.

**Linear and convolution.** Both are matrix products once inputs are laid out as :math:`U_i` (D × T: inputs of each of T output
positions, one column a position) and output gradients as :math:`V_i` (P × T): example i's weight gradient is
:math:`V_i U_i^\top`, its bias gradient :math:`V_i 1`. The norm needs no gradient ("ghost", Goodfellow 2015 for T = 1; Li et al.
2022, arXiv 2110.05679; Bu et al. 2022, arXiv 2205.10683, section 3 for convolutions):

.. math:: \lVert V_i U_i^\top \rVert^2 = \langle U_i^\top U_i,\; V_i^\top V_i \rangle ,

T² (D + P) operations and 2 T² numbers in place of T D P and D P. Groups of a grouped convolution add up.

For a convolution of images neither needs :math:`U`, which repeats every pixel once for each place in the kernel. Two positions'
patches have the inner product :math:`\sum_k A_{s+k,\,t+k}` over places k in the kernel, where A is the Gram matrix of single
*pixels*: D / k² in place of D operations for each entry. And place k's part of the weight gradient is :math:`V_i` times a shifted view
of the flattened padded image, once V's rows are as long as the image's: k² matrix products without a copy.

**Normalisations** keep their per-example gradients, which are no larger than the inputs.

**Embedding.** The gradient of row v is the sum of g at the positions where v stands, so the squared norm is the sum of
:math:`\langle g_s, g_t \rangle` over pairs of positions with the same index.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.engines.modules import own_parameters
from scatterdp.engines.precision import ROWS_OF_A_SUM, RunningSums, sum_of_products
from scatterdp.heads.preconditioned_linear import PreconditionedLinear


class Rule(ABC):
    """One call of one layer in one batch.

    Args:
        module: the layer.
        inputs: a ``(b · copies, …)``, detached, as the layer's weights meet them.
        gradients: g ``(b · copies, …)``, of the sum of the examples' losses.
        copies: rows in succession that belong to one example; its gradient is the sum of theirs.
    """

    #: ``(b,)`` squared norms over the layer's parameters in double precision, once the rule is measured.
    squares: Tensor

    def __init__(self, module: Any, inputs: Tensor, gradients: Tensor, copies: int = 1) -> None:
        self.module, self.inputs, self.gradients, self.copies = module, inputs, gradients, copies
        self.trainable = {name for name, _ in own_parameters(module)}
        self.dtype = gradients.dtype
        self._kept: dict[str, Tensor] | None = None

    @classmethod
    def of(cls, module: Any, inputs: Tensor, gradients: Tensor, copies: int) -> Self:
        """The rule of a call with these inputs as the layer was given them."""
        return cls(module, inputs, gradients, copies)

    def measure(self, *, ghost: bool) -> None:
        """Fill :attr:`squares`, without per-example gradients or by keeping them: inputs and output gradients are then let go."""
        self.squares = self.squared_norms(ghost=ghost).double()
        if not ghost or self._kept is not None:
            del self.inputs, self.gradients

    def held(self) -> list[Tensor]:
        """What is kept of the network's own tensors: inputs and output gradients, unless they were let go."""
        return [self.__dict__[name] for name in ("inputs", "gradients") if name in self.__dict__]

    def squared_norms(self, *, ghost: bool) -> Tensor:
        """``(b,)`` squared norms over the layer's parameters, without per-example gradients or by keeping them."""
        if ghost:
            return self.ghost_squared_norms()
        self._kept = self._per_example_in_pieces()
        return squared_norms_of(self._kept)

    def clipped_sum(self, factors: Tensor, finite: Tensor) -> dict[str, Tensor]:
        """Sums over examples of factor times gradient, after :meth:`measure`; examples that are not ``finite`` are left out."""
        # 0 · NaN is NaN: rows that may not count are replaced, not multiplied away.
        if self._kept is not None:
            kept = self._kept if finite.all() else {k: without(v, finite) for k, v in self._kept.items()}
            return weighted(kept, factors)
        sums = RunningSums()
        for examples, piece in self.pieces():
            if not finite[examples].all():
                rows = self._of_rows(finite[examples])
                piece.inputs, piece.gradients = (without(t, rows) for t in (piece.inputs, piece.gradients))
            sums.add(piece.weighted_sum(self._of_rows(factors[examples])))
        return sums.rounded()

    def pieces(self) -> Iterator[tuple[slice, Self]]:
        """Some examples' rule at a time, and which they are, so that what is worked out on the way stays small."""
        copies, rows = self.copies, len(self.inputs)
        # No fewer than a sum has: it is made once for each piece.
        at_once = max(
            _numbers_at_once(self.inputs.device), *(value.numel() for _, value in own_parameters(self.module))
        )
        most = max(1, at_once // max(1, copies * self._numbers_of_row()))
        size = copies * even(rows // copies, most)
        for start in range(0, rows, size):
            stop = min(rows, start + size)
            piece = type(self)(self.module, self.inputs[start:stop], self.gradients[start:stop], copies)
            yield slice(start // copies, stop // copies), piece

    def _numbers_of_row(self) -> int:
        """About as many as are in work for one row's gradients."""
        return self.inputs[0].numel() + self.gradients[0].numel()

    def _per_example_in_pieces(self) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for examples, piece in self.pieces():
            for name, values in piece.per_example().items():
                if name not in result:
                    result[name] = values.new_empty(len(self.inputs) // self.copies, *values.shape[1:])
                result[name][examples] = values
        return result

    def _of_rows(self, values: Tensor) -> Tensor:
        return values if self.copies == 1 else values.repeat_interleave(self.copies)

    def per_example(self) -> dict[str, Tensor]:
        """Per-example gradients ``(b, *shape)`` by the parameter's name in the module."""
        rows = self.per_row()
        return rows if self.copies == 1 else {k: v.unflatten(0, (-1, self.copies)).sum(1) for k, v in rows.items()}

    @abstractmethod
    def per_row(self) -> dict[str, Tensor]:
        """Every row's gradients ``(b · copies, *shape)``."""

    def ghost_squared_norms(self) -> Tensor:
        """``(b,)`` squared norms; without the gradients where the layer can do that."""
        return squared_norms_of(self.per_example())

    def prefers_ghost(self) -> bool:
        """Whether norms are cheaper without the gradients."""
        return False

    def weighted_sum(self, factors: Tensor) -> dict[str, Tensor]:
        """Sums over rows of ``factors`` ``(b · copies,)`` times their gradients, by the parameter's name in the module."""
        return weighted(self.per_example(), factors[:: self.copies])  # copies first: they may cancel


def even(total: int, most: int) -> int:
    """The size of pieces of at most so many that are as equal as can be."""
    return math.ceil(total / max(1, math.ceil(total / most)))


def without(values: Tensor, kept: Tensor) -> Tensor:
    """The values with zeros in the rows that are not kept."""
    return torch.where(
        kept.view(-1, *[1] * (values.ndim - 1)), values, torch.zeros((), dtype=values.dtype, device=kept.device)
    )


def squared_norms_of(per_example: dict[str, Tensor]) -> Tensor:
    """``(b,)`` squared norms over all of a layer's parameters, in double precision."""
    return torch.stack([_squares_of(values) for values in per_example.values()]).sum(0)


def _squares_of(values: Tensor) -> Tensor:
    """``(b,)`` squared norms of rows, in double precision: single precision adds up a few thousand numbers, a million would round by percents."""
    rows, wide = _rows(values), torch.promote_types(values.dtype, torch.float32)
    blocks = rows.shape[1] // _BLOCK
    whole = rows[:, : blocks * _BLOCK].unflatten(1, (blocks, _BLOCK))
    rest = torch.linalg.vector_norm(rows[:, blocks * _BLOCK :], dim=1, dtype=wide).double()
    return torch.linalg.vector_norm(whole, dim=2, dtype=wide).double().square().sum(1) + rest.square()


def _rows(values: Tensor) -> Tensor:
    """``(b, numbers)``, also where an example is a single number."""
    return values.flatten(1) if values.ndim > 1 else values.unsqueeze(1)


def weighted(per_example: dict[str, Tensor], factors: Tensor) -> dict[str, Tensor]:
    """Sums over examples of factor times gradient."""
    return {
        name: sum_of_products(factors.to(values.dtype), _rows(values)).view(values.shape[1:])
        for name, values in per_example.items()
    }


_SMALLEST = 1e-30
_FEWEST_OF_A_SUM = 32  # images that one sum of single precision is over, however many positions they have
_BLOCK = 4096  # numbers that single precision adds up to a norm
_ROUNDING = 5e-7  # eight times that of single precision
_CANCELLED = 0.012  # of the product of norms: with less left, room for rounding would be a large part of the norm
_SWALLOWING = 4e-4  # of that: with less left, an example's own terms would swallow others' in a sum over all
_SHORT = 128  # depths at which double precision costs little, so that norms may be closer still
_LANES = {"AVX512": 16, "AVX2": 8}  # sums that a processor adds up side by side in single precision
_FEWEST_LANES = 4
_UNIT = 6e-8  # half the distance from 1 to the next number of single precision
_DOUBLE_UNIT = 1.2e-16
_SQUARES = (1e-20, 1e20)  # of u, v and their product: single precision loses nothing that counts between these
_CACHED_NUMBERS = 1 << 20  # in work at once, to stay in a core's cache; by measurement
_MANY_NUMBERS = 1 << 26  # in work at once on a graphics card, to keep it busy


def _squares_of_products(
    inner_products: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
    u: Tensor,
    v: Tensor,
    *,
    numbers: int,
    depth: int,
    positions: int,
) -> tuple[Tensor, Tensor]:
    """Squared norms ``(b,)`` from above, in double precision, of gradients known by inner products of what they are made of.

    And which examples' products cancel so far that single precision must not add them up with others': a sum is worked out in stretches, and where
    one ends within an example its terms, large beside its gradient, swallow those of the examples that follow.

    Where V nearly sums to zero over positions and U is nearly constant the gradient is a small difference of large products. Single
    precision will do where it is not: rows where products cancel, and such as may over- or underflow, are computed again in double
    precision. What rounding may take from the products, and what it may add to the weighted sum, is added to the norm: the sum must stay
    within the bound for every example.

    Args:
        inner_products: of some examples' ``(u, v)``: ‖V Uᵀ‖², ‖U‖² and ‖V‖², each ``(b,)``.
        u, v: ``(b, …)``.
        numbers: that the inner products of one example need, to choose how many examples are in work at once.
        depth: how many products are added up to one inner product. Equal ones are all rounded the same way.
        positions: how many are added up to an entry of the gradient.
    """
    if v.dtype in (torch.float16, torch.bfloat16):
        u, v = u.float(), v.float()
    units = None
    if v.dtype == torch.float64:  # of what is far from 1 the squares vanish, and nothing more exact is at hand
        (u, of_u), (v, of_v) = _in_units(u), _in_units(v)
        units = (of_u * of_v).square()
    size = max(1, _numbers_at_once(v.device) // numbers)
    pieces = [inner_products(*piece) for piece in zip(u.split(size), v.split(size), strict=True)]
    products, *squares = (torch.cat(column).double() for column in zip(*pieces, strict=True))
    largest = squares[0] * squares[1]
    exactly = _rounding_of_sum(depth, v.device, torch.float64)
    if units is not None:
        products += exactly * largest
        found = _from_above(products, largest, _rounding_of_sum(positions, v.device, torch.float64))
        return found * units, torch.zeros_like(found, dtype=torch.bool)
    left = _CANCELLED if depth > _SHORT else 2 * _CANCELLED
    precise = (products > left * largest) & products.isfinite()  # false for NaN
    for square in (*squares, largest):
        precise &= (square > _SQUARES[0]) & (square < _SQUARES[1])
    products += _rounding_of_sum(depth, v.device) * largest
    if not precise.all():
        for rows in (~precise).nonzero()[:, 0].split(size):
            exact, *squares = inner_products(u[rows].double(), v[rows].double())
            largest[rows] = squares[0] * squares[1]
            products[rows] = exact + exactly * largest[rows]
    apart = products < _SWALLOWING * largest
    rounding = torch.where(
        apart,
        _rounding_of_sum(positions, v.device, torch.float64),
        max(_ROUNDING, _rounding_of_sum(positions, v.device)),
    )
    return _from_above(products, largest, rounding), apart


def lengths(values: Tensor) -> Tensor:
    """``(b, …, n) -> (b, …)``, L2 norms in double precision, of double precision without loss of what its squares lose."""
    if values.dtype != torch.float64 or values.shape[-1] == 0:
        return torch.linalg.vector_norm(values, dim=-1, dtype=torch.float64)
    unit = values.abs().amax(-1)
    unit = torch.where(unit == 0, 1.0, unit)
    return torch.linalg.vector_norm(values / unit.unsqueeze(-1), dim=-1) * unit


def _rounding_of_sum(terms: int, device: torch.device, precision: torch.dtype = torch.float32) -> float:
    """How far a precision may take a sum of so many terms from it, in sums of their magnitudes."""
    if precision == torch.float64:
        return 1.5 * _DOUBLE_UNIT * (1 + terms)
    # A processor adds in lanes; a graphics card may add one by one.
    in_succession = terms / _lanes_of_processor() if device.type == "cpu" else terms
    return 1.5 * _UNIT * (1 + in_succession)


@cache
def _lanes_of_processor() -> int:
    return _LANES.get(torch.backends.cpu.get_cpu_capability(), _FEWEST_LANES)


def _numbers_at_once(device: torch.device) -> int:
    return _CACHED_NUMBERS if device.type == "cpu" else _MANY_NUMBERS


def _from_above(squares: Tensor, largest: Tensor, rounding: Tensor | float) -> Tensor:
    """Squared norms ``(b,)`` with what rounding in proportion to ``largest`` may add to the sum."""
    return (squares.clamp(min=0).sqrt() + rounding * largest.sqrt()).square()


def _in_units(values: Tensor, copies: int = 1) -> tuple[Tensor, Tensor]:
    """Rows divided by the largest number of their example's, and that ``(b · copies,)`` in double precision."""
    unit = values.abs().flatten(1).amax(1) if values.numel() else values.new_ones(len(values))
    if copies > 1:
        unit = unit.unflatten(0, (-1, copies)).amax(1).repeat_interleave(copies)
    unit = torch.where(unit == 0, torch.ones_like(unit), unit)
    return values / unit.view(-1, *[1] * (values.ndim - 1)), unit.double()


def scaled(values: Tensor, factors: Tensor, copies: int = 1) -> Tensor:
    """Values times a factor for each row; zeros where all of an example's are then below 1e-30: its copies may cancel, so all go or none."""
    values, unit = _in_units(values, copies)  # a factor may be too small for single precision where its product is not
    units = factors * unit
    units = torch.where(units < _SMALLEST, 0, units)  # near the end of single precision rounding could exceed the bound
    return values * units.to(values.dtype).view(-1, *[1] * (values.ndim - 1))


class Known(Rule):
    """A layer whose per-example gradients are there already, by whatever way.

    Args:
        module: the layer.
        gradients: ``(b, *shape)`` by the parameter's name in the module.
    """

    def __init__(self, module: Any, gradients: dict[str, Tensor]) -> None:
        first = next(iter(gradients.values()))
        nothing = first.new_zeros(len(first))
        super().__init__(module, nothing, nothing)
        self._given = gradients

    def _per_example_in_pieces(self) -> dict[str, Tensor]:
        return self._given

    def per_row(self) -> dict[str, Tensor]:
        return self._given


class MatrixRule(Rule):
    """A layer that is a matrix product: subclasses say how inputs and output gradients are laid out.

    Biases' gradients are no larger than the outputs' and are always kept: what nearly cancels over positions and copies must be the same numbers in norm
    and sum. :meth:`weighted_sum` is of the weights.
    """

    _apart: Tensor | None = None  # (b,) examples whose weights are summed apart from others', in double precision
    _biases: Tensor | None = None  # (b, P)

    def clipped_sum(self, factors: Tensor, finite: Tensor) -> dict[str, Tensor]:
        if self._kept is not None:
            return super().clipped_sum(factors, finite)
        sums = self._weights_sum(factors, finite) if "weight" in self.trainable else {}
        if self._biases is not None:
            biases = self._biases if finite.all() else without(self._biases, finite)
            sums["bias"] = (factors.double() @ biases).to(self.dtype)
        return sums

    def _weights_sum(self, factors: Tensor, finite: Tensor) -> dict[str, Tensor]:
        if self._apart is None or not (apart := self._apart & finite).any():
            return super().clipped_sum(factors, finite)
        sums = super().clipped_sum(torch.where(apart, 0.0, factors), finite)
        rows = self._of_rows(apart)
        exact = type(self)(self.module, self.inputs[rows].double(), self.gradients[rows].double(), self.copies)
        sums["weight"] += exact._weights_sum(factors[apart], finite[apart])["weight"]
        return sums

    def bias_gradients(self) -> Tensor:
        """``(b, P)`` in double precision."""
        positions = self.position_axes()
        rows = self.gradients.sum(positions, dtype=torch.float64) if positions else self.gradients.double()
        return rows.unflatten(0, (-1, self.copies)).sum(1)

    @abstractmethod
    def position_axes(self) -> tuple[int, ...]:
        """The axes of output gradients that are neither examples nor outputs."""

    @abstractmethod
    def layout(self) -> tuple[Tensor, Tensor]:
        """``U (b · copies, G, D, T)`` and ``V (b · copies, G, P, T)`` of G groups."""

    @abstractmethod
    def sizes(self) -> tuple[int, int, int]:
        """``(T, D, P)`` of one group, without laying anything out."""

    def prefers_ghost(self) -> bool:
        # Bu et al. 2022, arXiv 2205.10683, algorithm 1: the smaller of 2 T² and P D numbers.
        positions, inputs, outputs = self.sizes()
        return 2 * (self.copies * positions) ** 2 < inputs * outputs

    def per_row(self) -> dict[str, Tensor]:
        u, v = self.layout()
        gradients: dict[str, Tensor] = {}
        if "weight" in self.trainable:
            gradients["weight"] = (v @ u.transpose(2, 3)).reshape(len(u), *self.module.weight.shape)
        if "bias" in self.trainable:
            gradients["bias"] = v.sum(3).flatten(1)
        return gradients

    def ghost_squared_norms(self) -> Tensor:
        # Copies are further positions.
        u, v = (
            t if self.copies == 1 else t.unflatten(0, (-1, self.copies)).movedim(1, 3).flatten(3) for t in self.layout()
        )
        total = torch.zeros(len(u), dtype=torch.float64, device=u.device)
        if "weight" in self.trainable:
            if u.shape[3] == 1:
                total += (lengths(u[..., 0]) * lengths(v[..., 0])).square().sum(1)
            else:
                numbers = u[0].numel() + 2 * u.shape[1] * u.shape[3] ** 2
                depth = u.shape[1] + u.shape[2] + v.shape[2]
                squares, self._apart = _squares_of_products(
                    _products, u, v, numbers=numbers, depth=depth, positions=u.shape[3]
                )
                total += squares
        return total + self._bias_squares()

    def _bias_squares(self) -> Tensor | float:
        if "bias" not in self.trainable:
            return 0.0
        self._biases = self.bias_gradients()
        return self._biases.square().sum(1)


def _products(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inner products of the Gram matrices of U and V ``(b, G, ·, T)``, ‖U‖² and ‖V‖², each ``(b,)``."""
    products = ((u.transpose(2, 3) @ u) * (v.transpose(2, 3) @ v)).sum((1, 2, 3))
    return products, u.square().sum((1, 2, 3)), v.square().sum((1, 2, 3))


class LinearRule(MatrixRule):
    """``nn.Linear`` on ``(b, in)`` or sequences ``(b, …, in)``."""

    def layout(self) -> tuple[Tensor, Tensor]:
        u, v = (t.reshape(len(t), -1, t.shape[-1]).transpose(1, 2).unsqueeze(1) for t in (self.inputs, self.gradients))
        return u, v

    def sizes(self) -> tuple[int, int, int]:
        positions = self.inputs[0].numel() // max(1, self.inputs.shape[-1]) if len(self.inputs) else 1
        return positions, self.inputs.shape[-1], self.gradients.shape[-1]

    def position_axes(self) -> tuple[int, ...]:
        return tuple(range(1, self.gradients.ndim - 1))

    def weighted_sum(self, factors: Tensor) -> dict[str, Tensor]:
        v = scaled(self.gradients, factors, self.copies).flatten(0, -2)
        return {"weight": sum_of_products(v, self.inputs.flatten(0, -2))}


class PreconditionedLinearRule(LinearRule):
    """:class:`~scatterdp.heads.preconditioned_linear.PreconditionedLinear`: a linear layer on A x.

    Norms and sums are of the same numbers A x: a sum over x that A is applied to afterwards would round in proportion to x, which A may shorten
    a thousandfold.
    """

    @classmethod
    def of(cls, module: Any, inputs: Tensor, gradients: Tensor, copies: int) -> Self:
        return cls(module, module.precondition(inputs), gradients, copies)


class ConvolutionRule(MatrixRule):
    """``nn.Conv1d``, ``nn.Conv2d``, ``nn.Conv3d`` with stride, padding, dilation and groups."""

    _places: Tensor | None = None

    def layout(self) -> tuple[Tensor, Tensor]:
        module, a = self.module, padded(self.module, self.inputs)
        dimensions = len(module.kernel_size)
        for axis in range(dimensions):
            reach = (module.kernel_size[axis] - 1) * module.dilation[axis] + 1
            a = a.unfold(2 + axis, reach, module.stride[axis])[..., :: module.dilation[axis]]
        # (b, C, T…, k…) → (b, G, C/G · k…, T…)
        a = a.permute(0, 1, *range(2 + dimensions, 2 + 2 * dimensions), *range(2, 2 + dimensions))
        positions = self.gradients[0, 0].numel() if len(self.gradients) else 1
        u = a.reshape(len(a), module.groups, self._inputs_of_group, positions)
        return u, self.gradients.reshape(len(a), module.groups, -1, positions)

    @property
    def _is_plain(self) -> bool:
        """Of images, ungrouped: served without laying inputs out."""
        return isinstance(self.module, nn.Conv2d) and self.module.groups == 1 and len(self.inputs) > 0

    def per_example(self) -> dict[str, Tensor]:
        if not (self._is_plain and self.module.stride == (1, 1)):
            return super().per_example()
        gradients: dict[str, Tensor] = {}
        if "weight" in self.trainable:
            gradients["weight"] = self._weight_gradients().permute(1, 3, 2, 0).reshape(-1, *self.module.weight.shape)
        if "bias" in self.trainable:
            gradients["bias"] = self.bias_gradients().to(self.dtype)
        return gradients

    def squared_norms(self, *, ghost: bool) -> Tensor:
        if ghost or not (self._is_plain and self.module.stride == (1, 1) and "weight" in self.trainable):
            return super().squared_norms(ghost=ghost)
        self._places = self._weight_gradients()
        return _squares_of(self._places.flatten(0, 1)).view(self._places.shape[:2]).sum(0) + self._bias_squares()

    def _weights_sum(self, factors: Tensor, finite: Tensor) -> dict[str, Tensor]:
        if self._places is None:
            return super()._weights_sum(factors, finite)
        places = self._places
        if not finite.all():
            places = without(places.transpose(0, 1), finite).transpose(0, 1)
        row = factors.to(places.dtype)
        products = torch.stack([sum_of_products(row, place.flatten(1)).view(place.shape[1:]) for place in places])
        return {"weight": products.permute(2, 1, 0).reshape(self.module.weight.shape)}

    def position_axes(self) -> tuple[int, ...]:
        return tuple(range(2, self.gradients.ndim))

    def _weight_gradients(self) -> Tensor:
        """``(k², b, C, P)``: for each place in the kernel one batch of matrix products."""
        module = self.module
        result = self.gradients.new_empty(
            math.prod(module.kernel_size), len(self.inputs) // self.copies, module.in_channels, module.out_channels
        )
        for examples, piece in self.pieces():
            piece._write_weight_gradients(result[:, examples])
        return result

    def _write_weight_gradients(self, result: Tensor) -> None:
        module, a, v = self.module, padded(self.module, self.inputs), self.gradients
        width, (rows, columns) = a.shape[3], v.shape[2:]
        flat = a.flatten(2)
        # Rows of V as long as the image's, zeros at the end: a place in the kernel is then a shift of the flat image.
        wide = F.pad(v, (0, width - columns)).flatten(2)[:, :, : (rows - 1) * width + columns].transpose(1, 2)
        if wide.stride(2) != 1:  # images with their channels last need no copy
            wide = wide.contiguous()
        for number, (y, x) in enumerate(product(*(range(k) for k in module.kernel_size))):
            start = y * module.dilation[0] * width + x * module.dilation[1]
            shifted = flat[:, :, start : start + wide.shape[1]]
            if self.copies == 1:
                torch.bmm(shifted, wide, out=result[number])
            else:
                torch.sum(torch.bmm(shifted, wide).unflatten(0, (-1, self.copies)), 1, out=result[number])

    def ghost_squared_norms(self) -> Tensor:
        if not (self._is_plain and "weight" in self.trainable and self.copies == 1 and self._few_pixels):
            return super().ghost_squared_norms()
        total, self._apart = _squares_of_products(
            self._products,
            self.inputs,
            self.gradients,
            numbers=self._numbers_of_example,
            depth=self.inputs.shape[1] + math.prod(self.module.kernel_size) + self.gradients.shape[1],
            positions=self.gradients.shape[2:].numel(),
        )
        return total + self._bias_squares()

    @property
    def _few_pixels(self) -> bool:
        """Whether inner products of pixels are no more numbers than a few times the patches; a large stride leaves few positions."""
        pixels, positions = self.inputs.shape[2:].numel(), self.gradients.shape[2:].numel()
        return pixels**2 <= 2 * (self._inputs_of_group * positions + 2 * positions**2)

    @property
    def _numbers_of_example(self) -> int:
        pixels, positions = self.inputs[0].numel(), self.gradients[0, 0].numel()
        return pixels + (pixels // self.inputs.shape[1]) ** 2 + 2 * positions**2

    def _products(self, inputs: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The inner products of Gram matrices of patches and of output gradients, ‖U‖² and ‖V‖², each ``(b,)``."""
        a, padding = with_zeros_to_add(self.module, inputs)
        pixels, outputs = a.flatten(2), gradients.flatten(2)
        products = torch.bmm(pixels.transpose(1, 2), pixels).view(len(a), *a.shape[2:], *a.shape[2:])
        # Patches' inner products: pixels' at the same place of both kernels, summed over the kernel's rows, then its columns.
        for axis in (0, 1):
            products = self._sum_over_kernel(
                products, axis, a.shape[2 + axis], padding[axis], gradients.shape[2 + axis]
            )
        of_patches = products.reshape(len(a), outputs.shape[2], outputs.shape[2])
        of_outputs = torch.bmm(outputs.transpose(1, 2), outputs)
        of_each, of_each_output = (gram.diagonal(dim1=1, dim2=2).clamp(min=0) for gram in (of_patches, of_outputs))
        return (of_patches * of_outputs).sum((1, 2)), of_each.sum(1), of_each_output.sum(1)

    def _sum_over_kernel(self, products: Tensor, axis: int, size: int, padding: int, positions: int) -> Tensor:
        """Inner products ``(b, …, size, …, size, …)`` of inputs along an axis to those of positions."""
        stride, dilation = self.module.stride[axis], self.module.dilation[axis]
        shape = list(products.shape)
        shape[1 + axis] = shape[3 + axis] = positions
        result = products.new_zeros(shape)
        before = (slice(None),) * (1 + axis)
        for start in (place * dilation - padding for place in range(self.module.kernel_size[axis])):
            first = max(
                0, -(start // stride)
            )  # the first and last position whose input is there, not a zero of the padding
            last = min(positions - 1, (size - 1 - start) // stride)
            if first <= last:
                there = slice(first, last + 1)
                read = slice(start + first * stride, start + last * stride + 1, stride)
                result[(*before, there, slice(None), there)] += products[(*before, read, slice(None), read)]
        return result

    @property
    def _inputs_of_group(self) -> int:
        return self.module.weight[0].numel()

    def sizes(self) -> tuple[int, int, int]:
        positions = self.gradients.shape[2:].numel()
        return positions, self._inputs_of_group, self.module.out_channels // self.module.groups

    def weighted_sum(self, factors: Tensor) -> dict[str, Tensor]:
        module = self.module
        v = scaled(self.gradients, factors, self.copies)
        a, padding = with_zeros_to_add(module, self.inputs)
        rows = max(_FEWEST_OF_A_SUM, ROWS_OF_A_SUM // max(1, v.shape[2:].numel()))
        sums = RunningSums()
        for some, their_inputs in zip(v.split(rows), a.split(rows), strict=True):
            gradients = torch.ops.aten.convolution_backward(
                _dense(some),
                _dense(their_inputs),
                module.weight.detach().to(v.dtype),
                None,
                module.stride,
                padding,
                module.dilation,
                False,
                (0,) * len(padding),
                module.groups,
                (False, True, False),
            )
            sums.add({"weight": gradients[1]})
        return sums.rounded()


def _dense(values: Tensor) -> Tensor:
    """The values without gaps in memory, in their order there: a convolution keeps it."""
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        return values
    return values.contiguous()


def with_zeros_to_add(module: Any, inputs: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """A convolution's inputs, and by how many zeros a side they are still to be padded."""
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        return padded(module, inputs), (0,) * len(module.kernel_size)
    return inputs, module.padding


def padded(module: Any, inputs: Tensor) -> Tensor:
    """A convolution's inputs with its padding, so that none is left to do."""
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        sides = module._reversed_padding_repeated_twice
    else:
        sides = [p for p in reversed(module.padding) for _ in range(2)]
    if not any(sides):
        return inputs
    return F.pad(inputs, sides, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)


class NormalizationRule(Rule):
    """A normalisation with scale and shift: ``weight · x̂ + bias``; subclasses compute x̂ and say which axes are summed.

    Its gradients are always kept: computed again for the sum, in other pieces, they might round otherwise than in the norms.
    """

    def squared_norms(self, *, ghost: bool) -> Tensor:
        return super().squared_norms(ghost=False)

    def per_row(self) -> dict[str, Tensor]:
        gradients: dict[str, Tensor] = {}
        if "weight" in self.trainable:
            gradients["weight"] = self._summed(self.gradients * self.normalized())
        if "bias" in self.trainable:
            gradients["bias"] = self._summed(self.gradients)
        return gradients

    @abstractmethod
    def normalized(self) -> Tensor:
        """x̂, of the inputs' shape."""

    def _summed(self, values: Tensor) -> Tensor:  # over positions; channels are axis 1
        return values.flatten(2).sum(2) if values.ndim > 2 else values


class LayerNormRule(NormalizationRule):
    """``nn.LayerNorm``."""

    def normalized(self) -> Tensor:
        return F.layer_norm(self.inputs, self.module.normalized_shape, eps=self.module.eps)

    def _summed(self, values: Tensor) -> Tensor:
        between = values.ndim - 1 - len(self.module.normalized_shape)
        return values.sum(tuple(range(1, 1 + between))) if between else values


class ChannelLayerNormRule(NormalizationRule):
    """``LayerNorm2d`` of torchvision and timm: over the channels of each pixel of ``(b, C, H, W)``."""

    def normalized(self) -> Tensor:
        pixels = self.inputs.movedim(1, -1)
        return F.layer_norm(pixels, self.module.normalized_shape, eps=self.module.eps).movedim(-1, 1)


class GroupNormRule(NormalizationRule):
    """``nn.GroupNorm``."""

    def normalized(self) -> Tensor:
        return F.group_norm(self.inputs, self.module.num_groups, eps=self.module.eps)


class InstanceNormRule(NormalizationRule):
    """``nn.InstanceNorm1d``, ``2d``, ``3d`` with ``affine=True``."""

    def normalized(self) -> Tensor:
        return F.instance_norm(self.inputs, eps=self.module.eps)


class FrozenBatchNormRule(NormalizationRule):
    """Batch normalisation in evaluation mode: its statistics are constants."""

    def normalized(self) -> Tensor:
        return F.batch_norm(self.inputs, self.module.running_mean, self.module.running_var, eps=self.module.eps)


class EmbeddingRule(Rule):
    """``nn.Embedding`` of indices ``(b, …)``."""

    def _flat(self) -> tuple[Tensor, Tensor]:
        indices = _rows(self.inputs)
        gradients = self.gradients.reshape(*indices.shape, self.module.embedding_dim)
        if self.module.padding_idx is not None:
            gradients = gradients * (indices != self.module.padding_idx)[..., None]
        return indices, gradients

    def per_row(self) -> dict[str, Tensor]:
        indices, gradients = self._flat()
        result = gradients.new_zeros(len(indices), *self.module.weight.shape)
        return {"weight": result.scatter_add_(1, indices[..., None].expand_as(gradients), gradients)}

    def ghost_squared_norms(self) -> Tensor:
        indices, gradients = (t.unflatten(0, (-1, self.copies)).flatten(1, 2) for t in self._flat())
        gradients = gradients.double()
        same = indices[:, :, None] == indices[:, None, :]
        products = ((gradients @ gradients.transpose(1, 2)) * same).sum((1, 2))
        return _from_above(products, gradients.square().sum((1, 2)), _ROUNDING)

    def prefers_ghost(self) -> bool:
        return (
            2 * (self.copies * self.inputs[0].numel()) ** 2 < self.module.weight.numel() if len(self.inputs) else True
        )

    def weighted_sum(self, factors: Tensor) -> dict[str, Tensor]:
        indices, gradients = self._flat()
        # In double precision, as the norms are: a token's gradients at many positions may nearly cancel.
        result = torch.zeros_like(self.module.weight, dtype=torch.float64)
        result.index_add_(0, indices.flatten(), (gradients.double() * factors.double().view(-1, 1, 1)).flatten(0, 1))
        return {"weight": result.to(gradients.dtype)}


#: Rules by kind of module; subclasses are not covered, for their forward may be another.
RULES: dict[type[nn.Module], type[Rule]] = {
    nn.Linear: LinearRule,
    PreconditionedLinear: PreconditionedLinearRule,
    nn.Conv1d: ConvolutionRule,
    nn.Conv2d: ConvolutionRule,
    nn.Conv3d: ConvolutionRule,
    nn.LayerNorm: LayerNormRule,
    nn.GroupNorm: GroupNormRule,
    nn.InstanceNorm1d: InstanceNormRule,
    nn.InstanceNorm2d: InstanceNormRule,
    nn.InstanceNorm3d: InstanceNormRule,
    nn.BatchNorm1d: FrozenBatchNormRule,
    nn.BatchNorm2d: FrozenBatchNormRule,
    nn.BatchNorm3d: FrozenBatchNormRule,
    nn.Embedding: EmbeddingRule,
}

#: Rules of well-known subclasses by their full names, so that nobody has to install the libraries.
RULES_BY_NAME: dict[str, type[Rule]] = {
    "torchvision.models.convnext.LayerNorm2d": ChannelLayerNormRule,
    "timm.layers.linear.Linear": LinearRule,
    "timm.layers.norm.LayerNorm2d": ChannelLayerNormRule,
    "timm.layers.norm.LayerNorm": LayerNormRule,
    "timm.layers.norm.GroupNorm": GroupNormRule,
    "timm.layers.norm.GroupNorm1": GroupNormRule,
}


def rule_for(module: nn.Module) -> type[Rule] | None:
    """The rule of a kind of module, if there is one."""
    kind = type(module)
    return RULES.get(kind) or RULES_BY_NAME.get(f"{kind.__module__}.{kind.__qualname__}")
