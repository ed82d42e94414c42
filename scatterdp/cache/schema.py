"""The file's root: opened, its attributes written and read back with their digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from scatterdp.cache.files import remedy
from scatterdp.errors import CacheError

SCHEMA_VERSION = 2

_ATTRIBUTE_BYTES = 60_000  # HDF5's limit is 64 KiB
_TEXT_ATTRIBUTES = ("dataset_name", "dataset_fingerprint", "extractor_name", "extractor_fingerprint", "dtype")
_JSON_ATTRIBUTES = ("class_names", "image_shape", "output_shape", "extractor_config", "versions")


def open_hdf5(path: Path) -> h5py.File:
    """The file, opened for reading.

    Raises:
        CacheError: it is missing, truncated, no HDF5 file, or may not be read.
    """
    if not path.is_file():
        raise CacheError(f"{path}: no such feature cache; extract the features with `python -m scatterdp extract`")
    try:
        # A published file never changes, and locks fail on some read-only and network file systems.
        return h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise CacheError(f"{path}: no permission to read it; ask its owner") from error
        reason = "is truncated" if "truncated" in str(error) else "is not a readable HDF5 file"
        raise CacheError(f"{path}: {reason}; {remedy(path)}") from error


def _attributes_digest(attributes: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(attributes, sort_keys=True).encode()).hexdigest()


def write_attributes(file: h5py.File, attributes: dict[str, Any]) -> None:
    """Write the root attributes, their digest and the schema version.

    Raises:
        CacheError: an attribute too long for HDF5.
    """
    for name in _TEXT_ATTRIBUTES:
        file.attrs[name] = np.bytes_(attributes[name].encode())
    for name in _JSON_ATTRIBUTES:
        text = json.dumps(attributes[name], sort_keys=True).encode()
        if len(text) > _ATTRIBUTE_BYTES:
            raise CacheError(f"{name}: {len(text)} bytes as JSON, expected at most {_ATTRIBUTE_BYTES} (HDF5's limit)")
        file.attrs[name] = np.bytes_(text)
    file.attrs["attributes_sha256"] = np.bytes_(_attributes_digest(attributes))
    file.attrs["schema_version"] = np.int64(SCHEMA_VERSION)


def read_attributes(file: h5py.File, path: Path) -> dict[str, Any]:
    """The root attributes of the file at ``path``, checked against their digest.

    Raises:
        CacheError: no feature cache, of another schema version, or damaged.
    """
    try:
        found: dict[str, Any] = {name: file.attrs[name] for name in file.attrs}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CacheError(f"{path}: its attributes are damaged ({error}); {remedy(path)}") from error
    if "schema_version" not in found:
        raise CacheError(f"{path}: is an HDF5 file but not a feature cache; move it elsewhere")
    if found["schema_version"] != SCHEMA_VERSION:
        raise CacheError(
            f"{path}: has schema version {found['schema_version']}, this version of scatterdp reads {SCHEMA_VERSION}; "
            f"{remedy(path)}"
        )
    try:
        attributes: dict[str, Any] = {name: bytes(found[name]).decode() for name in _TEXT_ATTRIBUTES}
        attributes |= {name: json.loads(bytes(found[name])) for name in _JSON_ATTRIBUTES}
        digest = bytes(found["attributes_sha256"]).decode()
    except (KeyError, ValueError, TypeError) as error:
        raise CacheError(f"{path}: its attributes are damaged ({error}); {remedy(path)}") from error
    if digest != _attributes_digest(attributes):
        raise CacheError(f"{path}: its attributes are damaged (their digest does not match); {remedy(path)}")
    return attributes
