"""What a client exchanges is a value: logits alone, or tables under a map; over Flower as in `solve`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from safetensors.torch import save_file
from torch import Tensor

from clients.client import Client
from fedrec.data import ClientData
from fedrec.errors import UserError
from fedrec.experiment.channel import Both, Linear, Logits, Mapped, channel_of, probe, public
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, dataset
from fedrec.federation.coordination.maps import client_map
from fedrec.federation.coordination.minimise import gradient_steps
from fedrec.federation.coordination.operators import LinearTie
from fedrec.federation.coordination.solve import solve
from fedrec.models import Recommender
from fedrec.params import Params, flatten, unflatten
from fedrec.report.facts import shared
from fedrec.report.tables import read_run
from fedrec.rng import generator
from fedrec.sharing import Sharing
from fedrec.training.losses import batch_loss
from simulations.check import check
from simulations.engines import launch
from tests.builders import batches
from tests.helpers import experiment, fit, results, shared_names
from tests.letters import read_contribution, state_of
from tests.test_coupling import joined
from tests.test_messages import content_bytes

UNLIKE = {"model": "mf;shop=mlp", "dim": "4;news=3", "volunteers": 20}


def agreement(**fields: Any) -> Experiment:
    """Return three unlike recommenders that agree on logits."""
    return experiment("agreement", **{**UNLIKE, "agreement": {"items": 30}, **fields})


def logits_of(e: Experiment, data: ClientData) -> Logits:
    """Return a client's channel, which is that of an agreement."""
    channel = channel_of(e, data)
    assert isinstance(channel, Logits)
    return channel


@pytest.mark.parametrize("coupling", [{"rho": 1e-4}, {"rho": 1e-4, "duals": True}], ids=["plain", "duals"])
def test_only_logits_travel(coupling: dict[str, Any]) -> None:
    """Over every message: no name but `logits`, one number for each public pair, no byte of any parameter."""
    e = agreement(coupling=coupling)
    record, grid = fit(e)
    sizes = {data.name: len(logits_of(e, data).ids) for data in clients_data(e)}
    private = [value for c in grid.nodes.values() for value in state_of(c).now.private.values()]
    trained = [value.numpy().tobytes() for value in private if value.numel() > 2]
    assert len(trained) > 10
    for message in [*grid.sent, *grid.received]:
        blob = content_bytes(message)
        assert not any(data in blob for data in trained)
        assert all(name.encode() not in blob for c in grid.nodes.values() for name in state_of(c).now.private)
        shared = message.content.array_records["shared.0"]
        assert set(shared) <= {"logits"}
        assert set(message.content.array_records) <= {"shared.0", "rows.0"}
    for message in grid.received:
        shared, name = message.content.array_records["shared.0"], read_contribution(message.content).client
        if "logits" in shared:
            assert shared["logits"].shape == (sizes[str(name)],)
        assert set(read_contribution(message.content).metrics) <= {
            *("loss", "examples", "gap"),
            *(f"{name!s}/rank/{metric}" for metric in e.metrics),
        }
    assert set(record.rows) == {"probe"} and set(record.shared) == {"logits"}
    assert {row["parameter"] for row in record.ledger} == {"logits", "rows:probe", "metrics"}


def rows_sent(grid_received: list[Message]) -> list[Tensor]:
    """Return the logits of the join messages."""
    from fedrec.wire import unpack

    return [
        unpack(m.content.array_records["shared.0"])["logits"]
        for m in grid_received
        if m.metadata.message_type == "query.join"
    ]


def test_z_is_the_weighted_mean_of_the_logits_pair_by_pair() -> None:
    e = agreement(weights="uniform")
    made, grid = joined(e)
    parts = {data.name: logits_of(e, data) for data in clients_data(e)}
    ids, z = made.record.rows["probe"], made.z["logits"]
    order = [data.name for data in clients_data(e)]  # of the messages
    for number in (0, 17, len(ids) - 1):
        carried = [
            float(x[np.searchsorted(parts[name].ids, ids[number])])
            for name, x in zip(order, rows_sent(grid.received), strict=True)
            if ids[number] in parts[name].ids
        ]
        assert float(z[number]) == pytest.approx(sum(carried) / len(carried), abs=1e-6)


def test_the_probe_and_the_volunteers_leak_nothing() -> None:
    """Pairs are drawn apart from behaviour; volunteers' held-out rows are with nobody; nobody tests volunteers."""
    e = agreement()
    data, known, count = clients_data(e), public(e), len(dataset(e).items)
    pairs = probe(e)
    assert len(pairs) == 20 * 30 and set(pairs // count) == set(known.users) and bool((np.diff(pairs) > 0).all())
    other = e.model_copy(update={"market": e.market.model_copy(update={"impressions": 10})})
    assert np.array_equal(pairs % count, probe(other) % count)
    held = {
        (int(known.users[u]), int(i))
        for p in (known.validation, known.test)
        for u, i in zip(p.user, p.item, strict=True)
    }
    assert len(held) > 20
    for one in data:
        pooled = {(int(one.users[u]), int(one.items[i])) for u, i in zip(one.train.user, one.train.item, strict=True)}
        assert not pooled & held
        for part in (one.validation, one.test):
            assert not np.isin(one.users[part.user], known.users).any()
        shown = one.train.take(np.isin(one.users[one.train.user], known.users))
        expected = known.train.take(np.isin(known.train.item, one.items))
        assert len(shown) == len(expected) > 50


def test_without_volunteers_the_data_are_as_before() -> None:
    plain, some = clients_data(experiment("local")), clients_data(experiment("local", volunteers=20))
    for a, b in zip(plain, some, strict=True):
        kept = ~np.isin(a.users[a.test.user], public(experiment("local", volunteers=20)).users)
        assert np.array_equal(a.users[a.test.user][kept], b.users[b.test.user])
        assert np.array_equal(a.items, b.items)


def toy(scale: Any, batch: int = 8192) -> tuple[Logits, Params]:
    """Return a channel of 6 users with 5 items each, and parameters."""
    model = Recommender("mf", 4)
    pairs = torch.arange(6).repeat_interleave(5), torch.arange(30) % 7
    params = model.init(0, np.arange(6), np.arange(7), {"rank": 0.0})
    return Logits(model, "rank", np.arange(30), *pairs, scale, batch), params


@pytest.mark.parametrize("scale", ["centred", "standard"])
def test_what_a_ranking_loss_leaves_open_does_not_travel(scale: str) -> None:
    """BPR does not see a shift of a user's scores, nor ranking their scale: x is free of both."""
    channel, params = toy(scale)
    moved = params | {"user_bias": torch.arange(6.0)[:, None], "heads.rank.bias": torch.tensor([3.0])}
    x = channel.split(params)[0]["logits"]
    assert torch.allclose(channel.split(moved)[0]["logits"], x, atol=1e-4)
    assert torch.allclose(x.reshape(6, 5).mean(1), torch.zeros(6), atol=1e-5)
    if scale == "standard":
        louder = params | {"heads.rank.weight": 100 * params["heads.rank.weight"]}
        loud = channel.split(louder)[0]["logits"].reshape(6, 5)
        assert torch.allclose(loud.square().mean(1), torch.ones(6), atol=1e-3)


def test_join_undoes_split_and_the_pull_of_drawn_users_is_unbiased() -> None:
    channel, params = toy("standard", batch=10)
    x, private = channel.split(params)
    assert channel.join(x, private) == params
    anchor = {"logits": torch.linspace(-1, 1, 30)}
    whole = toy("standard")[0].pull(anchor, 0.5, generator(0, "pull"))(params)
    assert float(whole) == pytest.approx(0.25 * float((x["logits"] - anchor["logits"]).square().sum()), rel=1e-5)
    drawn = channel.pull(anchor, 0.5, generator(0, "pull"))
    values = torch.stack([drawn(params).detach() for _ in range(2000)])
    assert float(values.std()) > 0.01  # a part of the users each time
    assert float(values.mean()) == pytest.approx(float(whole), abs=4 * float(values.std()) / 2000**0.5)


def losses_of(e: Experiment) -> tuple[list[Any], list[Params], list[Client]]:
    """Return every client's whole-batch loss of theta as one vector, its start, and the client."""
    losses, starts, clients = [], [], [Client(e, data, "cpu", None) for data in clients_data(e)]
    clients.sort(key=lambda client: client.data.name)
    for client in clients:
        start = client.start()
        (batch,) = batches(client.data, client.tasks, e.recipe(), generator(0, "any"))

        def loss(theta: Tensor, client: Client = client, start: Params = start, batch: Any = batch) -> Tensor:
            params = unflatten(theta, start)
            return batch_loss(client.model, {n: v.float() for n, v in params.items()}, client.tasks, batch, e.l2)

        losses.append(loss)
        starts.append(start)
    return losses, starts, clients


@pytest.mark.parametrize("kind", ["logits", "linear"])
@pytest.mark.parametrize("duals", [True, False])
def test_flower_and_solve_share_their_numerics(kind: str, duals: bool) -> None:
    """Three rounds of whole-batch gradient steps on ratings: the same z as `solve` with the same losses and maps.

    The same clients, weights, rho and local steps; only the order of the rows within a sum differs.
    """
    rho, steps, lr = 0.002, 4, 0.1
    fields: dict[str, Any] = {
        "task": "rating",
        "optimiser": "sgd",
        "lr": lr,
        "local_epochs": steps,
        "batch_size": 100_000,
        "rounds": 3,
        "coupling": {"rho": rho, "duals": duals},
    }
    if kind == "logits":
        e = agreement(agreement={"items": 30, "task": "rating", "scale": "raw"}, **fields)
    else:
        fields["coupling"] |= {"kind": "linear", "maps": "orthonormal", "width": 2}
        e = experiment("fedper", partition="users", share="item_table", dim="4;silo-2=3", **fields)
        operator: Any = LinearTie(tuple(torch.eye(2) for _ in range(3)))
    losses, starts, clients = losses_of(e)
    channels = [client.channel for client in clients]
    made, _ = joined(e)
    carriers = made.carriers
    order = sorted(range(3), key=lambda i: list(carriers).index(clients[i].data.name))
    names = list(carriers)

    def exchange(i: int) -> Any:
        def x(theta: Tensor) -> Tensor:
            channel = channels[i]
            assert isinstance(channel, Mapped)
            found = channel.x({n: v.float() for n, v in unflatten(theta, starts[i]).items()})
            return flatten(found).double()

        return x

    start = [flatten(one).double() for one in starts]
    if kind == "logits":  # a client trains alone before it joins
        start = [gradient_steps(steps, lr)(loss, one) for loss, one in zip(losses, start, strict=True)]
        operator = _RowMean([carriers[name].positions["logits"] for name in names], len(probe(e)))
    found = solve(
        [losses[i] for i in order],
        [start[i] for i in order],
        operator,
        rho=rho,
        rounds=3,
        local_solver=gradient_steps(steps, lr),
        exchange=[exchange(i) for i in order],
        weights=[carriers[name].weight for name in names],
        duals=duals,
    )
    history = [made.round(number) for number in (1, 2, 3)]
    for name, z in zip(names, found.z, strict=True):
        assert torch.allclose(flatten(made.parts[name]).double(), z, atol=2e-5), name
    assert [row["primal_residual"] for row in history] == pytest.approx([one.primal for one in found.history], rel=1e-3)
    assert [row["dual_residual"] for row in history] == pytest.approx(
        [one.dual for one in found.history], rel=1e-2, abs=1e-6
    )


class _RowMean:
    """The mean of each row over the clients that carry it, for vectors of unlike length."""

    def __init__(self, positions: list[Tensor], count: int) -> None:
        self.positions, self.count = positions, count

    def __call__(self, v: list[Tensor], p: Tensor, rho: float) -> list[Tensor]:
        total, mass = torch.zeros(self.count).double(), torch.zeros(self.count).double()
        for one, weight, where in zip(v, p, self.positions, strict=True):
            total[where] += weight * one
            mass[where] += weight
        return [(total / mass)[where] for where in self.positions]

    def restrict(self, members: Any) -> "_RowMean":
        return self


def test_logits_are_only_of_the_items_that_a_client_carries() -> None:
    e = agreement()
    count, pairs = len(dataset(e).items), probe(e)
    for data in clients_data(e):
        channel = logits_of(e, data)
        assert np.array_equal(channel.ids, pairs[np.isin(pairs % count, data.items)])
        assert np.array_equal(data.users[channel.user.numpy()], channel.ids // count)
        assert np.array_equal(data.items[channel.item.numpy()], channel.ids % count)
    assert min(len(logits_of(e, data).ids) for data in clients_data(e)) < len(pairs)


def test_an_agreement_brings_logits_together_and_leaves_parameters_apart() -> None:
    """A stiffer tie has a smaller |X - Z|; nobody's parameters become anybody's."""
    loose, stiff = (agreement(rounds=6, coupling={"rho": rho}) for rho in (1e-8, 1e-2))
    (a, _), (b, grid) = fit(loose), fit(stiff)
    assert float(b.rounds[-1]["primal_residual"]) < 0.5 * float(a.rounds[-1]["primal_residual"])
    shapes = [state_of(context).now.private["item_table"].shape[1] for context in grid.nodes.values()]
    assert sorted(shapes) == [3, 4, 4]
    assert results(b) == results(fit(stiff)[0])


@pytest.mark.parametrize("coupling", [{"kind": "clusters", "groups": "films,shop"}, {"kind": "mean-regularised"}])
def test_every_operator_works_on_logits(coupling: dict[str, Any]) -> None:
    made, _ = joined(agreement(coupling={"rho": 1e-3, "duals": True, **coupling}))
    made.round(1)
    where = {
        name: dict(zip(who.positions["logits"].tolist(), range(10**6), strict=False))
        for name, who in made.carriers.items()
    }
    common = set.intersection(*(set(one) for one in where.values()))
    films, shop, news = (
        made.parts[name]["logits"][[where[name][row] for row in sorted(common)]] for name in ("films", "shop", "news")
    )
    assert not torch.allclose(films, news)
    assert torch.allclose(films, shop, atol=1e-6) == (coupling["kind"] == "clusters")


def test_budgets_compose_with_agreement() -> None:
    e = agreement(coupling={"rho": 1e-4, "duals": True}, budget={"limits": "films=0.001;0.9"})
    told = {str(row["client"]): row for row in fit(e)[0].budgets}
    assert not told["films"]["feasible"] and float(told["films"]["mu"]) > 0 and told["news"]["feasible"]


def linear(**fields: Any) -> Experiment:
    """Return three clients whose item tables are of unlike width and meet in width 2."""
    tie = {"kind": "linear", "rho": 1e-3, "maps": "identity", "width": 2, **fields.pop("coupling", {})}
    return experiment("fedper", share="item_table", dim="4;shop=3;news=2", coupling=tie, **fields)


def test_under_the_identity_the_first_columns_are_what_is_tied() -> None:
    e = linear()
    made, grid = joined(e)
    for name, part in made.parts.items():
        assert part["item_table"].shape[1] == 2, name
    starts = [state_of(c).now.private["item_table"] for c in grid.nodes.values()]
    assert sorted(one.shape[1] for one in starts) == [2, 3, 4]
    for x, start in zip([m for m in grid.received if m.metadata.message_type == "query.join"], starts, strict=True):
        from fedrec.wire import unpack

        assert torch.equal(unpack(x.content.array_records["shared.0"])["item_table"], start[:, :2])


def test_maps_come_from_a_file_and_tie_the_rows_to_the_range_of_b(tmp_path: Path) -> None:
    """With B_i = (b_i) and width-1 y, every z row of client i is y_row b_i: films and shop opposite, news double."""
    file = tmp_path / "maps.safetensors"
    rng = generator(0, "maps")
    a = {f"{n}/A": torch.from_numpy(rng.standard_normal((d, 2))) for n, d in (("films", 4), ("shop", 3), ("news", 2))}
    b = {"films/B": [[1.0], [0.5]], "shop/B": [[-1.0], [-0.5]], "news/B": [[2.0], [1.0]]}
    save_file({**a, **{name: torch.tensor(value) for name, value in b.items()}}, file)
    e = linear(coupling={"maps": str(file), "duals": True})
    check(e)
    made, _ = joined(e)
    made.round(1)
    z = {name: part["item_table"].double() for name, part in made.parts.items()}
    for name, value in z.items():
        assert torch.allclose(value[:, 0], 2 * value[:, 1], atol=1e-6), name
    rows = {name: who.positions["item_table"] for name, who in made.carriers.items()}
    both = sorted(set(rows["films"].tolist()) & set(rows["shop"].tolist()) & set(rows["news"].tolist()))
    films, shop, news = (z[n][torch.searchsorted(rows[n], torch.tensor(both))] for n in ("films", "shop", "news"))
    assert torch.allclose(films, -shop, atol=1e-6) and torch.allclose(2 * films, news, atol=1e-6)
    assert float(films.norm()) > 0
    trained = Client(e, clients_data(e)[0], "cpu", None).channel
    assert isinstance(trained, Linear) and torch.equal(trained.a, a["films/A"])


def test_orthonormal_maps_are_drawn_by_client_and_seed() -> None:
    a = client_map("orthonormal", 3, "films", 5, 0)
    assert torch.allclose(a.T @ a, torch.eye(3).double(), atol=1e-12)
    assert not torch.equal(a, client_map("orthonormal", 3, "shop", 5, 0))
    assert torch.equal(a, client_map("orthonormal", 3, "films", 5, 0))
    channel = Linear(Sharing(("item_table",)), a)
    with torch.no_grad():
        assert channel.x({"item_table": torch.ones(7, 5), "body": torch.ones(1)})["item_table"].shape == (7, 3)


def test_one_tie_of_rows_is_the_tie_of_each_row() -> None:
    rng = generator(1, "rows")
    b = tuple(torch.from_numpy(rng.standard_normal((d, 2))) for d in (3, 2))
    v = [torch.from_numpy(rng.standard_normal((4, d))) for d in (3, 2)]
    p = torch.tensor([0.5, 2.0], dtype=torch.float64)
    whole = LinearTie(b)([one.reshape(-1) for one in v], p, 1.0)
    for row in range(4):
        alone = LinearTie(b)([one[row] for one in v], p, 1.0)
        assert all(torch.allclose(w.reshape(4, -1)[row], z) for w, z in zip(whole, alone, strict=True))


@pytest.mark.parametrize(
    ("method", "fields", "text"),
    [
        ("agreement", {}, r"agreement.items: 100 needs public users, .* \(add --volunteers 60\), found volunteers 0"),
        (
            "agreement",
            {"volunteers": 5, "share": "item_table", "coupling": {"rho": 1e-4, "kind": "linear"}},
            "agreement.items: .* needs logits as answers, but maps act on rows .not built., found coupling.kind linear",
        ),
        (
            "agreement",
            {"volunteers": 5, "share": "item_table", "newcomers": "shop=2", "rounds": 3},
            "newcomers: .* needs clients that learn and send nothing, but logits travel beside what is shared",
        ),
        (
            "agreement",
            {"volunteers": 5, "pool": True},
            "agreement.items: .* needs something that clients exchange, .* found pool",
        ),
        (
            "agreement",
            {"volunteers": 5, "coupling": {"rho": 0.0}},
            "agreement.items: .* needs a proximal tie, .*, found coupling.rho 0",
        ),
        (
            "agreement",
            {"volunteers": 5, "phases": "private,shared"},
            "agreement.items: .* needs the one phase all, .*, found phases private,shared",
        ),
        (
            "agreement",
            {"volunteers": 5, "drift": {"personal": "ditto"}},
            "drift.personal: ditto needs clients that start from the server.*found agreement.items",
        ),
        (
            "agreement",
            {"volunteers": 5, "drift": {"normalise": True}},
            "drift.normalise: True needs clients that start .*found agreement.items",
        ),
        (
            "agreement",
            {"volunteers": 5, "descent": {"aggregator": "mgda"}},
            "descent: mgda with sgd needs clients that start .*found agreement.items",
        ),
        (
            "agreement",
            {"volunteers": 5, "task": "rank;shop=rating"},
            "agreement.task: every client must have .*in shop",
        ),
        ("agreement", {"volunteers": 5, "task": "rating"}, "agreement.task: every client must have the task rank"),
        ("agreement", {"volunteers": 900}, "volunteers: must be below the number of users, 900, found 900"),
        (
            "agreement",
            {"volunteers": 5, "task": "rating", "agreement": {"items": 5, "task": "rating"}},
            "agreement.scale: must be raw for a task that does not rank, found standard",
        ),
        (
            "fedper",
            {"coupling": {"kind": "linear", "rho": 1.0}},
            "coupling.kind: linear needs item_table or user_table to be shared, and nothing else",
        ),
        (
            "fedper",
            {"share": "item_table", "coupling": {"kind": "linear"}},
            "coupling.kind: linear needs a proximal tie",
        ),
        (
            "fedper",
            {"share": "item_table", "dim": "4;shop=3", "coupling": {"kind": "linear", "rho": 1.0, "width": 4}},
            "coupling.width: must be from 1 to the width of shop's tables, 3, found 4",
        ),
        (
            "fedper",
            {"share": "item_table", "coupling": {"kind": "linear", "rho": 1.0, "maps": "nowhere"}},
            "coupling.maps: must be identity, orthonormal or a safetensors file, found 'nowhere'",
        ),
        ("fedper", {"dim": "32;shop=0"}, "dim: must be a whole number from 1 to 4096, found '0'"),
        ("fedper", {"dim": "32;shop=wide"}, "dim: must be a whole number from 1 to 4096, found 'wide'"),
        ("fedper", {"dim": "32;shopp=8"}, "client 'shopp': must be one of films, news, shop, found in '32;shopp=8'"),
        ("fedper", {"dim": "4;shop=3"}, "share: item_table must have one shape to be shared"),
        (
            "fedper",  # of clients that are checked by their kinds, the one that is named is one
            {"partition": "one-user", "dim": "4;user-287=3"},
            r"share: item_table must have one shape to be shared, found \[1, 3\] in user-287 and \[1, 4\] in user-152",
        ),
    ],
)
def test_what_cannot_hold_is_refused_before_anything_runs(method: str, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        check(experiment(method, **fields))


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"films/A": (4, 2), "shop/A": (3, 2)}, "must hold news/A, found none"),
        (
            {"films/A": (4, 2), "shop/A": (5, 2), "news/A": (2, 2)},
            r"shop/A must have a row for each of the 3 columns of its tables, found shape \[5, 2\]",
        ),
        (
            {"films/A": (4, 2), "shop/A": (3, 2), "news/A": (2, 2), "shop/B": (3, 2)},
            r"shop/B must have a row for each of the 2 columns of shop/A, found shape \[3, 2\]",
        ),
        (
            {"films/A": (4, 2), "shop/A": (3, 2), "news/A": (2, 2), "shop/B": (2, 1)},
            r"shop/B must have 2 columns, as films has, found shape \[2, 1\]",
        ),
        ({"films/A": (4,)}, r"films/A must be a matrix of finite floats, found torch.float32 with shape \[4\]"),
    ],
)
def test_maps_that_do_not_fit_are_refused_by_client(
    tensors: dict[str, tuple[int, ...]], text: str, tmp_path: Path
) -> None:
    file = tmp_path / "maps.safetensors"
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, file)
    with pytest.raises(UserError, match=text):
        check(linear(coupling={"maps": str(file)}))


@pytest.mark.parametrize("coupling", [{"rho": 1e-3}, {"rho": 1e-3, "duals": True}], ids=["plain", "duals"])
def test_logits_travel_beside_what_is_shared(coupling: dict[str, Any]) -> None:
    """Both are in every message, in their shapes; and each acts: without it the other comes out different."""
    fields: dict[str, Any] = {"volunteers": 20, "agreement": {"items": 30}, "coupling": coupling, "rounds": 3}
    both = experiment("agreement", share="item_table,item_bias", **fields)
    record, grid = fit(both)
    assert shared_names(grid) == {"item_table", "item_bias", "logits"}
    assert results(fit(both)[0]) == results(record)
    tables = fit(experiment("fedper", share="item_table,item_bias", coupling=coupling, rounds=3, volunteers=20))[0]
    logits = fit(experiment("agreement", **fields))[0]
    assert not torch.equal(tables.shared["item_table"], record.shared["item_table"])
    assert not torch.equal(logits.shared["logits"], record.shared["logits"])
    for data in clients_data(both):
        channel = channel_of(both, data)
        assert isinstance(channel, Both)
        params = Client(both, data, "cpu", None).start()
        shared, private = channel.split(params)
        assert shared["item_table"] is params["item_table"] and "item_table" not in private
        again = channel.join(shared, private)
        assert again.keys() == params.keys() and all(torch.equal(again[name], params[name]) for name in params)


def test_outputs_and_parameters_are_tied_differently() -> None:
    """Clusters of the tables, consensus of the logits: in one the platforms differ, in the other they do not."""
    ties = "item_table: clusters(silo-1+silo-2)"
    fields: dict[str, Any] = {"volunteers": 20, "agreement": {"items": 30}, "rounds": 2, "partition": "users"}
    coupling = {"rho": 1e-3, "duals": True, "ties": ties}
    made, _ = joined(experiment("agreement", share="item_table,item_bias", coupling=coupling, **fields))
    for number in (1, 2):
        made.round(number)
    one, two, three = (made.tie.part(f"silo-{number}") for number in (1, 2, 3))
    assert torch.equal(one["item_table"], two["item_table"])
    assert not torch.equal(one["item_table"], three["item_table"])
    assert torch.equal(one["logits"], three["logits"])


def test_the_report_says_that_both_travel(tmp_path: Path) -> None:
    e = experiment("agreement", share="item_table,item_bias", volunteers=20, agreement={"items": 30})
    launch(e, tmp_path)
    told = shared(read_run(tmp_path))
    assert told == "item_table, item_bias, and logits, of each public volunteer on 30 public items"
