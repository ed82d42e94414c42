"""Privacy: randomness, noise, sampling, statistics, accounting, calibration, ledger, certificate."""
