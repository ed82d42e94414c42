"""The certificate: what a run guarantees, from its ledger, in a form that a reader can check.

Nothing in it depends on the private data beyond what the ledger counts: no digest of private data (a keyed
commitment with a nonce stands for it), no sampled batch size, no gradient norm.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from scatterdp.privacy.accounting import ACCOUNTANTS, Accountant, delta_warning
from scatterdp.privacy.ledger import Ledger, finite_or_none
from scatterdp.privacy.randomness import Origin, RandomKey, describe_origin

SCHEMA = 1
TRAINING = "training"  # the ledger's name for all model updates

LIMITS = (
    "The unit is one example (one image). Someone with k examples has the weaker protection of a group of k: about k·ε, with a δ of about k·e^((k-1)·ε)·δ.",
    "N, the size of an example (an image's size and colour, the number of features) and the set of classes are public; what is computed from N stays as it is for the neighbour.",
    "One run is covered. Several runs on the same people add up (compose their ledgers), and so does choosing among them.",
    "Test examples are not protected: accuracy on them is computed without noise.",
    "Cached features, the checkpoint of an unfinished run, the commitment key and whatever holds a seed (a config.json, a sweep's "
    "outline, record and tables) are private files: do not publish them.",
    "Whether and why a run fails, what is changed because of that, console output, timings and memory use are not covered.",
    "Gradients and noise are floating-point numbers, and noise ends 9.16 standard deviations out; the proof is for real numbers and whole normal distributions.",
    "Noise is a cryptographic stream's (SHAKE-256): the guarantee is against those who cannot break that.",
)

VERSIONED = ("scatterdp", "torch", "numpy", "scipy", "dp-accounting", "kymatio", "h5py")


def rounded_up(epsilon: float, decimals: int = 4) -> str:
    """ε to so many decimals, never below what was computed.

    >>> rounded_up(2.99991), rounded_up(2.991, decimals=2), rounded_up(1.1, decimals=2)
    ('3.0000', '3.00', '1.10')
    """
    if not math.isfinite(epsilon):
        return "∞"
    nearest = round(epsilon, decimals)
    if nearest < epsilon:
        nearest = math.ceil(epsilon * 10**decimals) / 10**decimals
    return f"{nearest:.{decimals}f}"


def make_certificate(
    ledger: Ledger,
    *,
    delta: float,
    accountant: Accountant,
    adjacency: str,
    sampler: dict[str, Any],
    key: RandomKey | Origin,
    data: dict[str, Any],
    features: dict[str, Any],
    not_private: list[str],
    model: dict[str, Any] | None = None,
    computation: dict[str, Any] | None = None,
    more_limits: Sequence[str] = (),
    assumptions: Sequence[str] = (),
) -> dict[str, Any]:
    """The certificate as JSON values.

    Args:
        ledger: everything that was released. ε comes from it and from nothing else.
        delta: δ.
        accountant: which ε is the claim; the others are listed beside it.
        adjacency: in words; what one data set and its neighbour differ by.
        sampler: :meth:`scatterdp.privacy.sampling.BatchSelection.describe`; of kind ``none`` when no batch is drawn, ``composed``
            when several fits, each with its own, make the ledger.
        key: the run's key, of which only the origin is written; or that origin.
        data: the data set's public facts.
        features: the extractor's name, configuration, fingerprint.
        not_private: printed or recorded numbers that the guarantee does not cover.
        model: how the model was made, where that is not in ``features``.
        computation: how several processes shared the work, where there were several.
        more_limits: sentences beside :data:`LIMITS`.
        assumptions: sentences about what this run takes on somebody's word; they stand first among the limits and in the statement.
    """
    origin = key.origin if isinstance(key, RandomKey) else key
    epsilons = {name: ledger.epsilon(delta=delta, accountant=name) for name in ACCOUNTANTS}
    epsilon = epsilons[accountant]
    private = finite_or_none(epsilon) is not None
    found = {
        "schema": SCHEMA,
        "statement": "",
        "private": private,
        "epsilon": finite_or_none(epsilon),
        "delta": delta,
        "accountant": accountant,
        "epsilon_by_accountant": {name: finite_or_none(value) for name, value in epsilons.items()},
        "adjacency": adjacency,
        "ledger": ledger.to_json(),
        "sampler": sampler,
        "noise_source": describe_origin(origin),
        "data": data,
        "features": features,
        "not_private": not_private,
        "assumptions": list(assumptions),
        "limits": [*assumptions, *LIMITS, *more_limits],
        "versions": {name: version(name) for name in VERSIONED} | {"python": platform.python_version()},
    }
    found |= {name: value for name, value in (("model", model), ("computation", computation)) if value is not None}
    return found | {"statement": _statement(found)}


def with_publication(certificate: dict[str, Any], *, data_name: str, not_private: list[str]) -> dict[str, Any]:
    """The certificate of what goes with a model: what its data are called, and more numbers that the guarantee does not cover.

    Args:
        certificate: from :func:`make_certificate`.
        data_name: what the user calls the data; the public facts beside it stay.
        not_private: what a command prints or records beside the model; listed in the statement.
    """
    more = [name for name in not_private if name not in certificate["not_private"]]
    found = certificate | {
        "data": certificate["data"] | {"name": data_name},
        "not_private": [*certificate["not_private"], *more],
    }
    return found | {"statement": _statement(found)}


def opening_of_statement(epsilon: float | None, delta: float) -> str:
    """How a certificate's statement begins.

    Args:
        epsilon: None for no guarantee.
        delta: δ.
    """
    if epsilon is None:
        return "This run is NOT differentially private: something was released without noise."
    return f"This run is (ε = {rounded_up(epsilon)}, δ = {delta!r})-differentially private."


def _statement(certificate: dict[str, Any]) -> str:
    opening = opening_of_statement(certificate["epsilon"], certificate["delta"])
    if not certificate["private"]:
        return opening
    names = dict.fromkeys(entry["name"] for entry in certificate["ledger"])  # each once, in order
    covered = [f"the {name}" for name in names if name != TRAINING]
    covered += ["every model update"] * (TRAINING in names)
    covered.append("all that is computed from them")
    delta = certificate["delta"]
    statement = (
        f"{opening} "
        f"Neighbouring data sets: {certificate['adjacency']}. Covered: {', '.join(covered[:-1])} and {covered[-1]}."
    )
    if certificate["not_private"]:
        statement += f" Not covered: {', '.join(certificate['not_private'])}."
    statement += "".join(f" {sentence}" for sentence in certificate["assumptions"])
    if not certificate["noise_source"]["cryptographic"]:
        statement += (
            " The noise comes from a seed: the guarantee holds only against those who cannot learn or guess it."
        )
    if warning := delta_warning(delta, certificate["data"]["num_train"]):
        statement += f" But {warning}."
    return statement
