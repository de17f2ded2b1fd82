"""Flower over a Unix socket in a folder that only this user may enter, instead of a port that everybody may.

Who reaches the port of a SuperLink can register a node, pull and push messages, and submit a run, which is code that is
executed as the user whose SuperLink it is. Flower 1.41 can be told who its nodes are, but not who may submit a run or
take the task of one. It serves and speaks plain HTTP, for which a socket does as well; this needs two parts of it that
are not public.
"""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NOWHERE = "127.0.0.1:9"  # the address that Flower is given, at which nobody listens
LONGEST = 90  # bytes of the folder's path: a socket's may have 103, on some systems 107
SOCKET = "FEDREC_SOCKET"  # environment variable: the socket that Flower's commands use


@contextmanager
def private_folder() -> Iterator[Path]:
    """Create a folder of mode 700 in which a socket can lie; it goes with the context."""
    usual = tempfile.gettempdir()
    place = usual if len(os.fsencode(usual)) < LONGEST - 20 else "/tmp"
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


@contextmanager
def speaking(socket: str) -> Iterator[None]:
    """Let Flower's clients that are made in this context speak over a socket, whatever address they are given."""
    import httpx
    from flwr.supercore.protobuf.client import ProtobufClient

    kind: Any = ProtobufClient  # whose method is replaced
    usual = kind.__init__

    def begin(self: Any, *args: Any, **kwargs: Any) -> None:
        usual(self, *args, **kwargs)
        timeout = self._client.timeout
        self._client.close()
        self._client = httpx.Client(transport=httpx.HTTPTransport(uds=socket), timeout=timeout)

    kind.__init__ = begin
    try:
        yield
    finally:
        kind.__init__ = usual


@contextmanager
def listening(socket: str) -> Iterator[None]:
    """Let a SuperLink that is started in this context listen on a socket alone."""
    import uvicorn

    usual = uvicorn.run
    vars(uvicorn)["run"] = lambda app, **settings: usual(app, **{**settings, "uds": socket})
    try:
        yield
    finally:
        vars(uvicorn)["run"] = usual


def ray_token() -> dict[str, str]:
    """Return the environment in which only processes with a token, drawn here, may use the Ray that they start.

    It listens on the address of this machine, where others could let it run code of theirs.
    """
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def write_commands(folder: Path, python: str, names: list[str]) -> None:
    """Write Flower's commands into a folder such that, found there by their names, they use the socket too."""
    folder.mkdir()
    code = "import sys; from simulations.processes import run_command; run_command(sys.argv[1:])"
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\nexec '{python}' -c '{code}' {name} \"$@\"\n")
        (folder / name).chmod(0o700)
