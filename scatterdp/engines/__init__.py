"""Per-example clipping: ``(model, per-example loss, x, y, max_grad_norm) -> clipped gradient sum, norms``."""

from scatterdp.engines.apart import check_by_example
from scatterdp.engines.bookkeeping import Decision, decisions, ghost_engine, mixed_ghost_engine
from scatterdp.engines.clipping import Clipping
from scatterdp.engines.contract import ClippedSum, Engine, PerExampleLoss
from scatterdp.engines.linear import linear_engine
from scatterdp.engines.modules import check_private, without_batch_norm
from scatterdp.engines.strategies import engine_of, per_example_gradients

loop_engine = engine_of("loop")

ENGINES: dict[str, Engine] = {
    "linear": linear_engine,
    "loop": loop_engine,
    "vmap": engine_of("vmap"),
    "hooks": engine_of("hooks"),
    "crb": engine_of("crb"),
    "ghost": ghost_engine,
    "mixed_ghost": mixed_ghost_engine,
}

__all__ = [
    "ENGINES",
    "ClippedSum",
    "Clipping",
    "Decision",
    "Engine",
    "PerExampleLoss",
    "check_by_example",
    "check_private",
    "decisions",
    "ghost_engine",
    "linear_engine",
    "loop_engine",
    "mixed_ghost_engine",
    "per_example_gradients",
    "without_batch_norm",
]
