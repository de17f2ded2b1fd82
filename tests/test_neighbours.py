"""Other users of the machine: what a run listens on, and who may use it. See also test_superlink.py."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from simulations.sockets import private_folder, ray_token

HOST = """
import ray, subprocess, sys, os
ray.init(num_cpus=1, log_to_driver=False, logging_level=50)
own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")} | {"HOME": sys.argv[1]}
other = sys.argv[2] % ray.get_runtime_context().gcs_address
print(subprocess.run([sys.executable, "-c", other], env=own, capture_output=True, text=True, timeout=120).stdout)
"""
OTHER = """
import ray
try:
    ray.init(address=%r, logging_level=50)
    print("joined")
except ConnectionError:
    print("refused")
"""


@pytest.mark.soak
@pytest.mark.parametrize(("token", "expected"), [({}, "joined"), (ray_token(), "refused")])
def test_only_who_has_the_token_can_use_a_ray_of_ours(
    token: dict[str, str], expected: str, tmp_path: Path, tries: Callable[[int, int], int]
) -> None:
    tries(0, 1)
    pytest.importorskip("ray")
    environment = {**os.environ, **token}
    command = [sys.executable, "-c", HOST, str(tmp_path), OTHER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.stdout.strip() == expected


def test_the_folder_of_a_socket_is_of_this_user_alone_and_its_path_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = tmp_path / ("x" * 100)
    far.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(far))
    with private_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700 and folder.stat().st_uid == os.getuid()
        assert len(str(folder / "socket")) < 100
    assert not folder.exists()
