"""The study of cold items on small markets: what is compared, and what knows nothing of a new item."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fedrec.errors import UserError
from fedrec.evaluation.scorers import Scorer
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, item_content
from fedrec.rng import generator
from simulations.studies.__main__ import main
from simulations.studies.cold import ARMS, IDS, NEW, baselines, chance, chosen, experiment_of, liked, measured, parts
from simulations.studies.tables import records

MARKET = ["--market.users", "60", "--market.items", "150", "--market.impressions", "40"]
SMALL = [*MARKET, "--rounds", "2", "--dim", "4", "--clients", "2", "--fractions", "0.1,0.2"]


def small(split: str = "new-items") -> Experiment:
    return experiment_of(IDS, split, 0, SMALL)


class Noise:
    """Scores everything at random, anew in every call."""

    def __init__(self) -> None:
        self.rng = generator(0, "noise")

    def score_all(self, task: str, user: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.rng.random((len(user), 150)))

    def score(self, task: str, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        return self.rng.random(len(user)).astype(np.float32)

    def attribute(self, task: str, item: np.ndarray) -> np.ndarray:
        return self.rng.random((len(item), 1)).astype(np.float32)


def test_chance_is_what_noise_reaches() -> None:
    e = small()
    noise: dict[str, Scorer] = {data.name: Noise() for data in clients_data(e)}
    found = [measured(e, noise)[NEW] for _ in range(60)]
    expected = float(np.mean([chance(data) for data in clients_data(e)]))
    assert np.mean(found) == pytest.approx(expected, abs=4 * float(np.std(found)) / 60**0.5)


def test_chance_by_hand() -> None:
    # One user, its only relevant item among 3 new ones: (1 + 1/log2(3) + 1/log2(4)) / 3.
    data = clients_data(small())[0]
    test = data.test.take(np.flatnonzero(data.test.positive)[:1])
    three = np.zeros(len(data.items), np.bool_)
    three[[int(test.item[0]), *np.delete(np.arange(len(three)), test.item[0])[:2]]] = True
    assert chance(replace(data, test=test, new=(~three, three))) == pytest.approx((1 + 1 / np.log2(3) + 0.5) / 3)


def test_what_new_items_words_say_comes_from_known_items_alone() -> None:
    e = experiment_of("hashed words", "new-items", 0, SMALL)
    scorer, content = liked(e), item_content(e)[0]
    assert content is not None
    data = clients_data(e)[0]
    met, c = data.offered("train"), content.double().numpy()
    counts = [np.bincount(d.train.item[d.train.positive], minlength=150) for d in clients_data(e)]
    count = np.sum(counts, axis=0)
    y = np.log1p(count[met])
    # The gradient of |C w - y + mean|^2 + |w|^2 is 0 at w; C w = s, so C'(s - y + mean) = -w, and C C'(...) = -s.
    s = scorer.tables["rank"].astype(np.float64)
    left = c @ (c[met].T @ (s[met] - (y - y.mean())))
    assert left == pytest.approx(-s, abs=1e-3)
    assert s.std() > 0.01


def test_popularity_of_what_nobody_has_met_is_below_chance() -> None:
    found = baselines(experiment_of("popularity", "new-items", 0, SMALL))
    assert found["popularity", NEW] < found["chance", NEW]


def test_the_study_pairs_every_arm_with_ids_alone(tmp_path: Path) -> None:
    out = tmp_path / "study"
    flags = ["--seeds", "2", "--workers", "1", "--arms", "hashed words; hashed words, ids hidden", "--out", str(out)]
    assert main(["cold", *flags, *SMALL]) == 0
    results, table = pd.read_csv(out / "results.csv"), pd.read_csv(out / "summary.csv")
    assert len(parts(records(table))) == 3
    for row in table.to_dict("records"):
        mine = results[(results["measure"] == row["measure"])].pivot_table(index="seed", columns="arm", values="value")
        assert row["mean"] == pytest.approx(mine[row["arm"]].mean())
        assert row["minus_ids"] == pytest.approx((mine[row["arm"]] - mine[IDS]).mean())
    assert "hashed words, ids hidden" in (out / "report.html").read_text()


def test_arms_are_chosen_by_name() -> None:
    assert chosen("hashed words") == [IDS, "hashed words"]
    assert set(chosen("")) <= set(ARMS)
    with pytest.raises(UserError, match="arms: must be one of"):
        chosen("hashd words")


@pytest.mark.parametrize("flags", [["--seeds", "0"], ["--splits", "newitems"], ["--rounds", "0"]])
def test_a_wrong_option_ends_with_one_line(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cold", *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1
