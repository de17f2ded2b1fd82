"""No number moves unseen: small experiments come to what is kept in `tests/golden`; see `tests.golden.record`."""

import json

import pytest

from tests.golden.record import EXPERIMENTS, KEPT, LIMITS, moved, outcome

VALUES: dict[str, dict[str, float]] = json.loads(KEPT.read_text())


def test_every_experiment_is_kept_and_no_other() -> None:
    assert VALUES.keys() == EXPERIMENTS.keys()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_comes_to_what_is_kept(name: str) -> None:
    assert not moved(VALUES[name], outcome(EXPERIMENTS[name]))


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_number_that_moves_is_seen(name: str, kind: str) -> None:
    kept = VALUES[name]
    key = max((key for key in kept if key.startswith(f"{kind}/")), key=lambda key: abs(kept[key]))
    scale = {"metric": 1.0, "sum": kept["norm/" + key.partition("/")[2]] if kind == "sum" else 1.0}
    step = 2 * LIMITS[kind] * scale.get(kind, abs(kept[key]))
    assert not moved(kept, kept)
    for other in (kept[key] + step, kept[key] - step, float("nan")):
        (line,) = moved(kept, {**kept, key: other})
        assert line.startswith(f"{key}: must be ")
    assert moved(kept, {k: v for k, v in kept.items() if k != key}) == [f"{key}: must be in both"]
