"""What a published certificate may say of private data: a keyed commitment, not a digest.

A plain digest is a deterministic function of the data. Someone who knows all examples but one could test guesses of
the last against it: no ε bounds that. Under a key that stays with the data's owner the digest tells nothing to
others, and the owner can still show later which data a certificate is about.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

from scatterdp.errors import UserError
from scatterdp.writing import DISK_FULL

KEY_NAME = "commitment.key"


def commitment(fingerprint: str, key: bytes, nonce: str) -> str:
    """HMAC-SHA-256 of a nonce and a fingerprint, hexadecimal.

    The nonce is fresh for every certificate and stands in it: equal commitments would tell that the data did not change.
    """
    return hmac.new(key, f"{nonce} {fingerprint}".encode(), hashlib.sha256).hexdigest()


def commitment_key(folder: Path) -> bytes:
    """The 32-byte key in ``folder/commitment.key``; made (mode 0600) when there is none.

    Raises:
        UserError: a key file of another size, or the folder cannot be written.
    """
    path = folder / KEY_NAME
    if not path.exists():
        try:
            _make_key(path)
        except OSError as error:
            if error.errno in DISK_FULL:
                remedy = "make room"
            elif error.errno in (errno.EACCES, errno.EROFS):
                remedy = "make it writable"
            elif error.errno in (errno.EPERM, errno.ENOTSUP):  # of os.link, on exFAT for one
                remedy = "its file system may lack hard links, move the folder to another"
            else:
                raise
            raise UserError(
                f"features_dir={folder}: cannot be written ({error.strerror}); {remedy}, and go on with the run by --resume"
            ) from error
    try:
        key = path.read_bytes()
    except PermissionError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}): the key of somebody else, who alone may read it; give a --features_dir of your own"
        ) from error
    if len(key) != 32:
        raise UserError(
            f"{path}: found {len(key)} bytes, expected a key of 32; move the file away to have a new one made"
        )
    return key


def _make_key(path: Path) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):  # another process was first: its key is the key
            os.link(temporary, path)  # whole or not at all
    finally:
        os.unlink(temporary)
