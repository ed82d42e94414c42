"""Every private linear head on the same features: test accuracy, mean ± standard deviation over seeds, as a Markdown table.

    python scripts/compare_heads.py --sets digits --epsilons 1 --seeds 2        # seconds, no download
    python scripts/compare_heads.py                                            # an hour or more on two cores

Everything that is private is accounted (centre and head, privacy loss distributions, δ = 1e-5). ``scatternet`` features are brought to even scale by
synthetic images, as DPClassifier does. Newton's method is left out above 1000 features, where it takes minutes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from scatterdp.datasets import load_dataset
from scatterdp.estimators.images import ImageRows, channels_of, extractor_for, public_scale
from scatterdp.linear import HEADS, Budget, fit_linear
from scatterdp.privacy.randomness import RandomKey

#: Name → data set and extractor specification (None: the pixels as they are).
SETS: dict[str, tuple[str, str | None]] = {
    "digits": ("digits", None),
    "mnist": ("mnist", None),
    "mnist scatternet": ("mnist", "scatternet(J=3)"),
    "fmnist scatternet": ("fmnist", "scatternet(J=3)"),
}
NEWTON_UP_TO = 1000


def features(dataset_name: str, specification: str | None, data_dir: Path | None):
    """Training and test features ``(N, D)`` float32 with their labels, and the number of channels."""
    dataset = load_dataset(dataset_name, data_dir=data_dir)
    splits = (dataset.split("train"), dataset.split("test"))
    if specification is None:
        return [(x.reshape(len(x), -1).astype(np.float32), y) for x, y in splits], None
    extractor = extractor_for(specification, dataset.image_shape)
    scale = public_scale(extractor)
    return [(ImageRows(x, extractor, scale)[:], y) for x, y in splits], channels_of(extractor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--epsilons", nargs="+", type=float, default=[0.5, 1, 2, 3, 8])
    parser.add_argument("--heads", nargs="+", default=[head for head in HEADS if head != "auto"], choices=HEADS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data_dir", type=Path, default=None)
    args = parser.parse_args()
    print("| features | D | ε | head | test accuracy (%) | seconds |\n|---|---|---|---|---|---|", flush=True)
    for name in args.sets:
        ((x, y), (x_test, y_test)), channels = features(*SETS[name], args.data_dir)
        for epsilon in args.epsilons:
            for head in args.heads:
                if head == "newton" and x.shape[1] > NEWTON_UP_TO:
                    continue
                accuracies, seconds = [], []
                for seed in range(args.seeds):
                    begin = time.monotonic()
                    fit = fit_linear(
                        x,
                        y,
                        num_classes=int(y.max()) + 1,
                        budget=Budget(epsilon=epsilon, delta=1e-5),
                        key=RandomKey.from_seed(seed),
                        head=head,
                        channels=channels,
                    )
                    seconds.append(time.monotonic() - begin)
                    with torch.no_grad():
                        predicted = fit.head(torch.from_numpy(x_test)).argmax(1).numpy()
                    accuracies.append(100 * float((predicted == y_test).mean()))
                figure = f"{np.mean(accuracies):.1f}" + (
                    f" ± {np.std(accuracies, ddof=1):.1f}" if args.seeds > 1 else ""
                )
                print(
                    f"| {name} | {x.shape[1]} | {epsilon:g} | {head} | {figure} | {np.median(seconds):.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
