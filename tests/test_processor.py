"""Which processor this is."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from scatterdp import processor
from scatterdp.processor import cpu_fingerprint, cpu_instructions, cpu_model

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R)
stepping\t: 8
flags\t\t: fpu avx2 amx_tile

processor\t: 1
model name\t: another
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd sve
CPU implementer\t: 0x41
CPU part\t: 0xd40
CPU revision\t: 1
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(processor, "_FACTS", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


@pytest.mark.parametrize(
    ("text", "model", "instructions"),
    [(X86, "Intel(R) Xeon(R) 6 143 8", "fpu avx2 amx_tile"), (ARM, "0x41 0xd40 1", "fp asimd sve")],
)
def test_as_linux_tells_it(told, text, model, instructions):
    told.write_text(text)
    assert cpu_model() == model
    assert cpu_instructions() == instructions
    one = cpu_fingerprint()
    assert one.startswith(f"{model} ")
    told.write_text(text.replace(instructions, instructions + " more"))
    assert cpu_fingerprint() != one


def test_where_nothing_tells_it(told, monkeypatch):
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert (cpu_model(), cpu_instructions()) == ("arm", "arm")
