"""A certificate in words, for whoever has to answer for the people in the data."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from scatterdp.privacy.certificate import rounded_up
from scatterdp.privacy.checking import Checked

_WIDTH = 100
_FALSE_ALARMS = (0.01, 0.05)


def guarantee_in_words(certificate: dict[str, Any], checked: Checked) -> str:
    """What one person's presence can change, what was released, what is not covered, and whether the file agrees with itself.

    Args:
        certificate: the values of a ``certificate.json``.
        checked: what :func:`scatterdp.privacy.checking.check_certificate` found in it.
    """
    data, features = certificate["data"], certificate["features"]
    of_classes = f" of {len(data['classes'])} classes" if "classes" in data else ""
    parts = [
        f"Model trained on {data['name']}: {data['num_train']} examples{of_classes}, on {features['extractor']} features.",
        _heading("What is promised"),
        *(
            _promise(certificate)
            if certificate["private"]
            else ["Nothing: this run is NOT private. Do not give its model away."]
        ),
        _heading("What left the data"),
        *(f"- {_released(entry)}" for entry in certificate["ledger"]),
        "Everything else in the model is computed from these or from public things.",
        _heading("What is not covered"),
        *(
            f"- These numbers of the run are exact: {', '.join(names)}."
            for names in [certificate["not_private"]]
            if names
        ),
        *(f"- {limit}" for limit in certificate["limits"]),
        _heading("Whether this file agrees with itself"),
        *_verdict(certificate, checked),
    ]
    return "\n".join(
        part if part.startswith("\n") else textwrap.fill(part, _WIDTH, subsequent_indent="  " * part.startswith("- "))
        for part in parts
    )


def detection_limit(epsilon: float, delta: float, false_alarms: float) -> float:
    """The largest share of present examples that any test can recognise as present, at this share of false alarms.

    An (ε, δ)-private result and its neighbour's cannot be told apart better (Kairouz, Oh & Viswanath 2015, arXiv 1311.0776, theorem 2.1).

    >>> round(detection_limit(1.0, 0.0, 0.05), 3)
    0.136
    """
    first = math.exp(min(epsilon, 700)) * false_alarms + delta
    second = 1 - math.exp(-epsilon) * (1 - delta - false_alarms)
    return min(first, second, 1.0)


def _promise(certificate: dict[str, Any]) -> list[str]:
    epsilon, delta = certificate["epsilon"], certificate["delta"]
    told = f"{math.exp(epsilon):.3g}" if epsilon < 50 else f"e^{epsilon:.0f}"
    tests = [
        f"{100 * detection_limit(epsilon, delta, share):.3g} % of those that were there at {100 * share:g} % false alarms"
        for share in _FALSE_ALARMS
    ]
    lines = [
        f"(ε, δ)-differential privacy with ε = {rounded_up(epsilon)} and δ = {delta:g} ({certificate['accountant']} accounting); the unit is "
        "one example.",
        f"Whether one example was among the data or not: any result of this run is at most {told} times as likely in one case as in the other, but "
        f"for an event of probability {delta:g}. Someone who holds the model and knows all other examples, and has to say whether this one was "
        f"there, recognises at most {' and '.join(tests)}.",
        f"The two cases differ by this: {certificate['adjacency']}.",
    ]
    caveat = certificate["noise_source"].get("caveat")
    return [*lines, f"But: {caveat}."] if caveat else lines


def _released(entry: dict[str, Any]) -> str:
    return f"{entry['name']}: {_event_in_words(entry['event'])}."


def _event_in_words(event: dict[str, Any]) -> str:
    match event["type"]:
        case "SelfComposedDpEvent":
            return f"{event['count']} times {_event_in_words(event['event'])}"
        case "PoissonSampledDpEvent":
            return f"from each example with probability {event['sampling_probability']:g}, {_event_in_words(event['event'])}"
        case "GaussianDpEvent" if event["noise_multiplier"]:
            return (
                f"a sum with Gaussian noise of {event['noise_multiplier']:g} × the most that one example can change it"
            )
        case "ComposedDpEvent":
            return "; ".join(_event_in_words(part) for part in event["events"])
        case "RepeatAndSelectDpEvent":
            return f"the best of a random number of trials, {event['mean']:g} on average, each {_event_in_words(event['event'])}"
        case "NoOpDpEvent":
            return "nothing"
    return "numbers without noise"


def _verdict(certificate: dict[str, Any], checked: Checked) -> list[str]:
    if checked.disagreements:
        return ["NO. Do not rely on it:", *(f"- {sentence}." for sentence in checked.disagreements)]
    told = ", ".join(
        f"{rounded_up(value) if value is not None else '∞'} ({name})" for name, value in checked.epsilons.items()
    )
    return [
        f"Yes. ε computed again from its list of releases, at δ = {certificate['delta']:g}: {told}; sampler, steps and noise fit the list."
    ]


def _heading(text: str) -> str:
    return f"\n{text}\n{'-' * len(text)}"
