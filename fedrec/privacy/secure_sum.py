"""Secure sums (Bonawitz et al. 2017, arXiv 1611.04482): the server learns what clients add up to, and nothing else.

y_i = x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)  in Z_2^64.

s_ij comes of a key agreement, and b_i of client i alone. Both the private key behind the s_ij and b_i are shared out,
any t shares of a secret tell it. The pair masks cancel in the sum; of who dropped out after the shares were dealt the
s_ij are recovered, of who is in the sum the b_i. Nobody may learn both of one client: that is what clients see to.

The server is honest but curious, and may collude with fewer than t clients of a round: it relays the public keys, which
nobody signs, so that one that put its own in their place would read everything. It still learns what the sum tells: all
of a row whose other carriers drop out after they dealt their shares (`carriers` above 2 leaves room for that), and what
clients say beside it, their training losses and the metrics of their evaluations, unless a promise of privacy silences
them. A client that sends anything may spoil the sum; a sum outside the bounds ends the run.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from secrets import token_bytes
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedrec.privacy.discrete import Distributed
from fedrec.privacy.encoding import Encoding
from fedrec.privacy.masks import KEY, Words, pair_mask, public, seal, self_mask, unseal
from fedrec.privacy.shamir import SHARE, combine, split
from fedrec.sharing import ContractError

Stage = Literal["keys", "shares", "masked", "unmask"]  # the exchanges of a round, by what a client answers


@dataclass(frozen=True)
class Terms:
    """How many clients a round asks and needs, how few may carry a row that is summed, and how numbers travel."""

    clients: int
    threshold: int
    carriers: int
    encoding: Encoding
    noise: Distributed | None = None

    def values(self, words: Words) -> NDArray[np.float64]:
        """Return the sum [P] that words stand for."""
        return (self.noise or self.encoding).values(words)


@dataclass(frozen=True)
class Keys:
    """The public keys of a client for one round: that of the masks, and that of the shares."""

    mask: bytes
    seal: bytes


@dataclass(frozen=True)
class Member:
    """A client's half of one round: it answers each stage once, and forgets everything afterwards.

    `stage` is what it is to answer next. `most` is how many clients a round may have.
    """

    name: str
    round: int
    threshold: int
    most: int
    stage: Stage
    mask_key: bytes
    seal_key: bytes
    seed: bytes  # b_i
    roster: Mapping[str, Keys] = field(default_factory=dict)
    shares: Mapping[str, bytes] = field(default_factory=dict)  # of whom: the shares of its mask key and of its seed

    @staticmethod
    def start(name: str, number: int, threshold: int, most: int) -> "Member":
        """Return a client that has drawn its keys for a round."""
        return Member(name, number, threshold, most, "shares", token_bytes(KEY), token_bytes(KEY), token_bytes(KEY))

    @property
    def keys(self) -> Keys:
        """What it advertises."""
        return Keys(public(self.mask_key), public(self.seal_key))

    def expect(self, stage: Stage, number: int) -> None:
        """Raise ContractError unless this is the stage of this round that it has to answer."""
        if number != self.round:
            raise ContractError(f"round: must be the present one, {self.round}, found {number}")
        if stage != self.stage:
            raise ContractError(f"stage: must be answered once and in order, {self.stage} next, found {stage}")

    def share(self, number: int, roster: Sequence[tuple[str, Keys]]) -> tuple["Member", dict[str, bytes]]:
        """Return the sealed shares of its secrets for every peer of the round; raises ContractError."""
        self.expect("shares", number)
        once("roster", [name for name, _ in roster])
        peers = dict(roster)
        if not self.threshold <= len(peers) <= self.most:
            raise ContractError(f"roster: must have {self.threshold} to {self.most} clients, found {len(peers)}")
        if peers.get(self.name) != self.keys:
            raise ContractError(f"roster: must name {self.name} with the keys that it advertised, found others")
        known = {key for keys in peers.values() for key in (keys.mask, keys.seal)}
        if len(known) < 2 * len(peers):
            raise ContractError(f"roster: every key must be of one client, found {len(known)} of {len(peers)}")
        points = dict(zip(sorted(peers), range(1, len(peers) + 1), strict=True))
        of_key, of_seed = (
            split(secret, self.threshold, list(points.values())) for secret in (self.mask_key, self.seed)
        )
        dealt = {name: of_key[x] + of_seed[x] for name, x in points.items()}
        sealed = {
            name: seal(self.seal_key, keys.seal, number, self.name, name, dealt[name])
            for name, keys in peers.items()
            if name != self.name
        }
        return replace(self, stage="masked", roster=peers, shares={self.name: dealt[self.name]}), sealed

    def mask(self, number: int, sealed: Sequence[tuple[str, bytes]], x: Words) -> tuple["Member", Words]:
        """Return x [P] under its masks with all who shared, whose sealed shares it keeps; raises ContractError."""
        self.expect("masked", number)
        once("shares", [name for name, _ in sealed])
        received = dict(sealed)
        for name in received:
            if name not in self.roster or name == self.name:
                raise ContractError(f"shares: must be of the other clients on the roster, found {name!r}")
        if len(received) + 1 < self.threshold:
            raise ContractError(f"shares: must be of {self.threshold} clients with itself, found {len(received) + 1}")
        shares = dict(self.shares)
        total = x + self_mask(self.seed, number, self.name, len(x))
        for name, text in received.items():
            keys = self.roster[name]
            shares[name] = unseal(self.seal_key, keys.seal, number, name, self.name, text)
            if len(shares[name]) != 2 * SHARE:
                raise ContractError(f"shares: must have {2 * SHARE} bytes, found {len(shares[name])} of {name}")
            total += pair_mask(self.mask_key, keys.mask, number, self.name, name, len(x))
        return replace(self, stage="unmask", shares=shares), total

    def unmask(self, number: int, survivors: Sequence[str], dropped: Sequence[str]) -> dict[str, bytes]:
        """Return its share of each peer's secret: of who is in the sum the seed, of who dropped out the mask key.

        After it the member has nothing to say. Raises ContractError.
        """
        self.expect("unmask", number)
        once("survivors and dropped", [*survivors, *dropped])
        if {*survivors, *dropped} != self.shares.keys():
            wrong = sorted({*survivors, *dropped} ^ self.shares.keys())
            raise ContractError(f"survivors and dropped: must be all who shared, found {wrong[0]!r} wrong")
        if len(survivors) < self.threshold:
            raise ContractError(f"survivors: must be at least {self.threshold}, found {len(survivors)}")
        if self.name not in survivors:
            raise ContractError(f"survivors: must name {self.name}, which is asked, found it dropped")
        return {name: self.shares[name][SHARE:] for name in survivors} | {
            name: self.shares[name][:SHARE] for name in dropped
        }


def once(what: str, names: Sequence[str]) -> None:
    """Raise ContractError if a client is named twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ContractError(f"{what}: must name a client once, found {name!r} twice")
        seen.add(name)


def unmask_sum(
    total: Words,
    number: int,
    threshold: int,
    roster: Mapping[str, Keys],
    survivors: Collection[str],
    dropped: Collection[str],
    shares: Mapping[str, Mapping[str, bytes]],
) -> Words:
    """Return the sum of the survivors' x [P] of the sum of what they sent, and the shares by who sent them, of whom.

    `dropped` shared, but are not in the sum. Raises ContractError for fewer than `threshold` shares, or wrong ones.
    """
    points = dict(zip(sorted(roster), range(1, len(roster) + 1), strict=True))
    bare = total.copy()
    for name in (*survivors, *dropped):
        secret = combine({points[who]: dealt[name] for who, dealt in shares.items()}, threshold)
        if name in survivors:
            bare -= self_mask(secret, number, name, len(total))
            continue
        if public(secret) != roster[name].mask:
            raise ContractError(f"shares: must be of the key that {name} advertised, found another")
        for peer in survivors:  # what the dropped client would have added is what is left of the peer's mask
            bare += pair_mask(secret, roster[peer].mask, number, name, peer, len(total))
    return bare
