"""Seal: batches in the spool encrypted, for those whose disks others can read.

AES-256-GCM with a fresh nonce for each batch; what the file says about the batch (its encoding, its
number of records) is authenticated too. A sealed file names its key by a hash, so that one sealed
with another key is left for whoever has it, not taken for damage.

Not here: where the key comes from (``Settings.spool_key``, assembly.py), files (spool.py). Needs the
extra ``encryption``.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

KEY_ID_BYTES = 8
_NONCE_BYTES = 12


class AesSeal:
    """Encrypts and decrypts with one key.

    Args:
        key: 64 hexadecimal digits.

    Raises:
        ValueError: If ``key`` is none, or the extra is not installed.
    """

    def __init__(self, key: str) -> None:
        try:
            secret = bytes.fromhex(key)
        except ValueError:
            secret = b""
        if len(secret) != 32:
            raise ValueError(
                "spool_key must be 64 hexadecimal digits; make one with "
                "python -c 'import secrets; print(secrets.token_hex(32))'"
            )
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as exc:
            raise ValueError("an encrypted spool needs the extra: pip install 'logsvc-shippers[encryption]'") from exc
        self._cipher: Any = AESGCM(secret)
        self._invalid: type[Exception] = InvalidTag
        self.key_id = hashlib.blake2b(secret, digest_size=KEY_ID_BYTES, person=b"logsvc-spool-key").digest()

    def close(self, body: bytes, about: bytes) -> bytes:
        """Return ``body`` encrypted, bound to ``about``."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + bytes(self._cipher.encrypt(nonce, body, about))

    def open(self, sealed: bytes, about: bytes) -> bytes:
        """Return what ``close`` was given.

        Raises:
            ValueError: If it was not made by ``close`` with the same key and ``about``.
        """
        try:
            return bytes(self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about))
        except self._invalid as exc:
            raise ValueError("not sealed by this key") from exc
