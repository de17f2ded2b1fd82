"""What no run looks different for: each of these fails on a build that is broken in one line and runs as before."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from clients.client import Client
from clients.joining import join
from clients.round import trained
from fedrec.data import ClientData
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, item_content
from fedrec.params import Params
from fedrec.privacy.guarantee import guarantees
from fedrec.privacy.masks import Words, pair_mask, public, seal, self_mask
from fedrec.privacy.noise import Source
from fedrec.privacy.secure_sum import Member
from fedrec.privacy.shamir import PRIME, interpolate, split
from fedrec.sharing import Broadcast
from tests.helpers import experiment, first_of, fit
from tests.letters import read_contribution

SMALL: dict[str, Any] = {
    "clients": 3, "partition": "users", "task": "rating", "market": {"users": 30, "items": 300, "impressions": 15},
    "rounds": 1, "local_epochs": 1, "optimiser": "sgd", "lr": 0.1, "l2": 0.0, "weights": "uniform",
}  # fmt: skip


def private(method: str = "fedper", **privacy: Any) -> Experiment:
    return experiment(method, **SMALL, privacy=privacy)


def answer(e: Experiment, data: ClientData, home: Path, secret: bytes = b"") -> tuple[Params, dict[str, float]]:
    """Return what a client with some data answers in round 1, and what it tells beside it."""
    client = Client(e, data, "cpu", home)
    state, _ = join(client)
    if secret:
        (home / "privacy").mkdir(parents=True)
        (home / "privacy" / f"{data.name}.secret").write_bytes(secret)
    _, reply, _ = trained(client, state, Broadcast(1, first_of(e)))
    return reply.values, reply.metrics


def without(data: ClientData, user: int) -> ClientData:
    """Return a neighbour: one user's interactions replaced by none."""
    return replace(data, train=data.train.take(data.train.user != user))


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"content": {"kind": "hashed", "dim": 4}, "share": "adapter"}, 2),
        ({"task": "price,rank", "share": "attributes", "lrs": "heads=0"}, 2),
        ({"model": "shared-bottom", "task": "rank,behaviour", "share": "body"}, 2),
        ({"share": "item_table", "lrs": "heads=0,item_bias=0"}, 1),
    ],
    ids=["adapter", "attributes", "body", "own rows alone"],
)
def test_as_many_noisy_steps_are_booked_as_are_made(
    fields: dict[str, Any], steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken build: steps are counted for a model without what it reads. A phase of the adapter alone is then free."""
    drawn: list[tuple[int, ...]] = []
    normal = Source.normal

    def counted(self: Source, *shape: int) -> torch.Tensor:
        drawn.append(shape)
        return normal(self, *shape)

    monkeypatch.setattr(Source, "normal", counted)
    fields = {**SMALL, "phases": ("private", "shared"), **fields}
    e = experiment("fedper", **fields, privacy={"unit": "user", "noise": 1.0})
    answer(e, clients_data(e)[0], tmp_path)
    assert len(drawn) == guarantees(e)[clients_data(e)[0].name].event.count == steps


@pytest.mark.parametrize(
    "privacy",
    [
        {"unit": "user", "noise": 1.0},
        {"unit": "interaction", "noise": 1.0, "rate": 0.5},
        {"unit": "client", "where": "client", "noise": 1.0},
    ],
    ids=lambda rule: rule["unit"],
)
def test_neighbours_have_unlike_noise_under_one_secret(privacy: dict[str, Any], tmp_path: Path) -> None:
    """Broken build: the noise is a function of the round, not of the data. Neighbours' answers then differ by the data.

    Rows that nobody touches show the noise alone.
    """
    e = private(**privacy)
    data, z = clients_data(e)[0], first_of(e)["item_table"]
    still = torch.from_numpy(np.setdiff1d(np.arange(len(data.items)), data.train.item))
    parts = {"one": data, "same": data, "other": without(data, int(data.train.user[0]))}
    moved = {
        name: (answer(e, part, tmp_path / name, bytes(range(32)))[0]["item_table"] - z)[still].double().reshape(-1)
        for name, part in parts.items()
    }
    assert torch.equal(moved["one"], moved["same"]) and len(moved["one"]) > 500
    # Two independent samples of n numbers: a correlation of 1 / sqrt(n), at most 5 of them.
    found = np.corrcoef(moved["one"], moved["other"])[0, 1]
    assert abs(found) < 5 / len(moved["one"]) ** 0.5


@pytest.mark.parametrize("told", ["content", "price"])
def test_what_else_is_told_of_items_has_unlike_noise_under_one_secret(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken build: a file of vectors, or of prices, is changed, and the noise of before hides other gradients."""
    fields = {"task": "rating,price"} if told == "price" else {"content": {"kind": "hashed", "dim": 4}}
    e = experiment("fedper", **{**SMALL, **fields}, privacy={"unit": "user", "noise": 1.0})
    data, z, moved = clients_data(e)[0], first_of(e)["item_table"], {}
    still = torch.from_numpy(np.setdiff1d(np.arange(len(data.items)), data.train.item))
    swapped = np.intersect1d(data.train.item, np.flatnonzero(data.attributes.train))[:2]
    for name, factor in (("one", 1.0), ("same", 1.0), ("other", 2.0)):
        about, vectors = data.attributes, item_content(e)[0]
        if told == "price":
            price = about.values["price"].copy()
            price[swapped] = price[swapped[::-1]] if name == "other" else price[swapped]  # of one mean, as heads start
            about = replace(about, values={**about.values, "price": price})
        else:
            assert vectors is not None
            monkeypatch.setattr("fedrec.experiment.holdings.item_content", lambda _, v=vectors * factor: (v, ()))
        mine = answer(e, replace(data, attributes=about), tmp_path / name, bytes(range(32)))[0]["item_table"]
        moved[name] = (mine - z)[still].double().reshape(-1)
    assert torch.equal(moved["one"], moved["same"]) and len(moved["one"]) > 500
    assert abs(np.corrcoef(moved["one"], moved["other"])[0, 1]) < 5 / len(moved["one"]) ** 0.5


@pytest.mark.parametrize("unit", ["user", "interaction"])
def test_the_coins_of_poisson_sampling_come_from_the_secret(unit: str, tmp_path: Path) -> None:
    """Broken build: who is drawn follows from the public seed, as the server can work out by itself.

    Without noise an answer is a function of the coins alone: those of two secrets differ.
    """
    e = private(unit=unit, noise=0.0, rate=0.5)
    data = clients_data(e)[0]
    found = [answer(e, data, tmp_path / str(k), bytes([k]) * 32)[0]["item_table"] for k in (1, 1, 2, 3)[1:]]
    assert not any(torch.equal(a, b) for a, b in ((found[0], found[1]), (found[0], found[2]), (found[1], found[2])))
    again = answer(e, data, tmp_path / "again", bytes([1]) * 32)[0]["item_table"]
    assert torch.equal(found[0], again)


def spread(keys: list[bytes]) -> int:
    """Return the least number of values that a byte of some keys takes, over its places."""
    assert {len(key) for key in keys} == {32}
    return min(len(Counter(key[place] for key in keys)) for place in range(32))


def test_every_byte_of_a_mask_s_key_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken build: masks are made of 32-bit seeds, which a server tries out in an hour.

    Of 64 random bytes 57 are distinct in the mean, and fewer than 40 with a probability below 1e-9.
    """
    expanding: list[bytes] = []
    sealing: list[bytes] = []

    def source(key: bytes, private: bool) -> Source:
        expanding.append(key)
        return Source(key, private)

    def cipher(key: bytes) -> ChaCha20Poly1305:
        sealing.append(key)
        return ChaCha20Poly1305(key)

    monkeypatch.setattr("fedrec.privacy.masks.Source", source)
    monkeypatch.setattr("fedrec.privacy.masks.ChaCha20Poly1305", cipher)
    members = [Member.start("a", 1, 2, 3) for _ in range(64)]
    for name in ("mask_key", "seal_key", "seed"):
        assert spread([getattr(member, name) for member in members]) >= 40, name
    other = Member.start("b", 1, 2, 3)
    for made in ("self", "pair"):
        expanding.clear()
        found = [
            self_mask(m.seed, 1, "a", 2) if made == "self" else pair_mask(m.mask_key, other.keys.mask, 1, "a", "b", 2)
            for m in members
        ]
        assert spread(expanding) >= 40
        assert len({int(word) for words in found for word in words}) == 2 * len(members)
    for member in members:
        seal(member.seal_key, other.keys.seal, 1, "a", "b", b"")
    assert spread(sealing) >= 40


def test_a_mask_is_a_function_of_every_byte_of_its_secret() -> None:
    """Broken build: of a secret only 32 bits go into the key. (Bits 0 to 2, 254 and 255 of an X25519 key are fixed.)"""
    secret, peer = bytes(32), public(bytes(range(32)))
    changed = [secret[:place] + b"\x10" + secret[place + 1 :] for place in range(32)]
    own = {int(self_mask(one, 1, "a", 1)[0]) for one in (secret, *changed)}
    pair = {int(pair_mask(one, peer, 1, "a", "b", 1)[0]) for one in (secret, *changed)}
    assert len(own) == len(pair) == 33


@pytest.mark.soak
@pytest.mark.parametrize("made", ["self", "pair"])
def test_masks_do_not_meet(made: str, tries: Callable[[int, int], int]) -> None:
    """The same from outside: of n masks that are made of 32-bit seeds n^2 / 2^33 pairs are equal, 8 of 2^18."""
    peer = public(bytes(range(32)))

    def mask() -> Words:
        member = Member.start("a", 1, 2, 3)
        if made == "self":
            return self_mask(member.seed, 1, "a", 1)
        return pair_mask(member.mask_key, peer, 1, "a", "b", 1)

    found = {int(mask()[0]) for _ in range(tries(0, 2**18))}
    assert len(found) == 2**18


def coefficients(shares: dict[int, bytes], threshold: int) -> list[int]:
    """Return the coefficients from the first on of the polynomial through `threshold` shares, by Newton's differences.

    f(x) = sum_k a_k x^k has (f(x) - f(0)) / x of one degree less.
    """
    points = tuple(sorted(shares))[:threshold]
    values = [int.from_bytes(shares[x], "big") for x in points]
    found = []
    for _ in range(threshold - 1):
        at_0 = interpolate(values, points, 0)
        values = [(y - at_0) * pow(x, -1, PRIME) % PRIME for x, y in zip(points[1:], values[1:], strict=True)]
        points = points[1:]
        found.append(interpolate(values, points, 0))
    return found


@pytest.mark.parametrize("threshold", [2, 3, 5])
def test_the_coefficients_of_shamir_s_polynomials_are_of_the_whole_field(threshold: int) -> None:
    """Broken build: coefficients from a small range. One share then tells the secret up to that range.

    A uniform number of Z_p, p about 2^256, is below 2^224 or above p - 2^224 once in 2^31; its top byte is uniform.
    """
    found = [
        c for k in range(64) for c in coefficients(split(bytes([k]) * 32, threshold, list(range(1, 8))), threshold)
    ]
    assert len(found) == 64 * (threshold - 1)
    assert all(2**224 <= c <= PRIME - 2**224 for c in found)
    assert len({c >> 248 for c in found}) >= 40
    one = split(bytes(32), 2, [1, 2])  # c_1 = f(1), since the secret is 0
    assert coefficients(one, 2) == [int.from_bytes(one[1], "big")]


@pytest.mark.parametrize("method", ["fednova", "scaffold"])
@pytest.mark.parametrize("unit", ["user", "interaction"])
def test_the_steps_that_are_told_are_no_function_of_the_data(unit: str, method: str, tmp_path: Path) -> None:
    """Broken build: FedNova's and SCAFFOLD's steps are told as the data has them, which is how much there is of it."""

    def steps(name: str, **fields: Any) -> set[float]:
        whole = {**SMALL, "batch_size": 16, "local_epochs": 2, **fields}
        _, grid = fit(experiment(method, **whole), tmp_path / name)
        told = [read_contribution(message.content).metrics for message in grid.received]
        return {metrics["steps"] for metrics in told if "steps" in metrics}

    rule = {"unit": unit, "noise": 1.0, "rate": 0.25}
    assert len(steps("plain")) > 1, "the clients have unlike numbers of interactions"
    assert steps("private", privacy=rule) == {2 * 4.0}  # epochs x 1 / q
    fewer = {"users": 30, "items": 300, "impressions": 9}
    assert steps("other", privacy=rule, market=fewer) == {2 * 4.0}
