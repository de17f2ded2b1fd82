"""Codecs where answers are added up: in secure sums, with noise of all clients in them, and before a server's noise."""

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.client import Client
from clients.secure import Envelope
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data
from fedrec.experiment.records import Record
from fedrec.federation.codecs import Coding, Squeeze
from fedrec.params import Params, add, norm, subtract
from fedrec.privacy.encoding import Layout
from fedrec.privacy.guarantee import terms
from fedrec.privacy.noise import Source
from simulations.engines import launch
from tests.helpers import experiment, first_of, fit
from tests.letters import state_of

SECURE: dict[str, Any] = {"secure": {"active": True}}
STEP = 1e-5  # of rounding to fixed point, in float32 numbers about 1, in a few rounds
NOISY: dict[str, Any] = {"unit": "client", "where": "sum", "noise": 0.001, "clip": 0.1, "replay": True}


def silo(method: str = "fedper", **fields: Any) -> Experiment:
    """Return five silos of a small synthetic market."""
    small = {"clients": 5, "partition": "users", "rounds": 2, "market": {"users": 60, "items": 80}}
    return experiment(method, **{**small, **fields})


def far(a: Record, b: Record) -> float:
    """Return the largest difference of what two runs end with."""
    return max(float((a.shared[name] - b.shared[name]).abs().max()) for name in a.shared)


@pytest.mark.parametrize("method", ["fedper", "fedadam", "admm"])
@pytest.mark.parametrize("kind", ["random-k", "projection"])
def test_a_secure_sum_of_whole_payloads_is_the_secure_sum(method: str, kind: str) -> None:
    fields: dict[str, Any] = {**SECURE, "dropout": "2:silo-2", "skew": 0.7}
    if method == "admm":
        fields |= {"weights": "uniform", "coupling": {"rho": 1e-3, "duals": True}}
    plain = fit(silo(method, **fields))[0]
    assert far(plain, fit(silo(method, **fields, codec={"kind": kind, "fraction": 1.0}))[0]) < STEP
    assert far(plain, fit(silo(method, **fields, codec={"kind": kind, "fraction": 0.2}))[0]) > STEP


def enveloped(e: Experiment, number: int) -> tuple[Client, Envelope, Params]:
    """Return the first client with its envelope of a round, in which the last ten items have no place, and its z."""
    data = clients_data(e)[0]
    client = Client(e, data, "cpu", None)
    like = client.shared_like
    rows = {name: np.asarray(data.items)[:-10] for name in like}
    layout = Layout({name: (len(rows[name]), *value.shape[1:]) for name, value in like.items()}, rows)
    return client, Envelope.of(client, layout, number), {name: torch.zeros(v.shape) for name, v in like.items()}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["random-k", "projection"]))
def test_what_a_sum_took_and_what_is_owed_is_what_was_changed(seed: int, kind: str) -> None:
    e = silo(**SECURE, codec={"kind": kind, "fraction": 0.2})
    rng, memory = torch.Generator().manual_seed(seed), Params()
    took = total = enveloped(e, 1)[2]
    for number in (1, 2, 3):
        _, envelope, z = enveloped(e, number)
        change = {name: torch.randn(value.shape, generator=rng) for name, value in z.items()}
        whole, memory = envelope.owe(change, memory)
        took, total = add(took, envelope.travelled(whole)), add(total, change)
    for name, value in add(took, memory).items():
        torch.testing.assert_close(value[:-10].float(), total[name][:-10], rtol=1e-4, atol=1e-4)
        assert not memory[name][-10:].any() and bool(memory[name][:-10].any())


def up(home: Path) -> dict[str, int]:
    """Return the bytes that the clients of a run sent in its first round, by parameter."""
    found: dict[str, int] = defaultdict(int)
    with (home / "ledger.csv").open() as file:
        for row in csv.DictReader(file):
            if row["direction"] == "up" and row["round"] == "1":
                found[row["parameter"]] += int(row["bytes"])
    return dict(found)


def test_a_secure_sum_travels_as_many_words_as_its_payload_has(tmp_path: Path) -> None:
    sent = {}
    for name, codec in (("whole", {}), ("some", {"kind": "random-k", "fraction": 0.1})):
        (tmp_path / name).mkdir()
        launch(silo(**SECURE, rounds=1, codec=codec), tmp_path / name)
        sent[name] = up(tmp_path / name)["masked:sum"] - 5 * 128
    dim, items = int(silo().dim), len(clients_data(silo())[0].items)
    entries, masses = items * (dim + 1), 2 * items
    assert sent["whole"] == 5 * 8 * (entries + masses)
    assert sent["some"] == 5 * 8 * (-(-entries // 10) + masses)


def test_what_is_owed_is_inside_the_clip_of_a_noisy_sum() -> None:
    e = silo(**SECURE, weights="uniform", privacy=NOISY, codec={"kind": "random-k", "fraction": 0.2})
    _, envelope, z = enveloped(e, 1)
    memory = {name: torch.full(value.shape, 100.0) for name, value in z.items()}
    whole, _ = envelope.owe({name: value + 1e-3 for name, value in z.items()}, memory)
    words = envelope.words(whole, z, Source(bytes(32), False))
    sent = terms(e).values(words[: envelope.squeeze.size])
    assert np.linalg.norm(sent) == pytest.approx(0.1, rel=0.05)


def test_noise_in_a_sum_is_on_what_is_sent_alone(tmp_path: Path) -> None:
    """Of five changes, of which 0.3 of the entries are sent: 0.5 sqrt(5/3) / 5 of noise on an entry of the mean."""
    rule = {**NOISY, "noise": 1.0, "clip": 0.5}
    market = {"items": 600, "users": 100}
    e = silo(
        **SECURE, rounds=1, weights="uniform", privacy=rule, market=market, codec={"kind": "random-k", "fraction": 0.3}
    )
    record, _ = fit(e, tmp_path)
    moved = (record.shared["item_table"] - first_of(silo(market=market))["item_table"]).numpy()
    sent = np.abs(moved) > 1e-9
    assert sent.mean() == pytest.approx(0.3, abs=0.02)
    assert moved[sent].std() == pytest.approx(0.5 * (5 / 3) ** 0.5 / 5, rel=0.05)


def test_a_server_that_adds_noise_clips_what_it_has_decoded(tmp_path: Path) -> None:
    rule = {"unit": "client", "where": "server", "noise": 0.001, "clip": 0.01, "replay": True}
    e = silo(weights="uniform", rounds=3, privacy=rule, codec={"kind": "top-k", "fraction": 0.05})
    record, grid = fit(e, tmp_path)
    start = first_of(silo())
    memories = [state_of(node).now.own.memory for node in grid.nodes.values()]
    assert all(memory and norm(memory) > 0.1 for memory in memories)
    assert 0 < norm(subtract(record.shared, start)) < 3 * 0.01 * 1.05


@pytest.mark.parametrize("kind", ["quantised", "top-k", "low-rank", "count-sketch"])
@pytest.mark.parametrize("privacy", [{}, NOISY])
def test_what_depends_on_the_data_is_not_summed_in_secret(kind: str, privacy: dict[str, Any]) -> None:
    fields = {**SECURE, "weights": "uniform", **({"privacy": privacy} if privacy else {})}
    with pytest.raises(UserError, match=f"a sum of what it makes stands for nothing .*found codec.kind {kind}"):
        silo(**fields, codec={"kind": kind})


@pytest.mark.parametrize("kind", ["random-k", "projection", "identity"])
def test_payloads_add_up(kind: str) -> None:
    rng = np.random.default_rng(0)
    squeeze = Squeeze.of(Coding(kind=kind, fraction=0.3), 1, 2, 50)
    parts = [rng.normal(size=50) for _ in range(4)]
    one = squeeze.decode(np.sum([squeeze.encode(part) for part in parts], 0))
    assert squeeze.size == (50 if kind == "identity" else 15)
    np.testing.assert_allclose(one, np.sum([squeeze.decode(squeeze.encode(part)) for part in parts], 0), atol=1e-12)
