"""Many runs of one command, from an outline: planned, accounted, shared out among processes or machines, and put into one table.

    outline ──> plans ──> record ──> running ──> table, best          follow reads the record while the sweep runs
    (TOML)      (σ, ε)    (folder)   (workers)   (results.csv|md)

An outline is a TOML file::

    command = "cnns"                       # or "baselines"
    validation = 0.1                       # share of the training examples kept out of training (none when left out)
    validation_noise_multiplier = 10       # releases the accuracy on them inside the budget; left out: exact, outside the guarantee
    score = "validation_accuracy"          # what the best run is chosen by; "test_accuracy" when nothing is held out
    seeds = [0, 1, 2]                      # every combination once with each; left out: once, with noise from the system

    [config]                               # flags of the command that all runs share
    dataset = "cifar10"

    [grid]                                 # every combination of these
    target_epsilon = [2, 5, 10]
    lr = [0.01, 0.1, 1]

    [zip]                                  # the first of each together, the second of each, …; crossed with the grid; several as [[zip]]
    batch_size = [512, 1024]
    epochs = [25, 50]

A sweep's folder holds ``outline.toml`` as given, ``sweep.json`` (:mod:`scatterdp.sweeps.record`), ``results.csv`` and ``results.md``, ``logs/`` and an ordinary
run folder for each run under ``runs/``. A sweep that was killed goes on when it is started again: what is finished is kept, half-done runs go on from their
checkpoints with the very noise of before.

**What choosing costs.** Every run looks at the same people. :mod:`scatterdp.sweeps.selection` says what all of them cost together and what the choice of
the best costs, next to the figure that is often reported, that of the chosen run alone. Of a finished random search, ``best/`` is what may be published
(:mod:`scatterdp.sweeps.publication`).
"""
