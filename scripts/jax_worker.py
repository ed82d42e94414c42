"""The jax side of ``compare_frameworks.py``: trains when it is asked to, in an environment with jax-privacy, and imports nothing of scatterdp.

One JSON object a line on standard input, one a line in answer on standard output; the first line tells the versions, before any question.

| ``do`` | with | answer |
|---|---|---|
| ``data`` | ``x``, ``y``: .npy of ``(N, C·H·W)`` float32 and ``(N,)`` integers; ``network`` | |
| ``try`` | ``private``, ``microbatches``, ``max_grad_norm``, ``weights`` | ``trials``: seconds an example of each way to compute |
| ``prepare`` | ``name``, ``settings``, ``weights``: .npz of the layers' weights and biases in torch's layout | ``parameters``: their number |
| ``train`` | ``name``, ``steps`` | ``compile_seconds``: of these steps, 0 once all is compiled |
| ``weights`` | ``name``, ``file``: .npz to write, in torch's layout | |

Two things are ours to choose and decide the speed on a processor without accelerator, so they are tried: how a convolution is written (``lax``:
``lax.conv_general_dilated``, which flax and haiku use, too; ``products``: a product of patches and kernel, the same numbers) and jax-privacy's
``microbatch_size`` (without privacy: the rows that are computed at once).
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import dp_accounting
import jax
import jax.numpy as jnp
import jax_privacy
import numpy as np
import optax
from jax_privacy.batch_selection import CyclicPoissonSampling, PartitionType, split_and_pad_global_batch
from jax_privacy.noise_addition import gaussian_privatizer

Layers = list[tuple[Any, Any]]
CONVOLUTIONS = ("products", "lax")
_TRIAL = 8  # examples, where a microbatch is not larger
_ENDLESS = 2**31


def convolution(x: Any, layer: tuple[Any, Any], way: str, *, stride: int, padding: int) -> Any:
    """``(b, h, w, c)`` with a kernel ``(k, k, c, o)``."""
    kernel, bias = layer
    if way == "lax":
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(padding, padding)] * 2, None, None, dimensions)
        return x + bias
    side = kernel.shape[0]
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    last = (x.shape[1] - side) // stride * stride + 1
    places = [(i, j) for i in range(side) for j in range(side)]
    patches = jnp.concatenate([x[:, i : i + last : stride, j : j + last : stride] for i, j in places], -1)
    return patches @ kernel.reshape(-1, kernel.shape[-1]) + bias


def largest_of_four(x: Any, *, stride: int) -> Any:
    """Max-pooling of 2×2."""
    b, h, w, c = x.shape
    if stride == 2:
        return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
    rows = jnp.maximum(x[:, :-1], x[:, 1:])
    return jnp.maximum(rows[:, :, :-1], rows[:, :, 1:])


def hidden_and_logits(x: Any, layers: Layers) -> Any:
    """Flattened, a hidden layer, the logits."""
    (weight, bias), (last_weight, last_bias) = layers
    return jnp.tanh(x.reshape(len(x), -1) @ weight + bias) @ last_weight + last_bias


def mnist(layers: Layers, x: Any, way: str) -> Any:
    """Logits of ``(b, 28, 28, 1)``: 16 channels of 8×8 and 32 of 4×4, both with stride 2, and a hidden layer of 32."""
    x = largest_of_four(jnp.tanh(convolution(x, layers[0], way, stride=2, padding=2)), stride=1)
    x = largest_of_four(jnp.tanh(convolution(x, layers[1], way, stride=2, padding=0)), stride=1)
    return hidden_and_logits(x, layers[2:])


def cifar10(layers: Layers, x: Any, way: str) -> Any:
    """Logits of ``(b, 32, 32, 3)``: 32-32-M-64-64-M-128-128-M with a hidden layer of 128."""
    for number, layer in enumerate(layers[:6]):
        x = jnp.tanh(convolution(x, layer, way, stride=1, padding=1))
        if number % 2:
            x = largest_of_four(x, stride=2)
    return hidden_and_logits(x, layers[6:])


#: Name → logits, the shape of its images, the weights' shapes in torch's layout, the shape of what is flattened.
NETWORKS: dict[str, tuple[Callable[..., Any], tuple[int, ...], Sequence[tuple[int, ...]], tuple[int, int, int]]] = {
    "mnist": (mnist, (1, 28, 28), [(16, 1, 8, 8), (32, 16, 4, 4), (32, 512), (10, 32)], (32, 4, 4)),
    "cifar10": (
        cifar10,
        (3, 32, 32),
        [(b, a, 3, 3) for a, b in ((3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128))]
        + [(128, 2048), (10, 128)],
        (128, 4, 4),
    ),
}


def from_torch(arrays: list[np.ndarray], network: str) -> Layers:
    """Weights and biases in turn → layers; what is flattened has its channels last here."""
    _, _, shapes, flat = NETWORKS[network]
    expected = [shape for weight in shapes for shape in (weight, weight[:1])]
    if [array.shape for array in arrays] != expected:
        raise SystemExit(f"weights of {network}: expected shapes {expected}, got {[array.shape for array in arrays]}")
    layers = []
    for weight, bias in zip(arrays[::2], arrays[1::2], strict=True):
        if weight.ndim == 4:
            weight = weight.transpose(2, 3, 1, 0)
        elif weight.shape[1] == math.prod(flat):
            weight = weight.reshape(-1, *flat).transpose(2, 3, 1, 0).reshape(-1, len(weight))
        else:
            weight = weight.T
        layers.append((jnp.asarray(weight), jnp.asarray(bias)))
    return layers


def to_torch(layers: Layers, network: str) -> list[np.ndarray]:
    """The way back."""
    channels, height, width = NETWORKS[network][3]
    arrays = []
    for layer in layers:
        weight, bias = (np.asarray(part) for part in layer)
        if weight.ndim == 4:
            weight = weight.transpose(3, 2, 0, 1)
        elif weight.shape[0] == channels * height * width:
            weight = weight.reshape(height, width, channels, -1).transpose(3, 2, 0, 1).reshape(weight.shape[1], -1)
        else:
            weight = weight.T
        arrays += [weight, bias]
    return arrays


class Compiled:
    """A jitted function that is compiled once a shape and counts the seconds of it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.jitted = jax.jit(function)
        self.known: dict[Any, Callable[..., Any]] = {}
        self.seconds = 0.0

    def __call__(self, *values: Any) -> Any:
        shapes = tuple(value.shape for value in jax.tree.leaves(values))
        if shapes not in self.known:
            begin = time.perf_counter()
            self.known[shapes] = self.jitted.lower(*values).compile()
            self.seconds += time.perf_counter() - begin
        return self.known[shapes](*values)


def sum_of_losses(layers: Layers, x: Any, y: Any, *, network: str, way: str) -> Any:
    """Cross entropy, summed over examples."""
    return optax.softmax_cross_entropy_with_integer_labels(NETWORKS[network][0](layers, x, way), y).sum()


def clipped_gradient(loss: Callable[..., Any], max_grad_norm: float, microbatch: int) -> Any:
    """jax-privacy's sum of clipped gradients of ``(layers, x, y, is_padding_example=…)``."""
    return jax_privacy.clipped_grad(loss, l2_clip_norm=max_grad_norm, batch_argnums=(1, 2), microbatch_size=microbatch)


class Training:
    """One contender: its weights, optimizer and sampler; a logical batch is computed in pieces.

    With privacy all parts are jax-privacy's, put together as its own examples do: Poisson sampling, the last piece padded to the size that is compiled
    (and the padding neither computed in whole microbatches nor counted), clipped sums, noise. Without: shuffled batches and the same optimizer.
    """

    def __init__(self, network: str, x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], settings: Any) -> None:
        self.network, self.x, self.y = network, x, y
        self.layers = from_torch(weights, network)
        self.physical, self.microbatch = settings["physical_batch_size"], settings["microbatch"]
        batch_size, private = settings["batch_size"], settings["private"]
        rng = np.random.default_rng()
        loss = partial(sum_of_losses, network=network, way=settings["convolution"])
        clipped = clipped_gradient(loss, settings["max_grad_norm"], self.microbatch) if private else None
        optimizer = optax.sgd(settings["lr"], settings["momentum"])
        if clipped is not None:
            sensitivity = clipped.sensitivity(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
            deviation = settings["noise_multiplier"] * sensitivity
            key = int(rng.integers(2**31))
            noise = gaussian_privatizer(stddev=deviation, prng_key=key)
            sampling = CyclicPoissonSampling(
                sampling_prob=batch_size / len(x), iterations=_ENDLESS, partition_type=PartitionType.INDEPENDENT
            )
            self.batches: Iterator[np.ndarray] = sampling.batch_iterator(len(x), rng)
        else:
            noise = optax.identity()
            self.batches = shuffled(len(x), batch_size, rng)

        def add(sums: Layers, layers: Layers, x: Any, y: Any, padding: Any) -> Layers:
            gradients = (
                jax.grad(loss)(layers, x, y) if clipped is None else clipped(layers, x, y, is_padding_example=padding)
            )
            return jax.tree.map(jnp.add, sums, gradients)

        def update(sums: Layers, layers: Layers, noise_state: Any, state: Any) -> Any:
            noisy, noise_state = noise.update(sums, noise_state)
            updates, state = optimizer.update(jax.tree.map(lambda g: g / batch_size, noisy), state)
            return optax.apply_updates(layers, updates), noise_state, state

        self.add, self.update = Compiled(add), Compiled(update)
        self.private = private
        self.zeros = jax.tree.map(jnp.zeros_like, self.layers)
        self.noise_state, self.state = noise.init(self.layers), optimizer.init(self.layers)

    def step(self) -> None:
        """Selection, gradients of all pieces, noise, update."""
        rows = next(self.batches)
        if self.private:
            pieces = split_and_pad_global_batch(rows, self.physical, self.microbatch)
        else:
            pieces = np.split(rows, range(self.microbatch, len(rows), self.microbatch))
        sums = self.zeros
        for piece in pieces:
            padding = piece == -1
            there = np.where(padding, 0, piece)
            sums = self.add(sums, self.layers, self.x[there], self.y[there], padding)
        self.layers, self.noise_state, self.state = self.update(sums, self.layers, self.noise_state, self.state)

    def train(self, steps: int) -> float:
        """Take steps and wait for the last; returns the seconds of compilation."""
        before = self.add.seconds + self.update.seconds
        for _ in range(steps):
            self.step()
        jax.block_until_ready(self.layers)
        return self.add.seconds + self.update.seconds - before


def shuffled(count: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of one size, every row at most once an epoch."""
    while True:
        order = rng.permutation(count)
        for start in range(0, count - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def trials(network: str, x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], asked: Any) -> list[dict[str, Any]]:
    """Seconds an example of ways to compute a gradient sum, on the first rows; the shortest of up to ten runs in a second.

    ``lax`` is tried with privacy one example at a time only, which suits it best: larger microbatches become grouped convolutions.
    """
    layers = from_torch(weights, network)
    private = asked["private"]
    microbatches = [size for size in asked["microbatches"] if size <= len(x)] or [1]
    found = []
    for way in CONVOLUTIONS:
        loss = partial(sum_of_losses, network=network, way=way)
        for microbatch in [min(microbatches)] if private and way == "lax" else microbatches:
            gradient = clipped_gradient(loss, asked["max_grad_norm"], microbatch) if private else jax.grad(loss)
            count = min(len(x) // microbatch, max(1, _TRIAL // microbatch)) * microbatch
            run = (
                jax.jit(lambda layers, x, y, g=gradient: g(layers, x, y)).lower(layers, x[:count], y[:count]).compile()
            )
            seconds: list[float] = []
            while not seconds or (len(seconds) < 10 and sum(seconds) < 1):
                begin = time.perf_counter()
                jax.block_until_ready(run(layers, x[:count], y[:count]))
                seconds.append(time.perf_counter() - begin)
            found.append({"convolution": way, "microbatch": microbatch, "seconds": min(seconds) / count})
    return found


def arrays_of(file: str) -> list[np.ndarray]:
    """The arrays of an .npz in the order in which they were given to ``savez``."""
    with np.load(file) as stored:
        return [stored[f"arr_{number}"] for number in range(len(stored.files))]


def main() -> None:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def tell(answer: dict[str, Any]) -> None:
        channel.write(json.dumps(answer) + "\n")
        channel.flush()

    tell({"jax": jax.__version__, "jax_privacy": jax_privacy.__version__, "optax": optax.__version__})
    network, x, y = "", np.zeros(0), np.zeros(0)
    contenders: dict[str, Training] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any] = {}
        if asked["do"] == "data":
            contenders.clear()
            network, y = asked["network"], np.load(asked["y"]).astype(np.int32)
            rows = np.load(asked["x"], mmap_mode="r")
            x = np.ascontiguousarray(rows.reshape(-1, *NETWORKS[network][1]).transpose(0, 2, 3, 1))
        elif asked["do"] == "try":
            answer["trials"] = trials(network, x, y, arrays_of(asked["weights"]), asked)
        elif asked["do"] == "prepare":
            training = Training(network, x, y, arrays_of(asked["weights"]), asked["settings"])
            contenders[asked["name"]] = training
            answer["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(training.layers))
        elif asked["do"] == "train":
            answer["compile_seconds"] = contenders[asked["name"]].train(asked["steps"])
        elif asked["do"] == "weights":
            np.savez(asked["file"], *to_torch(contenders[asked["name"]].layers, network))
        else:
            raise SystemExit(f"do={asked['do']!r}: unknown")
        tell(answer)


if __name__ == "__main__":
    main()
