"""Faults: no round is lost, a lost answer is as if never trained, and what is missing flatters nobody."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import Message, RecordDict

from clients.node import Node
from clients.state import Kept, Party, State, saved
from fedrec.experiment.records import write_record
from fedrec.federation.coordination import Coupling, Descent, Link
from fedrec.federation.participation import Turnout
from fedrec.params import norm, subtract
from fedrec.rng import generator
from fedrec.sharing import Contribution
from server.faults import ClientFailure
from server.plan import Plan
from server.scores import Score, Scores
from server.strategy import Coordinator
from simulations.apps import plan_of
from simulations.closing import notes, table
from simulations.engines import InlineGrid
from tests.helpers import FAULTS, Change, FaultyGrid, coordinated, experiment, raised, results
from tests.letters import contribution_record, read_broadcast, read_contribution, state_of
from tests.quadratics import Problem, apart, problem

NAMES = ("films", "shop", "news", "books", "music")


@dataclass(frozen=True)
class Named(Turnout):
    """Draws whom it is told, and loses nobody."""

    absent: tuple[tuple[int, str], ...] = ()

    def drawn(self, clients: Sequence[str], number: int) -> list[str]:
        """See Turnout."""
        return [name for name in super().drawn(clients, number) if (number, name) not in self.absent]


def forgetful(node: Node) -> RecordDict:
    """Return the state of a node's client without what it would go back to."""
    (party,) = node.parties.values()
    return saved({party.client.data.name: Party(party.client, party.state._replace(before=None))})


def states(grid: InlineGrid) -> list[dict[str, bytes]]:
    """Return what every client remembers, but for what it would need to go back."""
    return [
        {
            name: repr([(k, getattr(v, "data", v)) for k, v in record.items() if k != "before"]).encode()
            for name, record in forgetful(node).items()
        }
        for node in grid.nodes.values()
    ]


LOST = {(1, "films"), (2, "shop"), (2, "films"), (3, "films"), (5, "news"), (6, "shop")}


METHODS = ("fedper", "admm", "no-harm", "clusters", "scaffold", "fednova", "ditto", "fedadam")
WAYS = [*((method, "dropout") for method in METHODS), *(("admm", how) for how in FAULTS)]


@pytest.mark.parametrize(("method", "how"), WAYS)
def test_a_lost_answer_is_as_if_the_client_had_never_been_asked(method: str, how: str) -> None:
    fields: dict[str, Any] = {"rounds": 6, "quorum": 0.0, "participation": 0.7}
    if method == "scaffold":
        fields |= {"optimiser": "sgd", "lr": 10.0}
    if method == "clusters":
        method, fields = (
            "fedper",
            {**fields, "coupling": {"kind": "clusters", "groups": "films,shop", "rho": 1e-4, "duals": True}},
        )
    e = experiment(method, **fields)
    if how == "dropout":
        text = ";".join(f"{number}:{name}" for number, name in sorted(LOST))
        lossy, grid = coordinated(experiment(method, **{**fields, "dropout": text}), {})
    else:
        lossy, grid = coordinated(e, {(name, "train", number): FAULTS[how] for number, name in LOST})
    other = FaultyGrid(e, {})
    plan = plan_of(e)
    turnout = Named(**{**vars(plan.turnout), "absent": tuple(LOST)})
    reference = Coordinator(other, replace(plan, turnout=turnout))
    reference.fit(list(other.get_node_ids()))
    assert lossy.record.faults and not reference.record.faults
    assert states(grid) == states(other)
    assert lossy.record.selected_round == reference.record.selected_round
    for name, value in reference.record.shared.items():
        assert torch.equal(lossy.record.shared[name], value)
    assert [repr(row) for row in lossy.record.clients] == [repr(row) for row in reference.record.clients]
    told = ("objective", "primal_residual", "dual_residual", "validation", "clients")
    assert [[repr(r[k]) for k in told] for r in lossy.record.rounds] == [
        [repr(r[k]) for k in told] for r in reference.record.rounds
    ]


def test_twenty_faults_lose_no_round_and_change_nothing_for_the_others() -> None:
    """Twenty answers in ten rounds fail in every way there is; the run is that in which they had dropped out."""
    draw, ways = generator(0, "faults"), list(FAULTS.values())
    cells = [(number, name) for number in range(1, 11) for name in NAMES]
    chosen = [cells[i] for i in draw.permutation(len(cells))[:20]]
    fields = {"clients": 5, "rounds": 10, "quorum": 0.2}
    made, grid = coordinated(
        experiment("admm", **fields),
        {(name, "train", number): ways[i % len(ways)] for i, (number, name) in enumerate(chosen)},
    )
    schedule = ";".join(f"{number}:{name}" for number, name in chosen)
    reference, _ = coordinated(experiment("admm", **fields, dropout=schedule), {})
    assert len(grid.injected) == 20 == len(made.record.faults)
    assert [row["round"] for row in made.record.rounds] == list(range(1, 11))
    assert {(row["round"], row["client"]) for row in made.record.faults} == set(chosen)
    no_ledger = [
        [row for row in results(one.record) if not {"bytes", "bytes_up"} & {cell[0] for cell in row}]
        for one in (made, reference)
    ]
    assert len(no_ledger[0]) > 100 and no_ledger[0] == no_ledger[1]
    assert all(torch.equal(value, reference.record.shared[name]) for name, value in made.record.shared.items())


def test_the_ledger_counts_what_arrived_also_where_it_was_refused() -> None:
    made, _ = coordinated(
        experiment("fedper"), {("shop", "train", 1): FAULTS["extra"], ("shop", "train", 2): FAULTS["silence"]}
    )
    up = [row for row in made.record.ledger if row["client"] == "shop" and row["direction"] == "up"]
    refused = [row for row in up if row["parameter"] == "refused"]
    assert [row["round"] for row in refused] == [1] and int(refused[0]["bytes"]) > 1000
    assert not [row for row in up if row["round"] in (1, 2) and row["parameter"] == "item_table"]


class Quadratic(Node):
    """A client that solves its own quadratic exactly, with the state and the link of the real ones."""

    def __init__(self, p: Problem, i: int) -> None:
        super().__init__([])
        self.p, self.loss, self.name = p, p.losses[i], f"c{i}"
        x = {"x": torch.zeros(len(self.loss.centre), dtype=torch.float64)}
        self.start, self.mine = (
            Contribution(self.name, x, {"examples": p.p[i]}),
            State(Kept(0, {}, Link.start(x, p.rho))),
        )

    def answer(self, kind: str, content: RecordDict) -> RecordDict:
        """See Node."""
        if kind == "query.join":
            return contribution_record(self.start)
        if kind == "evaluate":
            return contribution_record(Contribution(self.name, {}, {f"{self.name}/x/score": 0.0}))
        broadcast = read_broadcast(content)
        state = self.mine.settled(broadcast.seen)
        z, link = broadcast.values, state.now.link
        assert link is not None
        h, c = self.loss.hessian, self.loss.centre
        system = h + self.p.rho * torch.eye(len(c), dtype=torch.float64)
        x = {"x": torch.linalg.solve(system, h @ c + self.p.rho * link.anchor(z)["x"])}
        increment, link = link.answer(x, z)
        self.mine = state.trained(Kept(broadcast.round, {}, link))
        told = {"loss": 0.0, "gap": norm(subtract(x, z)) ** 2}
        return contribution_record(Contribution(self.name, increment, told))


def coupled(p: Problem, rounds: int, coupling: Coupling, turnout: Turnout) -> Coordinator:
    """Return the coordinator after the rounds over Flower messages."""
    grid = InlineGrid([Quadratic(p, i) for i in range(len(p.losses))])
    plan = Plan(
        rounds=rounds,
        eval_every=rounds,
        patience=0,
        uniform=False,
        select=("score",),
        metrics=frozenset({"x/score"}),
        pooled=False,
        coupling=coupling,
        descent=Descent(),
        seed=turnout.seed,
        turnout=turnout,
    )
    made = Coordinator(grid, plan)
    made.fit(list(grid.get_node_ids()))
    return made


COUPLINGS: dict[str, dict[str, Any]] = {
    "mean": {},
    "clusters": {"groups": "c0,c1;c2,c3"},
    "mean-regularised": {"strength": 3.0},
    "sum": {"total": 1.0},
}


@pytest.mark.parametrize("name", list(COUPLINGS))
def test_with_dropouts_and_partial_participation_admm_reaches_the_same_optimum(name: str) -> None:
    p = problem("mean", 0, 4, 6, 10.0, True)
    tie = Coupling.model_validate({"kind": name, "rho": p.rho, "duals": True, **COUPLINGS[name]})
    operator = tie.operator(["c0", "c1", "c2", "c3"])
    best = replace(p, operator=operator).run(400)
    turnout = Turnout(participation=0.75, dropout="0.3;2:c0;3:c0;4:c0", quorum=0.0, seed=1)
    made = coupled(p, 150, tie, turnout)
    kinds = {row["kind"] for row in made.record.faults}
    assert kinds == {"dropout"} and len(made.record.faults) > 80
    assert apart([made.parts[f"c{i}"]["x"] for i in range(4)], best.z) < 1e-6
    assert float(best.z[0].norm()) > 0.1


def test_the_clients_of_a_round_are_those_of_solve() -> None:
    p, names, state = problem("mean", 0, 4, 6, 10.0, True), ["c0", "c1", "c2", "c3"], None
    turnout = Turnout(participation=0.5, seed=3)
    made = coupled(p, 6, Coupling(rho=p.rho, duals=True), turnout)
    for number in range(1, 7):
        before = p.start() if state is None else state.theta
        state = p.run(1, state, participation=0.5, seed=3, local_solver=lambda _, start: start + 1.0)
        moved = [name for name, a, b in zip(names, before, state.theta, strict=True) if not torch.equal(a, b)]
        told = [row["client"] for row in made.record.clients if row["round"] == number and row["split"] == "train"]
        assert moved == told == turnout.drawn(names, number) and len(told) == 2


def test_a_client_that_cannot_be_evaluated_has_no_value_and_no_part_in_the_choice() -> None:
    faults: dict[tuple[str, str, int], Change] = {("shop", "evaluate", n): FAULTS["raised"] for n in (3, 4)}
    e = experiment("fedper", rounds=4)
    whole, made = coordinated(e, {})[0].record, coordinated(e, faults)[0].record
    key = {"client": "shop", "split": "validation", "metric": "ndcg@10"}

    def shop(record: object, number: int) -> float:
        rows = [r for r in vars(record)["clients"] if r["round"] == number and all(r[k] == v for k, v in key.items())]
        return float(rows[0]["value"])

    assert math.isnan(shop(made, 3)) and math.isnan(shop(made, 4)) and shop(made, 2) == shop(whole, 2)
    assert [(f["round"], f["during"], f["kind"]) for f in made.faults][:2] == [
        (n, "validation", "error") for n in (3, 4)
    ]
    best = max(shop(whole, 1), shop(whole, 2))  # validation grows in both rounds: the last is the best
    assert best == shop(whole, 2)
    others = float(whole.rounds[2]["validation"]) * 3 - shop(whole, 3)
    assert float(made.rounds[2]["validation"]) == pytest.approx((others + best) / 3)
    for a, b in zip(whole.rounds, made.rounds, strict=True):
        assert a["objective"] == b["objective"]  # training does not notice


SCORES = [0.1, 0.4, 0.7]


def test_no_client_gains_by_being_away() -> None:
    """Whatever three clients score in three rounds, a round without one of them is no better than the best for it."""
    for case in range(300):
        g = generator(case, "scores")
        scores, best = Scores(), Score()
        for number in range(4):
            present = g.random(3) < (1.0 if number == 0 else 0.6)
            found = {(f"c{i}", "rank", "ndcg@10"): float(g.choice(SCORES)) for i in range(3) if present[i]}
            now = scores.judge(found, ["ndcg@10"], best, {})
            if best.values:
                for i in range(3):
                    if not present[i]:
                        assert now.values[f"c{i}"] <= best.values[f"c{i}"]
                gains = sum(now.values[f"c{i}"] - best.values[f"c{i}"] for i in range(3) if present[i])
                assert not now.beats(best) or gains > 0
            best = now if now.beats(best) else best


def test_a_client_that_is_away_still_breaks_its_budget() -> None:
    scores = Scores()
    first = scores.judge({("a", "rank", "hr@10"): 0.5, ("a", "all", "excess"): 0.2}, ["hr@10"], Score(), {})
    away = scores.judge({("b", "rank", "hr@10"): 0.9}, ["hr@10"], first, {})
    assert away.violation == 0.2 and away.values == {"a": 0.5, "b": 0.9}
    assert not away.beats(first)  # b was not known before, and is no reason to prefer the round


@pytest.mark.parametrize("how", ["nan", "silence", "raised"])
def test_the_best_state_is_kept_though_the_message_that_says_so_gets_no_answer(how: str) -> None:
    """Round 2 is the best so far. The clients hear it with round 3's training, whose answers are lost."""
    e = experiment("fedper", rounds=3, metrics=("ndcg@10",))
    faults: dict[tuple[str, str, int], Change] = {(name, "train", 3): FAULTS[how] for name in ("films", "shop")}
    faults |= {(name, "evaluate", 3): raised for name in ("films", "shop")}
    two = coordinated(e.model_copy(update={"rounds": 2}), {})
    three = coordinated(e.model_copy(update={"quorum": 0.0}), faults)
    selected = three[0].record.selected_round
    private = [[state_of(c).best.private for c in grid.nodes.values()] for _, grid in (two, three)]
    for a, b in list(zip(*private, strict=True))[:2]:
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert selected in (2, 3) and two[0].record.selected_round == 2


def test_late_answers_are_lost_and_the_others_are_not_touched() -> None:
    e = experiment("fedper", rounds=2)

    class Clock(FaultyGrid):
        """shop takes an hour, to tell by the clock."""

        def push_messages(self, messages):  # type: ignore[no-untyped-def]
            """See InlineGrid."""
            ids = list(super().push_messages(messages))
            slow = {n for n in ids if read_contribution(self.replies[n].content).client == "shop"}
            self.took = {n: 3600.0 if n in slow else 0.001 for n in ids}
            return ids

    grid = Clock(e, {})
    made = Coordinator(grid, replace(plan_of(e), turnout=Turnout(deadline=60.0)))
    made.fit(list(grid.get_node_ids()))
    assert {(f["client"], f["kind"], f["text"]) for f in made.record.faults} == {
        ("shop", "silence", "did not answer within 60 s")
    }
    assert {(f["round"], f["during"]) for f in made.record.faults} == {
        (n, d) for n in (1, 2) for d in ("train", "validation")
    }
    assert [row["clients"] for row in made.record.rounds] == [2, 2]
    assert made.seen == {"films": 2, "news": 2, "shop": 0}
    assert {r["client"] for r in made.record.clients if r["split"] == "test"} == {"films", "news", "shop"}


def test_a_round_may_pass_without_an_answer_if_the_quorum_is_zero() -> None:
    fields = {"rounds": 3, "dropout": "2:films,shop,news"}
    made, _ = coordinated(experiment("admm", **fields, quorum=0.0), {})
    row = made.record.rounds[1]
    assert (row["drawn"], row["clients"]) == (3, 0) and math.isnan(float(row["objective"]))
    assert float(made.record.rounds[2]["objective"]) < float(made.record.rounds[0]["objective"])
    with pytest.raises(
        ClientFailure, match=r"^round 2: 2 of 3 clients must answer, found 0 \(films, news, shop: dropped"
    ):
        coordinated(experiment("admm", **fields), {})


def test_a_coupling_that_names_an_excluded_client_fails_by_name() -> None:
    coupling = {"kind": "clusters", "groups": "films,shop", "rho": 1e-4, "duals": True}
    with pytest.raises(ClientFailure, match=r"^joining \(coupling.groups: .*'shop'\): .*\(shop: .*finite, found nan"):
        coordinated(experiment("fedper", coupling=coupling), {("shop", "query.join", 0): NAMED_NAN})


def named_nan(reply: Contribution, message: Message) -> Contribution:
    return replace(reply, values={**reply.values, "item_bias": torch.full_like(reply.values["item_bias"], math.nan)})


NAMED_NAN: Change = named_nan


def test_what_a_client_writes_is_one_printable_line() -> None:
    def loud(reply: Contribution, _: Message) -> Contribution:
        return replace(reply, metrics={"\x1b[31m\nfilms: all is well" + "x" * 999: 1.0})

    made, _ = coordinated(experiment("fedper", rounds=1), {("shop", "train", 1): loud})
    text = str(made.record.faults[0]["text"])
    assert text.isprintable() and len(text) <= 300


def test_faults_are_in_the_record_the_report_and_the_closing_lines(tmp_path: Path) -> None:
    from fedrec.report.page import write_report

    e = experiment("fedper", rounds=2, dropout="1:news")
    grid = FaultyGrid(e, {("shop", "train", 2): FAULTS["nan"], ("films", "evaluate", 2): FAULTS["raised"]}, tmp_path)
    record = Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids()))
    write_record(tmp_path, record, e.model_dump(mode="json"))
    found = pd.read_csv(tmp_path / "faults.csv")
    assert found[["round", "client", "kind"]].to_numpy().tolist()[:2] == [
        [1, "news", "dropout"],
        [2, "shop", "contract"],
    ]
    lines = "\n".join(notes(tmp_path))
    assert re.search(r"Answers refused: 1 time \(shop 1\).*every value must be finite, found nan", lines)
    assert "Dropped out, as the run asked for: 1 time (news 1)" in lines
    page = write_report(tmp_path).read_text()
    assert "Answers refused" in page and "every value must be finite" in page
    missing = record.selected_round == 2  # then the test of films is its faulty evaluation of that round
    assert ("Not tested" in lines) == missing
    assert table(tmp_path).row_count == 4


@pytest.mark.parametrize("text", ["0", "", "0.2", "3:films", "0.5;3:films,shop;3:news"])
def test_who_drops_out_is_drawn_by_seed_and_scheduled(text: str) -> None:
    turnout = Turnout(dropout=text, seed=5)
    lost = [turnout.lost(NAMES, number) for number in range(1, 401)]
    assert lost == [turnout.lost(NAMES, number) for number in range(1, 401)]
    fraction = np.mean([len(one) for i, one in enumerate(lost) if i != 2]) / 5
    probability = float(text.split(";")[0] or 0) if ":" not in text.split(";")[0] else 0.0
    assert fraction == pytest.approx(probability, abs=4 * math.sqrt(0.25 / 2000))
    if "films" in text:
        assert lost[2] >= ({"films", "shop", "news"} if "news" in text else {"films"})


@pytest.mark.parametrize(
    ("quorum", "asked", "needed"), [(0.5, 5, 3), (0.5, 2, 1), (0.6, 5, 3), (1.0, 7, 7), (0.0, 7, 0)]
)
def test_the_quorum_is_a_fraction_rounded_up(quorum: float, asked: int, needed: int) -> None:
    assert Turnout(quorum=quorum).needed(asked) == needed
