"""Features computed once and kept: one HDF5 file per data set, extractor and number type.

The file's structure – groups, attributes, every chunk's place – is made at once and never changes afterwards; rows are
then written at their fixed places. So a process may die at any moment and leave a file in which only the contents
of some rows are missing. The steps, in the order that makes this safe:

    NAME.h5.creating   the structure, allocated to its final size        → renamed when complete
    NAME.h5.partial    rows are written here, chunk by chunk             → renamed when complete
    NAME.h5.progress-R which rows are complete by process R; replaced atomically, after the rows themselves
    NAME.h5            the published cache; nothing but a finished file ever has this name
    NAME.h5.lock       held by the writer while it lives (NAME.h5.pid says who it is)

A published file's content depends on the data set, the extractor and the versions only: no time stamps, no
order of events. ``features/README.md`` describes the schema.
"""

from scatterdp.cache.extraction import extract_features
from scatterdp.cache.files import SPLITS, Split, cache_path, companion_paths, partial_path
from scatterdp.cache.gathering import RowFile, RowReader
from scatterdp.cache.listing import Summary, is_feature_cache, list_caches, summarize
from scatterdp.cache.lock import lock_owner, writer_lock
from scatterdp.cache.reading import FeatureCache, Features
from scatterdp.cache.verification import verify
from scatterdp.ranks import Ranks, ranks_of_environment

__all__ = [
    "SPLITS",
    "FeatureCache",
    "Features",
    "Ranks",
    "RowFile",
    "RowReader",
    "Split",
    "Summary",
    "cache_path",
    "companion_paths",
    "extract_features",
    "is_feature_cache",
    "list_caches",
    "lock_owner",
    "partial_path",
    "ranks_of_environment",
    "summarize",
    "verify",
    "writer_lock",
]
