"""The primitives: one key for each purpose, round and pair; masks that cancel; shares that one reader opens."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from fedrec.privacy.masks import agree, derive, expand, pair_mask, public, seal, self_mask, unseal
from fedrec.sharing import ContractError

A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))


def test_known_answers_of_the_standards() -> None:
    """RFC 7748, section 5.2 (X25519 of 9 and the base point, once), and RFC 8439, appendix A.1, test vector 1."""
    nine = bytes([9, *[0] * 31])
    assert public(nine).hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    stream = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    assert expand(bytes(32), 4).astype("<u8").tobytes() == stream


def test_both_ends_agree_on_one_secret_and_a_third_on_another() -> None:
    assert agree(A, public(B)) == agree(B, public(A)) != agree(C, public(B))


def test_a_key_is_for_one_purpose_round_and_pair() -> None:
    about: list[tuple[Any, ...]] = [
        ("pair", 1, "a", "b"),
        ("seal", 1, "a", "b"),
        ("pair", 2, "a", "b"),
        ("pair", 1, "b", "a"),
    ]
    about += [("pair", 1, "ab", ""), ("pair", 1, "", "ab"), ("pair", 1, "a"), ("pair", 1, "a", "b", "")]
    keys = [derive(A, *one) for one in about]
    assert len(set(keys)) == len(keys) and all(len(key) == 32 for key in keys)
    assert derive(A, "pair", 1, "a", "b") == keys[0] != derive(B, "pair", 1, "a", "b")


def test_the_masks_of_all_pairs_cancel() -> None:
    owners = {"shop": A, "films": B, "news": C}
    total = np.zeros(100, np.uint64)
    for name, peer in combinations(owners, 2):
        mine = pair_mask(owners[name], public(owners[peer]), 4, name, peer, 100)
        assert len(np.unique(mine)) == 100
        total += mine
        total += pair_mask(owners[peer], public(owners[name]), 4, peer, name, 100)
    assert not total.any()


def test_a_longer_mask_begins_as_a_shorter_one_and_rounds_differ() -> None:
    assert np.array_equal(self_mask(A, 1, "a", 10), self_mask(A, 1, "a", 99)[:10])
    assert not np.intersect1d(self_mask(A, 1, "a", 99), self_mask(A, 2, "a", 99)).size


def test_only_the_reader_opens_a_seal_and_only_of_its_sender_and_round() -> None:
    sealed = seal(A, public(B), 1, "a", "b", b"two shares")
    assert unseal(B, public(A), 1, "a", "b", sealed) == b"two shares"
    wrong = [
        (C, public(A), 1, "a", "b", sealed),
        (B, public(C), 1, "a", "b", sealed),
        (B, public(A), 2, "a", "b", sealed),
        (B, public(A), 1, "b", "a", sealed),
        (B, public(A), 1, "a", "b", bytes([sealed[0] ^ 1]) + sealed[1:]),
        (B, public(A), 1, "a", "b", sealed[:-1]),
    ]
    for one in wrong:
        with pytest.raises(ContractError, match="must be what"):
            unseal(*one)


@pytest.mark.parametrize("key", [bytes(32), bytes([1, *[0] * 31]), b"short"])
def test_a_public_key_that_makes_the_secret_public_is_refused(key: bytes) -> None:
    with pytest.raises(ContractError, match="public key of X25519"):
        agree(A, key)
