"""Per-example clipping: ``(model, per-example loss, x, y, max_grad_norm) -> clipped gradient sum, norms``."""

from scatterdp.engines.contract import ClippedSum, Engine, PerExampleLoss
from scatterdp.engines.linear import linear_engine
from scatterdp.engines.loop import loop_engine

ENGINES: dict[str, Engine] = {"linear": linear_engine, "loop": loop_engine}

__all__ = ["ENGINES", "ClippedSum", "Engine", "PerExampleLoss", "linear_engine", "loop_engine"]
