"""Codecs: what is decoded, what stays owed, what is refused, and that the default is none."""

import csv
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from clients.client import Client
from clients.round import encoded
from fedrec.errors import UserError
from fedrec.experiment.config import build
from fedrec.experiment.holdings import clients_data
from fedrec.experiment.records import Row
from fedrec.federation.codecs import (
    Codec,
    Coding,
    CountSketch,
    LowRank,
    Projection,
    Quantised,
    RandomK,
    Scope,
    TopK,
    zeros,
)
from fedrec.federation.codecs.quantise import pack_bits, unpack_bits
from fedrec.federation.coordination import Link, Own, double
from fedrec.params import Params, add, subtract
from fedrec.sharing import ContractError, Contribution
from server.faults import ClientFailure
from simulations.apps import plan_of
from simulations.engines import launch
from simulations.witness import witness
from tests.helpers import coordinated, experiment, same
from tests.letters import read_broadcast, read_contribution, state_of
from tests.own_parts import EightBit

OWN = "tests.own_parts:EightBit"
SMALL: dict[str, Any] = {"market": {"users": 24, "items": 30, "impressions": 20}}
TOP: dict[str, Any] = {"codec": {"kind": "top-k", "fraction": 0.2}}


def changes(seed: int, rounds: int) -> list[Params]:
    """Return the changes of some rounds."""
    rng = torch.Generator().manual_seed(seed)
    return [
        {"a": torch.randn(5, 3, generator=rng) * 10.0**number, "b": torch.randn(4, generator=rng)}
        for number in range(rounds)
    ]


OURS: dict[str, Codec] = {
    "8-bit": Quantised(),
    "4-bit": Quantised(4, block=5),
    "one block": Quantised(5, block=10**9),
    "unbiased": Quantised(3, unbiased=True),
    "top-k": TopK(0.1),
    "most": TopK(0.7),
    "all": TopK(1.0),
    "random-k": RandomK(0.3),
    "low-rank": LowRank(1),
    "count-sketch": CountSketch(0.5, 3),
    "projection": Projection(0.3),
    "own": EightBit(),
}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from(list(OURS)))
def test_what_was_decoded_and_what_is_remembered_are_all_changes(seed: int, rounds: int, name: str) -> None:
    memory, found = Params(), Params()
    every = changes(seed, rounds)
    for number, change in enumerate(every):
        codec = bound(OURS[name], number)
        payload, memory = codec.encode(change, memory)
        decoded = codec.decode(payload, {name: torch.zeros_like(value) for name, value in change.items()})
        found = add(double(decoded), found) if found else double(decoded)
    for name, value in add(found, double(memory)).items():  # what a codec remembers beside that has other names
        total = torch.stack([change[name].double() for change in every]).sum(0)
        torch.testing.assert_close(value, total, rtol=0, atol=1e-5 * float(total.abs().max() + 10.0**rounds))


def bound(codec: Codec, number: int, client: str = "shop") -> Codec:
    """Return a codec as it is in a round."""
    found: Codec = codec.at(Scope(3, client, number)) if hasattr(codec, "at") else codec
    return found


def decoded(codec: Codec, change: Params) -> Params:
    """Return what arrives of a change."""
    return codec.decode(codec.encode(change, {})[0], zeros(change))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=40), st.integers(2, 8))
def test_packed_numbers_are_as_long_as_their_bits_and_come_back(values: list[int], bits: int) -> None:
    levels = torch.tensor([value % 2**bits for value in values], dtype=torch.uint8)
    packed = pack_bits(levels, bits)
    assert packed.dtype == torch.uint8 and len(packed) == math.ceil(len(values) * bits / 8)
    assert torch.equal(unpack_bits(packed, bits, len(values)), levels)


def test_two_entries_of_four_bits_share_a_byte() -> None:
    payload, memory = Quantised(4, 0).encode({"a": torch.tensor([7.0, -7.0, 0.4, 3.0])}, {})
    assert payload["levels.a"].tolist() == [14 + 16 * 0, 7 + 16 * 10] and payload["scale.a"].tolist() == [1.0]
    assert memory["a"].tolist() == pytest.approx([0, 0, 0.4, 0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(0, 9), st.booleans())
def test_an_entry_is_off_by_half_a_level_or_at_random_by_one(seed: int, bits: int, block: int, unbiased: bool) -> None:
    (change,) = changes(seed, 1)
    found = decoded(bound(Quantised(bits, block, unbiased), seed), change)
    for name, value in change.items():
        parts = torch.split(value.reshape(-1), block or value.numel())
        step = torch.cat([part.abs().max().expand(len(part)) for part in parts]) / (2 ** (bits - 1) - 1)
        step *= 2 ** (1 / 8) if block else 1.0  # scales of blocks are rounded up
        assert bool(((found[name] - value).reshape(-1).abs() <= step * ((1.0 if unbiased else 0.5) + 1e-5)).all())


@pytest.mark.parametrize("codec", [Quantised(2, unbiased=True), RandomK(0.25, True), Projection(0.25, True)])
def test_without_feedback_the_mean_is_the_change(codec: Codec) -> None:
    (change,) = changes(1, 1)
    draws = [decoded(bound(codec, number), change) for number in range(1500)]
    for name, value in change.items():
        found = torch.stack([draw[name] for draw in draws]).double()
        error = (found.mean(0) - value).abs() / (found.std(0) / len(draws) ** 0.5 + 1e-9)
        assert float(error.max()) < 4.5  # standard errors
    for coded in (Coding(kind=kind, feedback=False, fraction=0.25).codec for kind in ("quantised", "random-k")):
        assert getattr(coded, "unbiased", None) is True


@pytest.mark.parametrize("codec", [c for name, c in OURS.items() if name not in ("unbiased", "own")], ids=str)
def test_what_is_owed_is_never_longer_than_what_was_to_be_sent(codec: Codec) -> None:
    """So that error feedback cannot run away."""
    rng = torch.Generator().manual_seed(0)
    for number in range(20):
        change = {"a": torch.randn(40, 6, generator=rng) ** (1 + number % 3)}
        _, memory = bound(codec, number).encode(change, {})
        assert float(memory["a"].norm()) <= float(change["a"].norm()) * (1 + 1e-6)


def test_clients_of_a_round_draw_the_same_entries_and_other_rounds_others() -> None:
    (change,) = changes(0, 1)
    for codec, common in ((RandomK(0.4), True), (Projection(0.4), True), (Quantised(2, unbiased=True), False)):
        one, other = (bound(codec, 1, client).encode(change, {})[0] for client in ("shop", "films"))
        assert all(torch.equal(one[name], other[name]) for name in one) is common
        assert not all(torch.equal(value, one[name]) for name, value in bound(codec, 2).encode(change, {})[0].items())


def test_low_rank_is_exact_for_what_has_that_rank_and_finds_the_largest_of_what_has_not() -> None:
    rng = torch.Generator().manual_seed(0)
    thin = torch.randn(30, 2, generator=rng) @ torch.randn(2, 12, generator=rng)
    torch.testing.assert_close(decoded(LowRank(2), {"a": thin})["a"], thin, rtol=1e-4, atol=1e-4)
    full, coding, memory = torch.randn(30, 12, generator=rng), Coding(kind="low-rank", rank=3, feedback=False), Params()
    best = float(torch.linalg.svdvals(full)[3:].square().sum())
    errors = []
    for number in range(60):  # one change again and again, of which nothing is owed: Q alone is remembered
        payload, memory = coding.encode({"a": full, "b": full[0]}, memory, Scope(0, "shop", number))
        found = coding.decode(payload, {"a": full, "b": full[0]}, Scope(0, "shop", number))
        assert memory.keys() == {"right.a"} and torch.equal(found["b"], full[0])
        errors.append(float((found["a"] - full).square().sum()))
    assert errors[0] > 1.02 * best and errors[-1] == pytest.approx(best, rel=1e-3)


def test_a_count_sketch_finds_the_few_entries_that_are_large() -> None:
    change = torch.zeros(2000)
    change[[7, 300, 1999]] = torch.tensor([5.0, -3.0, 4.0])
    found = decoded(bound(CountSketch(0.5), 1), {"a": change})["a"]
    torch.testing.assert_close(found, change)


def test_top_k_sends_the_largest_entries_as_they_are() -> None:
    payload, memory = TopK(0.5).encode({"a": torch.tensor([[1.0, -3.0], [0.5, 2.0]])}, {})
    assert payload["places.a"].tolist() == [1, 3] and payload["values.a"].tolist() == [-3.0, 2.0]
    assert memory["a"].tolist() == [[1.0, 0.0], [0.5, 0.0]]
    # What was owed is added: 1 + 1 is larger than 1.5 in size.
    payload, memory = TopK(0.25).encode({"a": torch.tensor([[1.0, 1.5], [0.0, 0.0]])}, memory)
    assert payload["places.a"].tolist() == [0] and payload["values.a"].tolist() == [2.0]
    assert memory["a"].tolist() == [[0.0, 1.5], [0.5, 0.0]]


def test_identity_is_none_to_the_bit_and_to_the_byte(tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {
        "without": {},
        "with": {"codec": {"kind": "identity"}},
        "all": {"codec": {"kind": "top-k", "fraction": 1.0}},
    }
    for name, fields in runs.items():
        (tmp_path / name).mkdir()
        launch(experiment(**SMALL, rounds=1, **fields), tmp_path / name)
    same(tmp_path / "without", tmp_path / "with")
    assert up(tmp_path / "with").keys() == {"item_bias", "item_table", "metrics"}
    # Of what is sent whole only rounding differs, z + (x - z) from x.
    one, two = (load_file(tmp_path / name / "model" / "shared.safetensors") for name in ("with", "all"))
    assert one.keys() == two.keys() >= {"item_bias", "item_table"}
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-6, atol=1e-6)


def up(home: Path) -> dict[str, int]:
    """Return the bytes that the clients of a run sent in its first round, by parameter."""
    found: dict[str, int] = defaultdict(int)
    with (home / "ledger.csv").open() as file:
        for row in csv.DictReader(file):
            if row["direction"] == "up" and row["round"] == "1":
                found[row["parameter"]] += int(row["bytes"])
    return dict(found)


@pytest.mark.parametrize("where", ["inside", "client"])
def test_what_has_its_noise_is_what_is_encoded(where: str, tmp_path: Path) -> None:
    privacy: dict[str, Any] = {"unit": "user", "noise": 0.5, "clip": 0.1, "epsilon": "1000", "replay": True}
    privacy |= {} if where == "inside" else {"unit": "client", "where": where}
    found = {}
    for name, fields in (("whole", {}), ("largest", TOP)):
        (tmp_path / name).mkdir()
        e = experiment(**SMALL, rounds=1, weights="uniform", privacy=privacy, **fields)
        found[name] = witness(e, tmp_path / name).transcript.rounds[0].update()
    for name, noisy in found["whole"].items():
        sent = found["largest"][name]
        assert 0 < int((sent != 0).sum()) <= math.ceil(0.2 * sent.numel())
        torch.testing.assert_close(sent[sent != 0], noisy[sent != 0], rtol=1e-5, atol=1e-6)


CODECS: dict[str, dict[str, Any]] = {
    "own": {"kind": OWN},
    "8-bit": {"kind": "quantised"},
    "4-bit": {"kind": "quantised", "bits": 4, "block": 16, "feedback": False},
    "top-k": {"kind": "top-k"},
    "random-k": {"kind": "random-k", "fraction": 0.1},
    "low-rank": {"kind": "low-rank"},
    "count-sketch": {"kind": "count-sketch", "fraction": 0.2},
    "projection": {"kind": "projection", "fraction": 0.1, "feedback": False},
}


@pytest.mark.parametrize("name", CODECS)
def test_engines_agree_and_the_ledger_has_the_bytes_that_travelled(name: str, tmp_path: Path) -> None:
    kind, engines = CODECS[name]["kind"], ("inline", "process", "batched")
    every = {"none": experiment(**SMALL, rounds=2)}
    every |= {engine: experiment(**SMALL, rounds=2, engine=engine, codec=CODECS[name]) for engine in engines}
    for name, e in every.items():
        (tmp_path / name).mkdir()
        launch(e, tmp_path / name)
    same(tmp_path / "inline", tmp_path / "process", ["engine"])
    sent = {name: up(tmp_path / name) for name in every}
    assert sent["inline"] == sent["batched"]
    header = 128  # of an array
    said: dict[str, int] = defaultdict(int)
    for data in clients_data(every["inline"]):
        n = len(data.items)
        like = {"item_table": torch.zeros(n, int(every["inline"].dim)), "item_bias": torch.zeros(n)}
        for part, value in every["inline"].codec.form(like).items():
            said[part] += value.numpy().nbytes + header
    assert {part: size for part, size in sent["inline"].items() if part != "metrics"} == said
    if kind in (OWN, "top-k"):  # by hand
        floats = sum(size - 3 * header for part, size in sent["none"].items() if part != "metrics")
        first, last = {OWN: ("item_table", "item_bias"), "top-k": ("places.item_table", "values.item_table")}[kind]
        one, two = (sent["inline"][part] - 3 * header for part in (first, last))
        assert (one + two) * 4 == floats if kind == OWN else one == two < 0.02 * floats


def silence(reply: Contribution, message: Message) -> None:
    """Lose an answer on its way."""


def lie(reply: Contribution, message: Message) -> Contribution:
    """Send places that no table has."""
    far = {name: value + 10_000 * (name == "places.item_table") for name, value in reply.values.items()}
    return replace(reply, values=far)


def plain(reply: Contribution, message: Message) -> Contribution:
    """Send what a client without a codec would."""
    return replace(reply, values=read_broadcast(message.content).values)


@pytest.mark.parametrize("method", ["fedper", "admm"])
def test_a_lost_contribution_takes_the_memory_back(method: str) -> None:
    e = experiment(method, **SMALL, **TOP, rounds=4)
    # It is lost in round 2, whether on its way or as the run says: what follows is the same, also what is still owed.
    lost = coordinated(e, {("shop", "train", 2): silence})[0]
    said = coordinated(build({**e.model_dump(), "dropout": "2:shop"}), {})[0]
    never = coordinated(e, {})[0]
    assert all(torch.equal(lost.z[name], said.z[name]) for name in lost.z)
    assert not all(torch.equal(lost.z[name], never.z[name]) for name in lost.z)


def test_the_memory_of_a_lost_round_is_not_kept() -> None:
    e = experiment("fedper", **SMALL, **TOP, rounds=2)
    with_loss, grid = coordinated(e, {("shop", "train", 2): silence})
    state = next(state_of(context) for context in grid.nodes.values() if state_of(context).now.round < 2)
    assert state.now.round == 1 and state.now.own.memory
    states = [state_of(context) for context in grid.nodes.values()]
    assert all(one.now.own.memory for one in states) and with_loss.record.faults[0]["client"] == "shop"


@pytest.mark.parametrize("codec", [TOP["codec"], CODECS["low-rank"]], ids=["top-k", "low-rank"])
@pytest.mark.parametrize("method", ["fedper", "admm"])
@pytest.mark.parametrize("engine", ["inline", "batched"])
def test_a_run_that_is_broken_off_ends_as_if_it_had_not_been(
    method: str, engine: str, codec: dict[str, Any], tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(row: Row) -> None:
        if row["round"] == 3:
            raise Killed

    e = experiment(method, **SMALL, codec=codec, rounds=4, engine=engine)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    launch(e, tmp_path / "whole")
    with pytest.raises(Killed):
        launch(e, tmp_path / "broken", on_round=kill, every=1)
    launch(e, tmp_path / "broken", every=1)
    same(tmp_path / "whole", tmp_path / "broken")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_what_a_client_sent_and_what_it_owes_is_what_it_changed(seed: int) -> None:
    e = experiment("fedper", **SMALL, **TOP)
    client, own, z = Client(e, clients_data(e)[0], "cpu", None), Own(), {"a": torch.ones(5, 3), "b": torch.ones(4)}
    left = {name: torch.zeros_like(value) for name, value in z.items()}
    for change in changes(seed, 3):
        payload, own, _ = encoded(client, 1, add(z, change), z, own, None)
        arrived = e.codec.read(payload, z, z, False)
        left = subtract(add(left, change), subtract(arrived, z))
        for name, value in left.items():
            assert own.memory is not None
            torch.testing.assert_close(own.memory[name], value, rtol=1e-4, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_under_duals_the_tie_owes_what_a_payload_loses(seed: int) -> None:
    e = experiment("admm", **SMALL, **TOP)
    client, z = Client(e, clients_data(e)[0], "cpu", None), {"a": torch.zeros(5, 3), "b": torch.zeros(4)}
    link = Link.start(z, 1e-3)
    held = double(link.sent)
    for change in changes(seed, 3):
        values, answered = link.answer(change, z)
        payload, own, after = encoded(client, 1, values, z, Own(), answered)
        assert after is not None and own.memory is None
        link = after
        held = add(held, double(e.codec.decode(payload, z)))
        for name, value in held.items():  # both sides count on the same v
            torch.testing.assert_close(value, link.sent[name], rtol=1e-12, atol=1e-9)


LIKE = {"a": torch.zeros(4, 3)}
HOSTILE: dict[str, tuple[str, Callable[[Params], Params], str]] = {
    "plain": ("top-k", lambda p: {"a": torch.zeros(4, 3)}, "a: must be a shared parameter"),
    "missing": ("top-k", lambda p: {"values.a": p["values.a"]}, "places.a: must be sent, found missing"),
    "more": ("top-k", lambda p: {**p, "values.b": p["values.a"]}, "values.b: must be a shared parameter"),
    "longer": (
        "top-k",
        lambda p: {n: v.repeat(2) for n, v in p.items()},
        r"values.a: must have shape \[3\], found \[6\]",
    ),
    "dtype": ("top-k", lambda p: {**p, "places.a": p["places.a"].long()}, "places.a: must have dtype torch.int32"),
    "nan": ("top-k", lambda p: {**p, "values.a": p["values.a"] * math.nan}, "values.a: every value must be finite"),
    "far": (
        "top-k",
        lambda p: {**p, "places.a": p["places.a"] + 100},
        "codec top-k: must be able to decode .*RuntimeError",
    ),
    "below": ("top-k", lambda p: {**p, "places.a": p["places.a"] - 100}, "codec top-k: must be able to decode"),
    "overflow": (OWN, lambda p: {**p, "scale.a": torch.tensor(9e11)}, "a: every value must be at most"),
    "far scales": (
        "quantised",
        lambda p: {**p, "scale.a": torch.full((1,), 9e11)},
        "a: every value must be at most",
    ),
    "more levels": (
        "quantised",
        lambda p: {**p, "levels.a": torch.zeros(13, dtype=torch.uint8)},
        r"levels.a: must have shape \[12\]",
    ),
    "signed levels": (
        "quantised",
        lambda p: {**p, "levels.a": p["levels.a"].char()},
        "levels.a: must have dtype torch.uint8",
    ),
    "far factors": (
        "low-rank",
        lambda p: {**p, "whole.a": torch.full((4, 3), 2e12)},
        "whole.a: every value must be at most",
    ),
    "nan in a sketch": (
        "count-sketch",
        lambda p: {**p, "sketch.a": p["sketch.a"] * math.nan},
        "sketch.a: every value must be finite",
    ),
    "infinite": (OWN, lambda p: {**p, "scale.a": torch.tensor(math.inf)}, "scale.a: every value must be finite"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_payload_that_is_none_is_refused_by_name(how: str) -> None:
    kind, change, text = HOSTILE[how]
    coding = Coding(kind=kind, fraction=0.2)
    payload, _ = coding.encode({"a": torch.randn(4, 3, generator=torch.Generator().manual_seed(0))}, {})
    assert coding.decode(payload, LIKE)["a"].shape == (4, 3)
    with pytest.raises(ContractError, match=f"^{text}"):
        coding.decode(change(payload), LIKE)


def test_a_liar_is_refused_and_the_others_go_on() -> None:
    e = experiment(**SMALL, **TOP)
    made, _ = coordinated(e, {("shop", "train", 1): lie})
    (fault,) = made.record.faults
    assert (fault["client"], fault["kind"]) == ("shop", "contract") and "codec top-k: must be able" in str(
        fault["text"]
    )
    lost = coordinated(build({**e.model_dump(), "dropout": "1:shop"}), {})[0]
    assert all(torch.equal(made.z[name], lost.z[name]) for name in made.z)


def test_a_client_without_the_codec_of_the_server_is_refused() -> None:
    e = experiment(**SMALL, **TOP)
    with pytest.raises(ClientFailure, match=r"item_bias: must be a shared parameter .*found unknown name"):
        coordinated(e, {(name, "train", 1): plain for name in ("films", "news", "shop")})


def test_a_payload_whose_form_tells_of_the_change_is_refused_where_it_is_made() -> None:
    coding = Coding(kind="tests.own_parts:Telling")
    with pytest.raises(ContractError, match=r"^a: must have shape \[0\], found \[1\]$"):
        coding.encode({"a": torch.tensor([0.0, 1.0])}, {})


def test_nothing_that_is_forgotten_arrives() -> None:
    coding = Coding(kind="tests.own_parts:Halves")
    payload, memory = coding.encode({"a": torch.ones(4)}, {})
    assert not memory and coding.read(payload, {"a": torch.full((4,), 2.0)}, {"a": torch.zeros(4)}, False)[
        "a"
    ].tolist() == [3.0, 3.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"kind": "tests.own_parts:Telling"},
            r"must make numbers .*found ContractError: change: must have shape \[0\]",
        ),
        ({"kind": "topk"}, "did you mean 'top-k'"),
        ({"kind": "tests.own_parts:Precision"}, "must have the method encode of a codec, found none"),
        ({"kind": OWN, "fraction": 0}, "fraction"),
    ],
)
def test_what_is_no_codec_is_refused(fields: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        build({"codec": fields}).codec.check()


def test_the_plan_has_the_codec_and_a_witness_reads_what_the_server_reads() -> None:
    e = experiment(**SMALL, codec={"kind": "top-k", "fraction": 1.0})
    assert plan_of(e).codec == e.codec
    seen, plain = witness(e), witness(experiment(**SMALL))
    first, same_one = seen.transcript.rounds[0], plain.transcript.rounds[0]
    for name, value in first.update().items():
        torch.testing.assert_close(value, same_one.update()[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["scaffold", "fednova"])
def test_what_counts_steps_goes_with_a_codec_that_owes_nothing(method: str) -> None:
    codec = {"kind": "quantised", "bits": 3}
    fields: dict[str, Any] = {**SMALL, "optimiser": "sgd", "lr": 0.5, "weights": "uniform", "rounds": 2}
    fields |= {"partition": "users", "clients": 3}
    with pytest.raises(UserError, match="but what arrives holds what earlier rounds still owed"):
        experiment(method, **fields, codec=codec)
    made, grid = coordinated(experiment(method, **fields, codec={**codec, "feedback": False}), {})
    owns = [state_of(node).now.own for node in grid.nodes.values()]
    assert not any(own.memory for own in owns)
    if method == "scaffold":  # both sides made c_i of what has arrived
        assert made.control is not None
        for name, value in made.control.c.items():  # the mean, of silos that carry the same rows
            parts = [own.control[name] for own in owns if own.control is not None]
            assert len(parts) == 3 and bool(value.any())
            torch.testing.assert_close(value, torch.stack(parts).mean(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["random-k", "projection", "count-sketch"])
def test_client_and_server_draw_alike_in_every_round(kind: str) -> None:
    """The last z is the mean of what the payloads say under the round's scope, and of that nothing is owed."""
    codec = {"kind": kind, "fraction": 0.3}
    e = experiment(**SMALL, weights="uniform", rounds=3, partition="users", clients=3, codec=codec)
    made, grid = coordinated(e, {})
    asked = [message for message in grid.sent if message.metadata.message_type == "train"][-3:]
    z = read_broadcast(asked[0].content).values
    assert read_broadcast(asked[0].content).round == 3
    replies = [read_contribution(reply.content) for reply in grid.received if reply.has_content()]
    last = [reply for reply in replies if any("." in name for name in reply.values)][-3:]
    found = {}
    for reply in last:
        change = e.codec.decode(reply.values, zeros(z), Scope(e.seed, reply.client, 3))
        found[reply.client] = change
    for name, value in made.z.items():
        total = torch.stack([change[name] for change in found.values()]).mean(0)
        torch.testing.assert_close(value, z[name] + total, rtol=0, atol=1e-6)
    if kind == "random-k":
        for node in grid.nodes.values():
            (client,), memory = node.parties, state_of(node).now.own.memory
            assert memory is not None and all(not memory[name][found[client][name] != 0].any() for name in memory)
