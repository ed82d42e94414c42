"""What is stored beside rows to check them."""

from __future__ import annotations

import numpy as np
import xxhash


def squared_norms_of(rows: np.ndarray) -> np.ndarray:
    """``(B, …) -> (B,)`` float64: ‖x‖² of each row; not finite where the row is not."""
    flat = rows.reshape(len(rows), -1).astype(np.float32, copy=False)
    return np.einsum("ij,ij->i", flat, flat, dtype=np.float64)


def chunk_digest(rows: np.ndarray) -> bytes:
    """16 bytes that tell damage (not forgery: whoever can change a chunk can change its digest): XXH3."""
    return xxhash.xxh3_128_digest(np.ascontiguousarray(rows).data)
