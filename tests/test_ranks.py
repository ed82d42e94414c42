"""Processes of ``torchrun`` in a caller's own script."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise SystemError('of the script')"])
def test_connections_close_before_the_interpreter_does(ending):
    """What is registered first runs last."""
    script = f"""
        import atexit, sys
        import torch.distributed as distributed
        atexit.register(lambda: print("connected" if distributed.is_initialized() else "closed"))
        from scatterdp.ranks import TorchRanks
        TorchRanks().wait()
        TorchRanks().wait()
        print("connected" if distributed.is_initialized() else "closed")
        {ending}
    """
    address = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={**os.environ, **address},
        timeout=120,
    )
    assert done.stdout.split() == ["connected", "closed"], done.stderr
    assert done.returncode == {"": 0, "sys.exit(3)": 3}.get(ending, 1)
