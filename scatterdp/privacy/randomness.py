"""Randomness as an object: a keyed, counter-based stream.

Every random number is a function of ``(key, purpose, counter)``: SHAKE-256 (FIPS 202) of the three,
read as 64-bit words. Two things follow. A run that was killed and computes the same sums again (noise is bound to them,
:func:`scatterdp.privacy.noise.bound_to_sums`) adds the very noise that it would have added; and, with a key of 256 bits from the operating system,
nobody who lacks the key can predict or brute-force the noise. (``torch``'s CPU generator keeps 32 bits of its
seed: four billion candidates, each testable against a released model.)

A key made from an integer seed is reproducible and therefore *not* secret; a key that the caller brings is as secret as the
caller keeps it. The certificate says which it was.

>>> key = RandomKey.from_seed(0)
>>> (key.words("noise", counter=3, count=4) == key.words("noise", counter=3, count=4)).all()
np.True_
>>> (key.words("noise", counter=3, count=4) == key.words("noise", counter=4, count=4)).any()
np.False_
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

KEY_BYTES = 32

Origin = Literal["system", "seed", "caller"]


@dataclass(frozen=True)
class RandomKey:
    """256 secret bits and where they came from.

    Args:
        secret: 32 bytes. Whoever has them can recompute every noise draw of the run.
        origin: who made them: the operating system, a seed, or the caller (whose word for their secrecy it is).

    Raises:
        ValueError: another number of bytes, or an unknown origin.
    """

    secret: bytes = field(repr=False)
    origin: Origin = "caller"

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise ValueError(f"secret has {len(self.secret)} bytes: expected {KEY_BYTES}")
        if self.origin not in get_args(Origin):
            raise ValueError(f"origin={self.origin!r}: expected one of {', '.join(get_args(Origin))}")

    @classmethod
    def from_seed(cls, seed: int) -> RandomKey:
        """The key of an integer seed: reproducible, not secret."""
        return cls(hashlib.sha256(f"scatterdp seed {seed}".encode()).digest(), "seed")

    @classmethod
    def from_system(cls) -> RandomKey:
        """A fresh key from the operating system's generator."""
        return cls(secrets.token_bytes(KEY_BYTES), "system")

    @classmethod
    def make(cls, seed: int | None) -> RandomKey:
        """:meth:`from_system` when ``seed`` is None, else :meth:`from_seed`."""
        return cls.from_system() if seed is None else cls.from_seed(seed)

    def bound_to(self, context: str) -> RandomKey:
        """The key of one context (data, plan): another context, an independent key.

        Two runs from one seed that differ in a learning rate, a clipping bound or a single example must not share
        their noise: subtracting their releases would cancel it.
        """
        return RandomKey(hashlib.sha256(self.secret + b"bound to " + context.encode()).digest(), self.origin)

    def words(self, purpose: str, *, counter: int, count: int) -> np.ndarray:
        """``(count,)`` uniform uint64, a function of the key, the purpose and the counter alone."""
        message = self.secret + counter.to_bytes(8, "little") + purpose.encode()
        return np.frombuffer(hashlib.shake_256(message).digest(8 * count), dtype="<u8")

    def generator(self, purpose: str, *, counter: int = 0) -> np.random.Generator:
        """A NumPy generator for what carries no guarantee (shuffles, augmentation)."""
        return np.random.Generator(np.random.Philox(key=self.words(purpose, counter=counter, count=2)))

    def describe(self) -> dict[str, object]:
        """What the certificate says of the noise source."""
        return describe_origin(self.origin)


def describe_origin(origin: Origin) -> dict[str, object]:
    """What the certificate says of noise from a key of this origin."""
    known = origin == "seed"
    return {
        "stream": "SHAKE-256 in counter mode, 64-bit uniforms through the inverse normal distribution function",
        "origin": origin,
        "key": {
            "system": "256 bits from the operating system",
            "seed": "derived from a seed that the user gave",
            "caller": "256 bits that the calling program gave; the guarantee holds if they are random, used once, and nobody else knows them",
        }[origin],
        "cryptographic": not known,
        "caveat": (
            "floating-point Gaussian samples; not hardened against floating-point attacks (Mironov 2012)"
            if not known
            else "anyone who knows or guesses the seed can subtract the noise: the guarantee holds only against others; "
            "leave --seed (random_state) out for a model that you release, and use a seed once: equal results of two runs tell that "
            "their data are equal"
        ),
    }
