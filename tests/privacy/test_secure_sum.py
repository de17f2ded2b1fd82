"""The protocol without a wire: exact sums, every dropout that leaves a majority, and what a client refuses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from fedrec.errors import UserError
from fedrec.experiment.privacy import SecureSum
from fedrec.privacy.encoding import Encoding
from fedrec.privacy.masks import Words
from fedrec.privacy.secure_sum import Keys, Member, unmask_sum
from fedrec.rng import generator
from fedrec.sharing import ContractError

NAMES = ("books", "films", "music", "news", "shop")
SIZE = 27_000


@dataclass
class Protocol:
    """One round among some clients, of whom `gone` are lost at each stage; its state after every stage."""

    threshold: int = 3
    names: Sequence[str] = NAMES
    gone: Mapping[str, Sequence[str]] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    sent: dict[str, Words] = field(default_factory=dict)
    number: int = 1

    def left(self, stage: str, names: Sequence[str]) -> list[str]:
        return [name for name in names if name not in self.gone.get(stage, ())]

    def run(self, x: Mapping[str, Words]) -> Words:
        """Return the sum that the server gets."""
        n = self.number
        self.members = {name: Member.start(name, n, self.threshold, len(self.names)) for name in self.names}
        keys = {name: self.members[name].keys for name in self.left("keys", self.names)}
        sealed: dict[str, dict[str, bytes]] = {}
        for name in self.left("shares", list(keys)):
            self.members[name], sealed[name] = self.members[name].share(n, list(keys.items()))
        for name in self.left("masked", list(sealed)):
            theirs = [(peer, shares[name]) for peer, shares in sealed.items() if peer != name]
            self.members[name], self.sent[name] = self.members[name].mask(n, theirs, x[name])
        survivors, dropped = list(self.sent), [name for name in sealed if name not in self.sent]
        asked = self.left("unmask", survivors)
        shares = {name: self.members[name].unmask(n, survivors, dropped) for name in asked}
        total = np.zeros_like(next(iter(x.values())))
        for words in self.sent.values():
            total += words
        return unmask_sum(total, n, self.threshold, keys, survivors, dropped, shares)


def words(size: int = SIZE, names: Sequence[str] = NAMES) -> dict[str, Words]:
    rng = generator(0, "words")
    return {name: rng.integers(0, 2**64, size, dtype=np.uint64) for name in names}


def plain(x: Mapping[str, Words], names: Sequence[str]) -> Words:
    """Return the sum modulo 2^64, by Python's integers."""
    columns = zip(*(x[name].tolist() for name in names), strict=True)
    return np.array([sum(column) % 2**64 for column in columns], dtype=np.uint64)


def test_the_sum_of_five_silos_is_exact() -> None:
    x = words()
    assert np.array_equal(Protocol().run(x), plain(x, NAMES))


@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "unmask"])
def test_two_of_five_may_be_lost_at_each_stage(stage: str) -> None:
    x, gone = words(), ("films", "shop")
    rest = NAMES if stage == "unmask" else [name for name in NAMES if name not in gone]
    assert np.array_equal(Protocol(gone={stage: gone}).run(x), plain(x, rest))


def test_one_is_lost_at_the_shares_and_another_at_the_sum() -> None:
    x = words(100)
    one = Protocol(gone={"shares": ["shop"], "masked": ["books"]})
    assert np.array_equal(one.run(x), plain(x, ("films", "music", "news")))


@pytest.mark.parametrize(
    ("stage", "rule"),
    [
        ("keys", "roster: must have 3 to 5"),
        ("shares", "shares: must be of 3 clients"),
        ("masked", "survivors: must be at least 3"),
        ("unmask", "shares: must be at least 3"),
    ],
)
def test_three_of_five_lost_and_nobody_gives_a_sum(stage: str, rule: str) -> None:
    """Whatever the server tries: the clients themselves refuse to go on, and two shares open nothing."""
    with pytest.raises(ContractError, match=rule):
        Protocol(gone={stage: ("films", "shop", "news")}).run(words(10))


def test_the_mean_of_weighted_silos_is_off_by_less_than_a_ten_thousandth() -> None:
    rng, coding = generator(0, "mean"), Encoding(64.0, 5)
    x = {name: rng.normal(0, 1, SIZE) for name in NAMES}
    p = dict(zip(NAMES, (20_000, 19_999, 20_000, 7, 20_000), strict=True))
    total = coding.values(Protocol().run({name: coding.words(x[name], p[name]) for name in NAMES}))
    exact = sum(p[name] * x[name] for name in NAMES) / sum(p.values())
    error = np.abs(total / sum(p.values()) - exact).max()
    assert error <= 1e-8, error  # asked for: 1e-4


def test_forty_clients_with_the_names_in_any_order() -> None:
    names = [f"c{i}" for i in generator(1, "order").permutation(40)]
    x = words(8, names)
    one = Protocol(21, names, {"shares": names[:5], "masked": names[5:12], "unmask": names[30:35]})
    assert np.array_equal(one.run(x), plain(x, names[12:]))


def test_a_wrong_share_gives_no_sum() -> None:
    keys, members, _, masked = after_masking()
    shares = {name: members[name].unmask(1, NAMES, []) for name in NAMES}
    total = sum_of(masked)
    assert unmask_sum(total, 1, 3, keys, NAMES, [], shares) is not None
    shares["shop"] = {**shares["shop"], "films": shares["shop"]["books"]}
    with pytest.raises(ContractError, match="one polynomial"):
        unmask_sum(total, 1, 3, keys, NAMES, [], shares)
    few = {name: shares[name] for name in ("books", "films", "shop")}  # as many as needed: nothing to compare with
    wrong = unmask_sum(total, 1, 3, keys, NAMES, [], few)
    assert not np.array_equal(wrong, unmask_sum(total, 1, 3, keys, NAMES, [], {n: shares[n] for n in NAMES[:3]}))


def test_a_recovered_key_must_be_the_one_that_was_advertised() -> None:
    keys, members, _, masked = after_masking(lost=["shop"])
    survivors = [name for name in NAMES if name != "shop"]
    shares = {name: members[name].unmask(1, survivors, ["shop"]) for name in survivors}
    swapped = {**keys, "shop": replace(keys["shop"], mask=keys["films"].mask)}
    with pytest.raises(ContractError, match="key that shop advertised"):
        unmask_sum(sum_of(masked), 1, 3, swapped, survivors, ["shop"], shares)


def sum_of(sent: Mapping[str, Words]) -> Words:
    total = np.zeros_like(next(iter(sent.values())))
    for one in sent.values():
        total += one
    return total


def after_masking(
    lost: Sequence[str] = (),
) -> tuple[dict[str, Keys], dict[str, Member], dict[str, dict[str, bytes]], dict[str, Words]]:
    """Return a round in which all but the lost have sent their masked words."""
    one = Protocol(gone={"masked": lost, "unmask": NAMES})
    x = words(10)
    members = {name: Member.start(name, 1, 3, 5) for name in NAMES}
    keys = {name: member.keys for name, member in members.items()}
    sealed = {}
    for name in NAMES:
        members[name], sealed[name] = members[name].share(1, list(keys.items()))
    for name in one.left("masked", NAMES):
        theirs = [(peer, shares[name]) for peer, shares in sealed.items() if peer != name]
        members[name], one.sent[name] = members[name].mask(1, theirs, x[name])
    return keys, members, sealed, one.sent


Roster = list[tuple[str, Keys]]
ROSTERS: dict[str, tuple[Callable[[Roster], Roster], str]] = {
    "too few": (lambda r: r[:2], "must have 3 to 5 clients, found 2"),
    "too many": (lambda r: [*r, ("sybil", Member.start("sybil", 1, 3, 5).keys)], "must have 3 to 5 clients, found 6"),
    "twice": (lambda r: [*r[:4], r[3]], "must name a client once, found 'news' twice"),
    "without itself": (lambda r: r[1:], "must name books"),
    "with another key": (lambda r: [("books", r[1][1]), *r[2:]], "must name books with the keys"),
    "one key of two clients": (lambda r: [*r[:4], ("shop", r[3][1])], "every key must be of one client"),
    "a key for both purposes": (
        lambda r: [*r[:4], ("shop", replace(r[4][1], seal=r[4][1].mask))],
        "every key must be of one client",
    ),
    "no key": (lambda r: [*r[:4], ("shop", Keys(r[4][1].mask, bytes(32)))], "must be a public key of X25519"),
}


@pytest.mark.parametrize("how", ROSTERS)
def test_a_client_refuses_a_roster(how: str) -> None:
    change, rule = ROSTERS[how]
    members = {name: Member.start(name, 1, 3, 5) for name in NAMES}
    roster = [(name, member.keys) for name, member in members.items()]
    members["books"].share(1, roster)
    with pytest.raises(ContractError, match=rule):
        members["books"].share(1, change(roster))


Sealed = list[tuple[str, bytes]]
SHARES: dict[str, tuple[Callable[[Sealed], Sealed], str]] = {
    "too few": (lambda s: s[:1], "must be of 3 clients with itself, found 2"),
    "twice": (lambda s: [*s, s[0]], "must name a client once"),
    "foreign": (lambda s: [*s[:3], ("sybil", s[3][1])], "on the roster, found 'sybil'"),
    "its own": (lambda s: [*s[:3], ("books", s[3][1])], "on the roster, found 'books'"),
    "of another": (lambda s: [*s[:2], (s[2][0], s[3][1]), s[3]], "must be what news sealed for books|must be what"),
    "spoilt": (lambda s: [*s[:3], (s[3][0], bytes(len(s[3][1])))], "must be what shop sealed for books in round 1"),
}


@pytest.mark.parametrize("how", SHARES)
def test_a_client_refuses_shares(how: str) -> None:
    change, rule = SHARES[how]
    _, members, sealed, _ = after_masking(lost=["books"])
    theirs = [(peer, shares["books"]) for peer, shares in sealed.items() if peer != "books"]
    members["books"].mask(1, theirs, words(10)["books"])
    with pytest.raises(ContractError, match=rule):
        members["books"].mask(1, change(theirs), words(10)["books"])


LISTS: dict[str, tuple[Sequence[str], Sequence[str], str]] = {
    "too few": (("books", "films"), ("music", "news", "shop"), "survivors: must be at least 3, found 2"),
    "both": (NAMES, ("shop",), "must name a client once, found 'shop' twice"),
    "twice": ((*NAMES, "shop"), (), "must name a client once"),
    "neither": (NAMES[:4], (), "must be all who shared, found 'shop' wrong"),
    "foreign": ((*NAMES, "sybil"), (), "found 'sybil' wrong"),
    "foreign, dropped": (NAMES, ("sybil",), "found 'sybil' wrong"),
    "itself dropped": (NAMES[1:], ("books",), "must name books, which is asked"),
}


@pytest.mark.parametrize("how", LISTS)
def test_a_client_refuses_a_list_of_survivors(how: str) -> None:
    survivors, dropped, rule = LISTS[how]
    member = after_masking()[1]["books"]
    with pytest.raises(ContractError, match=rule):
        member.unmask(1, survivors, dropped)


def test_a_client_gives_one_share_of_each_peer_and_never_both() -> None:
    _, members, _, _ = after_masking(lost=["shop"])
    member, survivors = members["books"], [name for name in NAMES if name != "shop"]
    given = member.unmask(1, survivors, ["shop"])
    for name in NAMES:
        of_key, of_seed = member.shares[name][:33], member.shares[name][33:]
        assert given[name] == (of_key if name == "shop" else of_seed) and of_key != of_seed


def test_each_stage_is_answered_once_and_in_order() -> None:
    members = {name: Member.start(name, 1, 3, 5) for name in NAMES}
    roster, x = [(name, member.keys) for name, member in members.items()], words(10)["books"]
    first = members["books"]
    second, _ = first.share(1, roster)
    _, done, _, _ = after_masking()
    third = done["books"]
    for member, stage in ((first, "shares"), (second, "masked"), (third, "unmask")):
        calls: dict[str, Callable[[Member], object]] = {
            "shares": lambda m: m.share(1, roster),
            "masked": lambda m: m.mask(1, [], x),
            "unmask": lambda m: m.unmask(1, NAMES, []),
        }
        for other, call in calls.items():
            if other != stage:
                with pytest.raises(ContractError, match=f"once and in order, {stage} next, found {other}"):
                    call(member)


@pytest.mark.parametrize("number", [0, 2])
def test_a_message_of_another_round_is_refused(number: int) -> None:
    member = after_masking()[1]["books"]
    for call in (
        lambda: member.share(number, []),
        lambda: member.mask(number, [], words(1)["books"]),
        lambda: member.unmask(number, NAMES, []),
    ):
        with pytest.raises(ContractError, match=f"round: must be the present one, 1, found {number}"):
            call()


def test_a_masked_vector_of_an_older_round_does_not_fit_a_new_one() -> None:
    x = words(50)
    first, second = Protocol(), Protocol(number=2)
    first.run(x)
    assert np.array_equal(second.run(x), plain(x, NAMES))
    assert all(not np.intersect1d(first.sent[name], second.sent[name]).size for name in NAMES)


@pytest.mark.parametrize(("clients", "threshold", "needed"), [(3, None, 2), (4, None, 3), (5, None, 3), (5, 5, 5)])
def test_the_threshold_is_a_majority(clients: int, threshold: int | None, needed: int) -> None:
    assert SecureSum(threshold=threshold).needed(clients) == needed


@pytest.mark.parametrize(("clients", "threshold"), [(5, 2), (5, 6), (4, 2)])
def test_a_threshold_that_is_no_majority_is_refused(clients: int, threshold: int) -> None:
    with pytest.raises(UserError, match=r"secure.threshold: must be a majority"):
        SecureSum(threshold=threshold).needed(clients)


def test_two_clients_have_nothing_to_hide_from_each_other() -> None:
    with pytest.raises(UserError, match="needs 3 clients in a round, found 2"):
        SecureSum().needed(2)
