"""The strategy: one round of coordination, on the shared parameters alone."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedrec.experiment.records import Record, Row, to_row
from fedrec.federation.coordination import Residuals, normalise
from fedrec.federation.coordination.clauses import MEASURED
from fedrec.federation.proportion import refusals
from fedrec.params import Params
from fedrec.sharing import Broadcast, Contribution
from server.checkpoint import Checkpoints, put_back, take
from server.exchange import none_refused
from server.faults import Fault, Outcome
from server.joining import assess, follow, join
from server.scores import Best, Key, Score, average, objective, own_metrics
from server.secure import sum_up
from server.state import State
from server.totals import bid_farewell, require_changes, summed


@dataclass
class Coordinator(State):
    """Coordinates clients over a grid: each trains on its part of Z, and the tie makes a new Z of what they send."""

    on_round: Callable[[Row], None] = lambda row: None
    stop: Callable[[], bool] = lambda: False
    checkpoints: Checkpoints | None = None

    def fit(self, nodes: Sequence[int]) -> Record:
        """Run the rounds, select the best by validation, test it, and return the record."""
        started = time.perf_counter()
        join(self, nodes)
        number = self.resume()
        started -= self.record.seconds
        ended = number > 0 and self.ending(number)  # it may have come to its end
        while not ended:
            number += 1
            row = self.round(number)
            if self.plan.due(number):
                score = self.validate(number, row)
                self.stale += 1
                if self.plan.unselected or score.beats(self.best.score):
                    self.best, self.stale = self.candidate(number, score), 0
                    self.improved = set(self.carriers)
            follow(self, number)
            self.record.close(row)
            self.on_round(row)
            self.record.seconds = time.perf_counter() - started
            ended = self.ending(number)
            self.save(number, ended)
        if not self.best.round:  # interrupted before the first validation
            self.best = self.candidate(number, Score())
        self.record.shared, self.record.selected_round, self.parts = self.best.z, self.best.round, self.best.parts
        self.record.budgets, self.record.certificate = self.best.budgets(), self.best.certificate
        self.record.ties = self.best.ties
        self.record.summed = summed(self) if self.plan.by_sums and not self.plan.factors else None
        self.record.notes += self.buffer.notes() if self.buffer else []
        self.evaluate(self.best.round, "test")
        assess(self)
        self.record.seconds = time.perf_counter() - started
        return self.record

    def candidate(self, number: int, score: Score) -> Best:
        """Return a round as it may be the best."""
        verdicts = self.tie.verdict_rows(score.over)
        return Best(number, score, self.z, self.parts, dict(self.prices), self.tie.certificate(), verdicts)

    def round(self, number: int) -> Row:
        """Send the clients of a round their parts of Z, and tie what they send back."""
        started, clients = time.perf_counter(), list(self.carriers)
        drawn = (self.plan.release or self.plan.turnout).drawn(clients, number)
        if self.plan.begun:
            drawn = [name for name in clients if name in self.plan.begun.asked and not self.seen[name]]
        if self.buffer:
            drawn = self.begin(drawn)
        outcome = self.send("train", number, drawn, lost=self.plan.turnout.lost(clients, number))
        replies, residuals = outcome.replies, self.coordinate(outcome, number)
        self.seen |= {reply.client: number for reply in replies}
        if self.plan.begun:
            require_changes(self, outcome)
            bid_farewell(self)
        losses = {reply.client: reply.metrics["loss"] for reply in replies if "loss" in self.plan.told}
        told: list[str] = [name for name in ("loss", "mu") if name in self.plan.told]
        for reply in replies:
            metrics = {(reply.client, "all", name): reply.metrics[name] for name in told}
            if self.buffer and reply.client in self.buffer.ages:
                metrics[reply.client, "all", "staleness"] = float(self.buffer.ages[reply.client])
            self.record.score(number, "train", metrics, reply.device)
        if "mu" in told:
            self.prices |= {reply.client: reply.metrics["mu"] for reply in replies}
        return {
            "round": number,
            "seconds": time.perf_counter() - started,
            "drawn": len(drawn),
            "clients": len(replies),
            "train_loss": average(losses.values()),
            "objective": objective(losses, self.carriers),
            "primal_residual": residuals.primal,
            "dual_residual": residuals.dual,
            "rho": residuals.rho,
            **self.tie.columns(),
            **(self.buffer.row(reply.client for reply in replies) if self.buffer else {}),
        }

    def begin(self, drawn: Sequence[str]) -> list[str]:
        """Return the clients whose answers make the next round on the clock; each is sent what it began from."""
        assert self.buffer
        began = self.buffer.ask(drawn, self.parts, self.z)
        self.parts = {**self.parts, **began}  # those of the best round are another value
        return list(began)

    def coordinate(self, outcome: Outcome, number: int) -> Residuals:
        """Let the tie make a new Z of a round: of a mean that tells of no client, or of answers and sums."""
        inside = {name for part in outcome.subtotals for name in part.clients}
        replies = [reply for reply in outcome.replies if reply.client not in inside]
        change, residuals = outcome.change, Residuals(math.nan, math.nan, self.tie.rho)
        if self.plan.release:
            answers = {reply.client: reply.values for reply in replies}
            change = self.plan.release.change(number, answers, self.parts, self.carriers, self.z)
        self.tie.number = number
        self.prices |= self.tie.charge(self.scores.last.over)
        if change is not None:
            self.tie.move(change)
        elif outcome.replies:
            gaps = {reply.client: reply.metrics["gap"] for reply in replies} if self.plan.coupling.duals else {}
            residuals = self.tie.update(self.correct(replies), gaps, outcome.subtotals)
        self.parts = {name: self.tie.part(name) for name in self.carriers}
        return residuals

    def correct(self, replies: Sequence[Contribution]) -> dict[str, Params]:
        """Return what clients sent, what is old on the present Z; normalised under FedNova, after SCAFFOLD's c."""
        answers = {reply.client: reply.values for reply in replies}
        if self.buffer:
            answers = self.buffer.rebase(answers, self.parts, self.z)
        steps = {reply.client: reply.metrics["steps"] for reply in replies} if self.plan.drift.counted else {}
        if self.control:
            self.control.update(answers, self.parts, steps)
        if not self.plan.drift.normalise:
            return answers
        weights = {name: self.carriers[name].weight for name in answers}
        return normalise(answers, self.parts, steps, weights)

    def validate(self, number: int, row: Row) -> Score:
        """Let every client evaluate Z with its private parameters; return the score that selects the round."""
        started = time.perf_counter()
        measured = self.evaluate(number, "validation")
        losses = {(who, metric): value for (who, _, metric), value in measured.items() if metric in MEASURED}
        broken = self.tie.broken(losses)
        score = self.scores.judge(measured, self.plan.select, self.best.score, broken, self.plan.coupling.tolerance)
        row |= self.tie.columns(broken)
        row["validation"] = average(score.values.values())
        row["evaluate_seconds"] = time.perf_counter() - started
        if self.plan.budgets or broken:
            row["violation"] = score.violation
        return score

    def evaluate(self, number: int, split: str) -> dict[Key, float]:
        """Let every client evaluate what it is sent, and return what they measured.

        A test is of the round's Z with the private parameters of that round. What a client measured before and does
        not tell now is recorded as missing.
        """
        measured: dict[Key, float] = {}
        replies = {reply.client: reply for reply in self.send("evaluate", number, list(self.carriers), split).replies}
        for name in self.carriers:
            reply = replies.get(name)
            if reply is None:
                self.record.score(number, split, dict.fromkeys(self.scores.keys.get(name, ()), math.nan), "")
                continue
            metrics = own_metrics(reply, self.plan.pooled)
            self.scores.keys[name] = tuple(key for key in metrics if key[2] not in ("excess", *MEASURED))
            self.record.score(number, split, metrics, reply.device)
            measured |= metrics
        return measured

    def save(self, number: int, last: bool) -> None:
        """Write a checkpoint after a round that is to have one, and after the last one."""
        if self.checkpoints and (last or self.checkpoints.due(number)):
            snapshot = take(self, number, self.saved)
            self.checkpoints.save(snapshot)
            self.saved = {name: self.saved.get(name, 0) + len(rows) for name, rows in snapshot.record.items()}
            self.saved["clients"] = len(self.record.clients)

    def resume(self) -> int:
        """Go back to the checkpoint that there may be; return its round, 0 without one."""
        if not self.checkpoints or not self.checkpoints.found:
            return 0
        point = self.checkpoints.found
        put_back(self, point.snapshot)
        self.saved = {name: len(rows) for name, rows in point.snapshot.record.items()}
        self.saved["clients"] = len(self.record.clients)
        self.record.resumed += point.refused
        self.checkpoints.go_on(point)
        if self.plan.begun:
            bid_farewell(self)
        return point.snapshot.round

    def ending(self, number: int) -> bool:
        """Return whether a round is the last, and note why if more were asked for."""
        patient = bool(self.plan.patience) and self.stale >= self.plan.patience
        last = number >= self.plan.rounds
        self.record.stopped = "patience" if patient else "interrupted" if self.stop() and not last else ""
        return last or bool(self.record.stopped)

    def send(
        self,
        kind: str,
        number: int,
        clients: Sequence[str],
        split: str = "validation",
        lost: frozenset[str] = frozenset(),
    ) -> Outcome:
        """Send clients their parts of Z, and whether to keep the state they evaluated last; return what counts."""
        train, plan = kind == "train", self.plan
        if not clients:
            return Outcome()
        control = {name: self.control.part(name) for name in clients} if self.control and train else {}
        cache: dict[tuple[int, bool, int, int], Broadcast] = {}  # what many clients are sent alike is one object
        broadcasts = {}
        for name in clients:
            part, keep, c = self.parts[name], name in self.improved, control.get(name)
            key = (id(part), keep, self.seen[name], id(c))
            if key not in cache:
                cache[key] = Broadcast(number, part, keep, split, self.tie.rho, self.seen[name], c)
            broadcasts[name] = cache[key]
        if train and plan.secure:
            outcome = sum_up(self, plan.secure, number, broadcasts, lost)
        else:
            outcome = self.exchange.send(
                kind,
                broadcasts,
                {name: self.carriers[name].like for name in clients} if train else {},
                plan.told if train else plan.metrics,
                lambda reply: plan.check(reply, train),
                lost,
                0.0 if split == "test" else plan.turnout.deadline,
                self.carriers if train and self.summed else {},
                self.beside if train and not plan.release else none_refused,
            )
        replies = self.accept(outcome, len(clients), f"round {number}" if train else f"{split} of round {number}")
        # A client whose answer is missing may not have heard: it is told again, and goes back to that state by itself.
        self.improved -= {reply.client for reply in replies}
        if train and len(replies) < plan.robust.needed:
            text = f"{plan.robust.kind} promises nothing under {plan.robust.needed} answers, found {len(replies)}"
            self.record.faults.append(to_row(Fault(number, "", kind, "guarantee", text)))
        return outcome

    def beside(self, answers: Mapping[str, Contribution]) -> Mapping[str, str]:
        """Return what is wrong with answers to a training round, beside those of the others.

        Where the server adds noise for the clients' privacy this is not asked: the answer of one would decide whether
        another counts, and the clip is what bounds each.
        """
        values = {name: reply.values for name, reply in answers.items() if reply.values}
        metrics: dict[str, dict[str, float]] = {
            what: {name: reply.metrics[what] for name, reply in answers.items()}
            for what in ("steps", "gap")
            if what in self.plan.told
        }
        return refusals(values, self.parts, self.plan.coupling.duals or self.plan.by_sums, metrics)

    @property
    def summed(self) -> bool:
        """Whether a round needs no more than sums of what the clients send."""
        plan = self.plan
        single = self.control or plan.drift.normalise or plan.release or plan.codec.active or plan.asynchrony.buffer
        return self.tie.additive and not single
