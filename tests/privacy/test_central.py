"""Client-level privacy: what one client can move, what cannot get past the clip, and what the noise covers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.errors import UserError
from fedrec.keyed import Carrier, carrier, catalogue
from fedrec.params import Params, norm, subtract
from fedrec.privacy.central import clipped, noisy, noisy_mean
from fedrec.privacy.noise import Source
from fedrec.privacy.secret import Secret, digest, stream
from tests.builders import interactions

CLIP = 0.5


def tables(seed: int, ids: list[int], scale: float = 1.0) -> Params:
    draw = torch.from_numpy(np.random.default_rng(seed).normal(0, scale, (len(ids), 3)).astype(np.float32))
    return {"item_table": draw, "body.0.bias": torch.full((2,), float(seed) * scale)}


def carriers(rows: dict[str, list[int]]) -> dict[str, Carrier]:
    ids = {name: {"item": np.asarray(one)} for name, one in rows.items()}
    server = catalogue(list(ids.values()))
    return {name: carrier(name, tables(0, one), ids[name], server, 1.0) for name, one in rows.items()}


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-6, 1e6))
@settings(max_examples=40, deadline=None)
def test_an_update_is_never_longer_than_the_clip_and_a_short_one_stays(seed: int, scale: float) -> None:
    z, x = tables(seed, [0, 1, 2]), tables(seed + 1, [0, 1, 2], scale)
    change, plain = clipped(x, z, CLIP), norm(subtract({n: v.double() for n, v in x.items()}, z))
    assert norm(change) <= CLIP * (1 + 1e-12)
    assert math.isclose(norm(change), min(plain, CLIP), rel_tol=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_what_is_not_finite_counts_as_nothing_and_what_is_huge_is_clipped(value: float) -> None:
    z = tables(1, [0, 1])
    x = {name: tensor.clone() for name, tensor in z.items()}
    x["item_table"][1, 1] = value
    size = norm(clipped(x, z, CLIP))
    assert size == 0.0 if not math.isfinite(value) else math.isclose(size, CLIP, rel_tol=1e-9)


def test_zero_and_whole_numbers_are_updates_like_others() -> None:
    z = {"count": torch.zeros(3, dtype=torch.int64), "body": torch.ones(2)}
    assert norm(clipped(z, z, CLIP)) == 0.0
    x = {"count": torch.tensor([3, 0, 4]), "body": torch.ones(2)}
    found = clipped(x, z, CLIP)
    assert found["count"].tolist() == pytest.approx([0.3, 0.0, 0.4]) and norm(found) == pytest.approx(CLIP)


@given(seed=st.integers(0, 10**6), rate=st.sampled_from([0.25, 1.0]))
@settings(max_examples=20, deadline=None)
def test_one_client_moves_the_released_mean_by_no_more_than_its_clip_over_the_public_number(
    seed: int, rate: float
) -> None:
    # Under one noise: of n clients that carry all rows, leaving one out moves the mean by at most C / (rate n).
    who = carriers({name: [0, 1, 2, 3] for name in "abcde"})
    z = tables(seed, [0, 1, 2, 3])
    changes = {name: clipped(tables(seed + k + 1, [0, 1, 2, 3], 100.0), z, CLIP) for k, name in enumerate(who)}
    with_a, without = (
        noisy_mean(one, who, z, 0.3, rate, Source.replayable(seed))
        for one in (changes, {name: value for name, value in changes.items() if name != "a"})
    )
    assert norm(subtract(with_a, without)) <= CLIP / (rate * 5) * (1 + 1e-6)


def test_each_row_is_divided_by_the_clients_that_carry_it_whoever_answers() -> None:
    who = carriers({"a": [0, 1], "b": [1, 2]})
    like = {"item_table": torch.zeros(3, 3), "body.0.bias": torch.zeros(2)}
    change = {"item_table": torch.ones(2, 3), "body.0.bias": torch.ones(2)}
    found = noisy_mean({"a": change}, who, like, 0.0, 0.5, Source.replayable(0))
    # Row 0 has one carrier, row 1 two, row 2 only b, who did not answer; divided by rate x carriers.
    assert found["item_table"][:, 0].tolist() == [2.0, 1.0, 0.0] and found["body.0.bias"].tolist() == [1.0, 1.0]


def test_noise_covers_every_coordinate_also_without_any_client() -> None:
    like = {"item_table": torch.zeros(400, 3), "body.0.bias": torch.zeros(2)}
    who = carriers({"a": list(range(400)), "b": list(range(400))})
    found = noisy_mean({}, who, like, 3.0, 1.0, Source.replayable(7))
    assert all(bool((value != 0).all()) for value in found.values())
    assert float(found["item_table"].std()) == pytest.approx(3.0 / 2, rel=4.5 / math.sqrt(2 * 1200))
    sent = noisy({"item_table": torch.zeros(400, 3)}, like, 3.0, Source.replayable(8))["item_table"]
    assert sent.dtype == torch.float32 and float(sent.std()) == pytest.approx(3.0, rel=4.5 / math.sqrt(2 * 1200))


def test_a_digest_tells_apart_what_differs_anywhere() -> None:
    a, b = interactions([(0, 1), (1, 2)]), interactions([(0, 1), (1, 3)])
    parts = [
        digest(1, {"w": torch.zeros(2)}),
        digest(2, {"w": torch.zeros(2)}),
        digest(1, {"w": torch.zeros(2, 1)}),
        digest(1, {"w": torch.zeros(2).double()}),
        digest(1, {"v": torch.zeros(2)}),
        digest(1, {"w": torch.tensor([0.0, 1.0])}),
        digest("1", {"w": torch.zeros(2)}),
        digest({"w": torch.zeros(2)}, 1),
        digest(1, a),
        digest(1, b),
        digest("ab", "c"),
        digest("a", "bc"),
    ]
    assert len(set(parts)) == len(parts)
    assert digest(1, a) == digest(1, interactions([(0, 1), (1, 2)]))


def test_a_secret_is_made_once_is_its_owners_alone_and_is_forgotten_for_good(tmp_path: Path) -> None:
    secret = Secret(tmp_path / "deep" / "films.secret")
    key = secret.key()
    assert len(key) == 32 and secret.key() == key and secret.path.stat().st_mode & 0o777 == 0o600
    secret.forget()
    secret.forget()
    with pytest.raises(UserError, match=r"must not go on after its final test, .* found films.forgotten"):
        Secret(secret.path).key()
    assert not secret.path.exists()


def test_noise_and_its_name_are_functions_of_the_key_and_the_inputs(tmp_path: Path) -> None:
    made = [stream(bytes([key]) * 32, inputs) for key, inputs in ((1, b"a"), (1, b"a"), (1, b"b"), (2, b"a"))]
    names, noises = [name for name, _ in made], [source.bytes(16) for _, source in made]
    assert names[0] == names[1] and len(set(names)) == 3
    assert noises[0] == noises[1] and len(set(noises)) == 3
    assert made[0][1].private
    assert not {name[:32] for name in names} & {noise.hex() for noise in noises}
