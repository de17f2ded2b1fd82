"""What the server holds of one client says nothing of its update; and these tests notice masks that do not hide.

The words of y = x + masks are uniform on Z_2^64, whatever x is, and so are the differences of words whose masks are
independent: of two rounds, of two clients, of neighbours in the vector. Each is tested byte by byte against 1e-6.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import chi2

from fedrec.privacy import masks, secure_sum
from fedrec.privacy.encoding import Encoding
from fedrec.privacy.masks import Words, pair_mask, public
from fedrec.privacy.secure_sum import Member
from fedrec.rng import generator

NAMES = ("books", "films", "music", "news", "shop")
SIZE = 27_000
CODING = Encoding(64.0, 5)
LEVEL = 1e-6
UPDATES = {
    "nothing": np.zeros(SIZE),
    "much": np.full(SIZE, 64.0),
    "trained": generator(0, "trained").normal(0, 0.1, SIZE),
}


@dataclass
class Seen:
    """What the server saw of a round, and the clients that it was a round of."""

    sent: dict[str, Words]
    members: dict[str, Member]
    keys: dict[str, secure_sum.Keys]


def round_of(x: np.ndarray, number: int, before: Mapping[str, Member] | None = None) -> Seen:
    """Return a round in which films sends x and everybody else nothing; with the keys of a round before, a mutant."""
    start = {name: Member.start(name, number, 3, 5) for name in NAMES}
    if before:
        for name, member in start.items():
            old = before[name]
            start[name] = Member(name, number, 3, 5, member.stage, old.mask_key, old.seal_key, old.seed)
    keys = {name: member.keys for name, member in start.items()}
    dealt = {name: member.share(number, list(keys.items())) for name, member in start.items()}
    members, sent = {}, {}
    for name in NAMES:
        theirs = [(peer, shares[name]) for peer, (_, shares) in dealt.items() if peer != name]
        words = CODING.words(x if name == "films" else UPDATES["nothing"], 7)
        members[name], sent[name] = dealt[name][0].mask(number, theirs, words)
    return Seen(sent, members, keys)


def uniform(words: Words) -> float:
    """Return the p-value of uniform bytes, at each of the eight places of a word."""
    counts = np.stack([np.bincount(one, minlength=256) for one in words.view(np.uint8).reshape(-1, 8).T])
    expected = len(words) / 256
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), 8 * 255))


def alike(a: Words, b: Words) -> float:
    """Return the p-value of two samples of one distribution (chi-square of two histograms), byte by byte."""
    total = 0.0
    for one, two in zip(a.view(np.uint8).reshape(-1, 8).T, b.view(np.uint8).reshape(-1, 8).T, strict=True):
        m, n = np.bincount(one, minlength=256), np.bincount(two, minlength=256)
        total += ((m - n) ** 2 / np.maximum(m + n, 1)).sum()
    return float(chi2.sf(total, 8 * 255))


def found_out(again: Callable[[str, int], Seen]) -> list[str]:
    """Return which tests say that the words of films depend on its update, or on each other."""
    nothing, same, much, trained = (
        again(*one) for one in (("nothing", 1), ("nothing", 2), ("much", 3), ("trained", 4))
    )
    y = {name: one.sent["films"] for name, one in (("nothing", nothing), ("much", much), ("trained", trained))}
    tests = {f"{name} is not uniform": uniform(words) for name, words in y.items()}
    tests |= {f"{name} differs from nothing": alike(y[name], y["nothing"]) for name in ("much", "trained")}
    tests["rounds share a mask"] = uniform(nothing.sent["films"] - same.sent["films"])
    tests["clients share a mask"] = uniform(nothing.sent["films"] - nothing.sent["shop"])
    tests["neighbours share a mask"] = uniform(np.diff(y["nothing"]))
    return [name for name, p in tests.items() if p < LEVEL]


def test_the_transcript_of_a_client_says_nothing_of_its_update() -> None:
    assert found_out(lambda name, number: round_of(UPDATES[name], number)) == []


def no_mask(key: bytes, size: int) -> Words:
    return np.zeros(size, np.uint64)


def half(key: bytes, size: int) -> Words:
    return masks_expand(key, size) & np.uint64(0xFFFFFFFF)


def without_a_bit(key: bytes, size: int) -> Words:
    return masks_expand(key, size) & np.uint64(2**63 - 1)


def one_word(key: bytes, size: int) -> Words:
    return np.full(size, masks_expand(key, 1)[0])


def short_cycle(key: bytes, size: int) -> Words:
    return np.resize(masks_expand(key, 64), size)


masks_expand = masks.expand
MUTANTS = {"missing": no_mask, "32 bits": half, "63 bits": without_a_bit, "one word": one_word, "cycle": short_cycle}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_bad_mask_is_found_out(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "expand", MUTANTS[mutant])
    assert found_out(lambda name, number: round_of(UPDATES[name], number))


def test_keys_of_an_earlier_round_give_other_masks_since_the_round_is_in_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = round_of(UPDATES["nothing"], 9).members
    assert found_out(lambda name, number: round_of(UPDATES[name], number, old)) == []
    derive = masks.derive
    monkeypatch.setattr(masks, "derive", lambda secret, purpose, number, *names: derive(secret, purpose, 0, *names))
    assert "rounds share a mask" in found_out(lambda name, number: round_of(UPDATES[name], number, old))


def test_a_mask_that_all_clients_share_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure_sum, "pair_mask", lambda *about: np.zeros(about[-1], np.uint64))
    monkeypatch.setattr(secure_sum, "self_mask", lambda seed, number, name, size: masks.expand(b"k" * 32, size))
    assert "clients share a mask" in found_out(lambda name, number: round_of(UPDATES[name], number))


def late(x: np.ndarray) -> Words:
    """Return what is left of an answer that came after films was counted as dropped, without its pair masks."""
    seen = round_of(x, 1)
    found = seen.sent["films"].copy()
    for name in NAMES:
        if name != "films":  # the server recovers the key by the shares of the others
            key = seen.members["films"].mask_key
            assert public(key) == seen.keys["films"].mask
            found -= pair_mask(key, seen.keys[name].mask, 1, "films", name, SIZE)
    return found


def test_an_answer_that_comes_late_stays_under_the_mask_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what b_i is for: of who dropped out, the server recovers every s_ij."""
    assert min(uniform(late(UPDATES["much"])), alike(late(UPDATES["much"]), late(UPDATES["nothing"]))) > LEVEL
    monkeypatch.setattr(secure_sum, "self_mask", lambda seed, number, name, size: np.zeros(size, np.uint64))
    assert np.array_equal(late(UPDATES["much"]), CODING.words(UPDATES["much"], 7))


def collusion(peers: Sequence[str], x: np.ndarray) -> Words:
    """Return the words of films without the masks that it has in common with some peers, who help the server."""
    seen = round_of(x, 1)
    found = seen.sent["films"].copy()
    for name in peers:
        found -= -pair_mask(seen.members[name].mask_key, seen.keys["films"].mask, 1, name, "films", SIZE)
    return found


def test_peers_that_help_the_server_take_their_masks_away_and_no_more() -> None:
    found = collusion(("books", "music"), UPDATES["much"])
    assert uniform(found) > LEVEL and alike(found, collusion(("books", "music"), UPDATES["nothing"])) > LEVEL
