"""How long and how much memory it takes to read a large file: `make soak ARGS="-s -k twenty_five_million"`."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import csv

from fedrec.distinct import distinct

READ = """
import resource, time
from fedrec.experiment.holdings import dataset
from simulations.cli import parse
start = time.process_time()
given = ["--dataset", "table", "--data-dir", "t.csv", "--columns", "user=userId,item=movieId,time=timestamp"]
data = dataset(parse(given).experiment)
print(len(data.interactions), time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


@pytest.mark.soak
def test_twenty_five_million_rows_are_read_in_a_minute_and_three_gigabytes(
    tmp_path: Path, tries: Callable[[int, int], int]
) -> None:
    """As MovieLens 25M has them: a CSV of users, films, ratings and times, sorted by user, read by a process anew."""
    millions, rows = tries(0, 25), 1_000_000
    rng, pairs = np.random.default_rng(0), 0
    kinds = {"userId": pa.int64(), "movieId": pa.int64(), "rating": pa.float64(), "timestamp": pa.int64()}
    with csv.CSVWriter(tmp_path / "t.csv", pa.schema(list(kinds.items()))) as file:
        for number in range(millions):
            user = np.sort(rng.integers(number * 6_500, (number + 1) * 6_500, rows))
            item = (rng.pareto(1.0, rows) * 300).astype(np.int64) % 60_000
            pairs += len(distinct(user * 60_000 + item))
            columns = [user, item, rng.integers(1, 11, rows) / 2, rng.integers(8 * 10**8, 15 * 10**8, rows)]
            file.write_table(pa.table(dict(zip(kinds, columns, strict=True))))
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for _ in range(2):  # parsed, then mapped
        made = subprocess.run([sys.executable, "-c", READ], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        found, seconds, gigabytes = map(float, made.stdout.split())
        print(f"{found:,.0f} interactions: {seconds:.1f} s of a core, {gigabytes:.2f} GB")
        assert found == pairs and seconds < 60 and gigabytes < 3
