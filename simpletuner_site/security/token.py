"""The token of a server that other machines may reach: made, stored as a hash, and compared.

A token is long and random, so a single round of a hash protects it; every request can be checked in microseconds.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.contract.atomic import PRIVATE_MODE, write_atomically

FILE = "access.json"
"""In ``state/``: the salt and the hash of the token."""
TOKEN_BYTES = 32
FEWEST_CHARACTERS = 20
MOST_CHARACTERS = 200
FEWEST_DIFFERENT = 8


class BadToken(ValueError):
    """A token cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class StoredToken:
    """A token that can be recognised and not be read."""

    salt: str
    digest: str

    @classmethod
    def of(cls, token: str) -> StoredToken:
        salt = secrets.token_hex(16)
        return cls(salt, _digest(salt, token))

    def matches(self, token: str) -> bool:
        """Whether this is the token. The time that it takes does not depend on how much of it is right."""
        return hmac.compare_digest(_digest(self.salt, token), self.digest)


def _digest(salt: str, token: str) -> str:
    return hashlib.blake2b(token.encode("utf-8", "surrogateescape"), salt=bytes.fromhex(salt), digest_size=32).hexdigest()


def new_token() -> str:
    """A random token of 256 bits."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def check_token(token: str) -> str:
    """The token itself. Raises BadToken for one that can be guessed or cannot be sent in a header."""
    if not token.isascii() or not token.isprintable() or any(character.isspace() for character in token):
        raise BadToken("The token may hold printable ASCII characters only, and no spaces.")
    if not FEWEST_CHARACTERS <= len(token) <= MOST_CHARACTERS or len(set(token)) < FEWEST_DIFFERENT:
        raise BadToken(
            f"The token must have {FEWEST_CHARACTERS} to {MOST_CHARACTERS} characters, {FEWEST_DIFFERENT} of them different. "
            "--generate-token makes a good one."
        )
    return token


def store_token(state: Path, token: str) -> None:
    """Replace the stored token; cookies of the former one are invalid from then on. Raises BadToken, OSError."""
    kept = StoredToken.of(check_token(token))
    write_atomically(state / FILE, json.dumps({"salt": kept.salt, "digest": kept.digest}).encode("ascii"), mode=PRIVATE_MODE)


def read_token(state: Path) -> StoredToken:
    """The stored token. Raises BadToken if there is none, or its file is damaged."""
    path = state / FILE
    try:
        document = json.loads(path.read_text(encoding="ascii"))
        found = StoredToken(**document)
        found.matches("")
    except FileNotFoundError:
        raise BadToken(f"No token is stored in {state}. Start with --generate-token, or give one with --token.") from None
    except (OSError, ValueError, TypeError) as error:
        raise BadToken(f"{path} holds no token. Start with --generate-token to replace it.") from error
    return found
