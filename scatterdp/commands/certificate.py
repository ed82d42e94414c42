"""``python -m scatterdp certificate RUN``: what a run guarantees, in words, checked against its ledger.

    python -m scatterdp certificate runs/digits-20260101-120000-000000
    python -m scatterdp certificate certificate.json

The exit code is 1 when the certificate does not follow from its own ledger.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from scatterdp.errors import ConfigError
from scatterdp.privacy.checking import check_certificate
from scatterdp.report.guarantee import guarantee_in_words


@dataclass(frozen=True, kw_only=True)
class CertificateConfig:
    """Print what a run guarantees, in words, and check it against the ledger."""

    run: tyro.conf.Positional[Path]
    """A finished run's folder, or a certificate.json."""


def run(argv: list[str]) -> int:
    """Run ``certificate`` with its arguments.

    Returns:
        0, or 1 when the certificate disagrees with its ledger.

    Raises:
        UserError: there is no certificate.
    """
    config = tyro.cli(
        CertificateConfig, prog="scatterdp certificate", args=argv, use_underscores=True, description=__doc__
    )
    path = config.run / "certificate.json" if config.run.is_dir() else config.run
    try:
        certificate = json.loads(path.read_bytes())
    except OSError as error:
        if (config.run / "certificate.txt").exists():
            raise ConfigError(
                f"run={config.run}: the best of candidates that release different things has no ledger to check; read what holds in {config.run / 'certificate.txt'}"
            ) from error
        unfinished = (config.run / "config.json").exists()
        why = "this run is not finished" if unfinished else f"cannot be read ({error.strerror})"
        raise ConfigError(
            f"run={config.run}: {why}; give the folder of a finished run or its certificate.json"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"run={config.run}: {path.name} is no JSON ({error}); give a run's certificate.json"
        ) from error
    checked = check_certificate(certificate)
    print(guarantee_in_words(certificate, checked))
    return 1 if checked.disagreements else 0
