"""A certificate in words, for whoever has to answer for the people in the data."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Context
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
    text: list[str] = []
    for section in guarantee_sections(certificate, checked):
        if section.heading:
            text.append(f"\n{section.heading}\n{'-' * len(section.heading)}")
        text += [textwrap.fill(line, _WIDTH) for line in section.before]
        text += [textwrap.fill(f"- {line}", _WIDTH, subsequent_indent="  ") for line in section.listed]
        text += [textwrap.fill(line, _WIDTH) for line in section.after]
    return "\n".join(text)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a certificate in words: sentences, a list, sentences.

    Args:
        heading: empty for the opening.
    """

    heading: str
    before: list[str] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


def guarantee_sections(certificate: dict[str, Any], checked: Checked) -> list[Section]:
    """The parts of :func:`guarantee_in_words`, whose arguments these are."""
    data, features = certificate["data"], certificate["features"]
    of_classes = f" of {len(data['classes'])} classes" if "classes" in data else ""
    exact = certificate["not_private"]
    return [
        Section(
            heading="",
            before=[
                f"Model trained on {data['name']}: {data['num_train']} examples{of_classes}, on {features['extractor']} features."
            ],
        ),
        Section(
            heading="What is promised",
            before=_promise(certificate)
            if certificate["private"]
            else ["Nothing: this run is NOT private. Do not give its model away."],
        ),
        Section(
            heading="What left the data",
            listed=[_released(entry) for entry in certificate["ledger"]],
            after=["Everything else in the model is computed from these or from public things."],
        ),
        Section(
            heading="What is not covered",
            listed=[
                *([f"These numbers of the run are exact: {', '.join(exact)}."] if exact else []),
                *certificate["limits"],
            ],
        ),
        Section(
            heading="Whether this file agrees with itself",
            before=["NO. Do not rely on it:"] if checked.disagreements else [_agreement(certificate, checked)],
            listed=[f"{sentence}." for sentence in checked.disagreements],
        ),
    ]


def detection_limit(epsilon: float, delta: float, false_alarms: float) -> float:
    """The largest share of present examples that any test can recognise as present, at this share of false alarms.

    An (ε, δ)-private result and its neighbour's cannot be told apart better (Kairouz, Oh & Viswanath 2015, arXiv 1311.0776, theorem 2.1).

    >>> round(detection_limit(1.0, 0.0, 0.05), 3)
    0.136
    """
    first = math.exp(min(epsilon, 700)) * false_alarms + delta
    second = 1 - math.exp(-epsilon) * (1 - delta - false_alarms)
    return min(first, second, 1.0)


def _at_most(value: float) -> str:
    """To three digits, never below ``value``."""
    return f"{Context(prec=3, rounding=ROUND_CEILING).create_decimal(value):.3g}"


def _promise(certificate: dict[str, Any]) -> list[str]:
    epsilon, delta = certificate["epsilon"], certificate["delta"]
    told = _at_most(math.exp(epsilon)) if epsilon < 50 else f"e^{math.ceil(epsilon)}"
    tests = [
        f"{_at_most(100 * detection_limit(epsilon, delta, share))} % of those that were there at {100 * share:g} % false alarms"
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


def _agreement(certificate: dict[str, Any], checked: Checked) -> str:
    told = ", ".join(
        f"{rounded_up(value) if value is not None else '∞'} ({name})" for name, value in checked.epsilons.items()
    )
    return f"Yes. ε computed again from its list of releases, at δ = {certificate['delta']:g}: {told}; sampler, steps and noise fit the list."
