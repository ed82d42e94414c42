"""MNIST raw pixels, linear, ε = 1: DPClassifier beside diffprivlib's logistic regression, same split, three seeds.

diffprivlib needs older libraries than scatterdp, so it runs in an environment of its own:

    python -m venv peer && peer/bin/pip install diffprivlib==0.6.6 scikit-learn==1.5.2 "numpy<2.3" "scipy<1.15"
    python scripts/compare_diffprivlib.py --peer_python=peer/bin/python

diffprivlib's guarantee is ε with δ = 0 (Chaudhuri et al. 2011), the nearest it offers; ours has δ = 1e-5. Both get the same rows. The peer needs a
public bound of the rows' length, so it gets rows of length one, which is what DPClassifier makes of them, too; of its regularisation strengths
the one with the best test accuracy counts, in its favour.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from scatterdp import DPClassifier, load_dataset

PEER = """
import json, sys, time, warnings
import numpy as np
from diffprivlib.models import LogisticRegression
warnings.simplefilter("ignore")
data = np.load(sys.argv[1])
for C in json.loads(sys.argv[4]):
    begin = time.monotonic()
    model = LogisticRegression(epsilon=float(sys.argv[2]), data_norm=1.0, C=C, random_state=int(sys.argv[3]))
    model.fit(data["x"], data["y"])
    print(json.dumps({"C": C, "accuracy": model.score(data["x_test"], data["y_test"]), "seconds": time.monotonic() - begin}), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", required=True, help="a Python that has diffprivlib")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.01, 1.0, 100.0])
    parser.add_argument("--data_dir", type=Path, default=None)
    args = parser.parse_args()
    dataset = load_dataset(args.dataset, data_dir=args.data_dir)
    (x, y), (x_test, y_test) = (
        (images.reshape(len(images), -1).astype(np.float32), labels)
        for images, labels in (dataset.split("train"), dataset.split("test"))
    )
    ours, theirs = [], {strength: [] for strength in args.strengths}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.npz"
        unit = {
            "x": x / np.linalg.norm(x, axis=1, keepdims=True),
            "x_test": x_test / np.linalg.norm(x_test, axis=1, keepdims=True),
        }
        np.savez(file, **unit, y=y, y_test=y_test)
        for seed in range(args.seeds):
            begin = time.monotonic()
            model = DPClassifier(epsilon=args.epsilon, delta=1e-5, random_state=seed).fit(x, y)
            ours.append(100 * model.score(x_test, y_test))
            print(f"scatterdp, seed {seed}: {ours[-1]:.2f} % in {time.monotonic() - begin:.1f} s", flush=True)
            command = [
                args.peer_python,
                "-c",
                PEER,
                str(file),
                str(args.epsilon),
                str(seed),
                json.dumps(args.strengths),
            ]
            for line in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
                found = json.loads(line)
                theirs[found["C"]].append(100 * found["accuracy"])
                print(
                    f"diffprivlib, C = {found['C']:g}, seed {seed}: {theirs[found['C']][-1]:.2f} % in {found['seconds']:.1f} s",
                    flush=True,
                )
    best = max(theirs, key=lambda strength: np.mean(theirs[strength]))
    for name, values in (
        (f"scatterdp, ε = {args.epsilon:g}, δ = 1e-5", ours),
        (f"diffprivlib, ε = {args.epsilon:g}, δ = 0, C = {best:g}", theirs[best]),
    ):
        print(
            f"{name}: {np.mean(values):.2f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.2f} % (n = {len(values)})"
        )


if __name__ == "__main__":
    main()
