"""What the assistant thought, folded into one opaque string that a client carries to its next request.

Clients want a signature under each thought, and some send back nothing else. Here nobody checks it: it marks a thought
as made here, and may hold all of it. What other makers signed stays as it came.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final

from mlxm.types import ReasoningPart

_MARK: Final = "mlxm1."
_SEAL: Final = "mlxm1s."
_DIGEST_LENGTH: Final = 32


def sign(text: str) -> str:
    """The signature of a thought that is told beside it."""
    return _MARK + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_DIGEST_LENGTH]


def seal(text: str) -> str:
    """The whole thought, for clients that are told nothing else."""
    return _SEAL + base64.urlsafe_b64encode(text.encode(errors="surrogatepass")).decode()


def read_reasoning(text: str, signature: str | None) -> ReasoningPart | None:
    """A thought that a client sent back; None when there is nothing in it that can be read here.

    A foreign signature stays with its text: its maker wants it back.
    """
    if signature is None or signature.startswith(_MARK):
        return ReasoningPart(text) if text else None
    if signature.startswith(_SEAL):
        whole = text or _unseal(signature)
        return ReasoningPart(whole) if whole else None
    return ReasoningPart(text, signature) if text else None


def _unseal(signature: str) -> str | None:
    try:
        return base64.urlsafe_b64decode(signature.removeprefix(_SEAL)).decode(errors="surrogatepass")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
