import ast
import inspect
from pathlib import Path

import pytest

import fedrec.privacy.attacks as package
from fedrec.privacy.attacks.scores import judge
from fedrec.privacy.attacks.table import ATTACKS, Attack
from tests.privacy.attacked import SILOS, STEP, USERS, attacked, market, noise, noised

# What an adversary may be declared to know. `attributes` are of the users in `known`, `records` are asked about.
KNOWLEDGE = {
    "transcript", "one", "records", "experiment", "recipe", "tasks", "client", "clients", "users", "user", "held",
    "pool", "population", "prior", "offset", "known", "attributes", "vectors", "size", "shadows", "ridge", "keep",
    "seed", "rounds",
}  # fmt: skip
FAMILIES = ("recovery", "ratings", "membership", "lira", "imia", "inversion", "attributes")
RUNS = {
    ("silos", "rating"): market(**SILOS, task="rating"),
    ("silos", "rank"): market(**SILOS, task="rank"),
    ("one-user", "rating"): market(**{**USERS, **STEP, "clients": 100}, task="rating"),
    ("one-user", "rank"): market(**{**USERS, "clients": 100}, task="rank"),
}
CASES = [(attack, run) for attack in ATTACKS for run in RUNS if run[0] == attack.clients and run[1] in attack.tasks]


def named(case: tuple[Attack, tuple[str, str]]) -> str:
    return f"{case[0].name}, {case[1][1]}"


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_takes_a_transcript_and_declared_knowledge_alone(attack: Attack) -> None:
    first, *rest = inspect.signature(attack.run).parameters
    assert first == "transcript"
    assert set(rest) <= KNOWLEDGE


@pytest.mark.parametrize("family", FAMILIES)
def test_no_function_that_reads_a_transcript_takes_the_truth(family: str) -> None:
    path = Path(package.__file__).parent / f"{family}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert not {"truth", "labels", "case", "parts"} & set(arguments), node.name
            if arguments[:1] in (["transcript"], ["one"]) and not node.name.startswith("_") and node.name != "shadow":
                found += 1
                assert set(arguments) <= KNOWLEDGE | {"name", "x"}, node.name
    assert found
    assert "truth" not in {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert not any(isinstance(n, ast.ImportFrom) and "judge" in {a.name for a in n.names} for n in ast.walk(tree))


def test_every_family_is_in_the_table() -> None:
    modules = {inspect.getmodule(attack.run) for attack in ATTACKS}
    assert {module.__name__.rsplit(".", 1)[-1] for module in modules if module} == set(FAMILIES)
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_what_is_asked_is_what_an_attack_declares(case: tuple[Attack, tuple[str, str]]) -> None:
    attack, run = case
    _, about = attacked(RUNS[run])
    assert attack.fits(about)
    question = attack.ask(about)
    parameters = list(inspect.signature(attack.run).parameters.values())[1:]
    assert question.known.keys() <= {p.name for p in parameters}
    assert {p.name for p in parameters if p.default is p.empty} <= question.known.keys()
    assert ("held" in question.known) != attack.released


@pytest.mark.parametrize("case", [one for one in CASES if "user vectors" not in one[0].name], ids=named)
def test_noise_tells_nothing(case: tuple[Attack, tuple[str, str]]) -> None:
    # Each of 5 transcripts of noise falls outside a band of 95 % by chance with 5 %; three of them with 0.1 %.
    attack, run = case
    seen, about = attacked(RUNS[run])
    question = attack.ask(about)
    missed = 0
    for seed in range(5):
        known = dict(question.known)
        if "held" in known:  # what a client keeps is not noise: an insider's own part is taken away
            known["held"] = {n: type(one)(one.users, noised(one.private, seed)) for n, one in known["held"].items()}
        scores = attack.run(noise(seen.transcript, seed), **known)
        missed += not judge(scores, question.truth, groups=question.groups).chance
    assert missed <= 2
