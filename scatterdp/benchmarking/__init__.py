"""What clipping per example costs: time, memory and agreement of every way to do it, on networks of several sizes."""

from scatterdp.benchmarking.agreement import Difference, differences
from scatterdp.benchmarking.contenders import CONTENDERS
from scatterdp.benchmarking.largest import Largest, largest_batch
from scatterdp.benchmarking.measuring import Cell, measure
from scatterdp.benchmarking.networks import NETWORKS
from scatterdp.benchmarking.probe import Probe, Question, probe

__all__ = [
    "CONTENDERS",
    "NETWORKS",
    "Cell",
    "Difference",
    "Largest",
    "Probe",
    "Question",
    "differences",
    "largest_batch",
    "measure",
    "probe",
]
