"""The primitives of secure sums: key agreement, one-time masks, and shares sealed for one reader.

X25519 (RFC 7748) agrees on a secret, HKDF-SHA256 (RFC 5869) makes a key of it for one purpose, round and pair, ChaCha20
(RFC 8439) expands a key into a mask, ChaCha20-Poly1305 seals. Both ends of a mask name the pair in the same order.
"""

from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedrec.privacy.noise import Source
from fedrec.sharing import ContractError

Words = np.ndarray[Any, np.dtype[np.uint64]]  # numbers of Z_2^64, whose arithmetic wraps
KEY = 32  # bytes of every key and seed
TAG = 16  # bytes that sealing adds
# A key of `sealing` seals one message of one sender to one reader in one round, so that its nonce may be fixed.
NONCE = bytes(12)


def public(private: bytes) -> bytes:
    """Return the public key [32 bytes] of a private one [32 bytes]."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def derive(secret: bytes, purpose: str, number: int, *names: str) -> bytes:
    """Return the key [32 bytes] that a secret gives for one purpose, round and pair of clients."""
    about = [b"fedrec secure sum", purpose.encode(), number.to_bytes(8, "big"), *(name.encode() for name in names)]
    info = b"".join(len(part).to_bytes(4, "big") + part for part in about)  # so that no two lists have one encoding
    return HKDF(SHA256(), KEY, salt=None, info=info).derive(secret)


def agree(private: bytes, peer: bytes) -> bytes:
    """Return the secret [32 bytes] that only the owners of two key pairs know; raises ContractError for a bad key."""
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:  # not 32 bytes, or a point of small order, which would make the secret public
        raise ContractError("key: must be a public key of X25519, found none") from None


def expand(key: bytes, size: int) -> Words:
    """Return the mask [size] of a key."""
    return np.frombuffer(Source(key, True).bytes(8 * size), "<u8").astype(np.uint64)


def self_mask(seed: bytes, number: int, name: str, size: int) -> Words:
    """Return PRG(b_i) [size], the mask that only the shares of a client that is in the sum take away."""
    return expand(derive(seed, "self", number, name), size)


def pair_mask(private: bytes, peer_key: bytes, number: int, name: str, peer: str, size: int) -> Words:
    """Return what a client adds for a peer [size]: PRG(s_ij), with the sign that makes the two cancel."""
    low, high = sorted((name, peer))
    mask = expand(derive(agree(private, peer_key), "pair", number, low, high), size)
    return mask if name == low else np.negative(mask)


def seal(private: bytes, peer_key: bytes, number: int, sender: str, reader: str, text: bytes) -> bytes:
    """Return a text that only `reader` can open, and that only `sender` can have written."""
    key = derive(agree(private, peer_key), "seal", number, sender, reader)
    return ChaCha20Poly1305(key).encrypt(NONCE, text, None)


def unseal(private: bytes, peer_key: bytes, number: int, sender: str, reader: str, sealed: bytes) -> bytes:
    """Return what `seal` sealed; raises ContractError for anything else."""
    key = derive(agree(private, peer_key), "seal", number, sender, reader)
    try:
        return ChaCha20Poly1305(key).decrypt(NONCE, sealed, None)
    except InvalidTag:
        raise ContractError(f"share: must be what {sender} sealed for {reader} in round {number}, found else") from None
