"""The command line against a server that answers as an API server would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpubatch_cli.__main__ import main
from unit.cli.fakeapi import FakeApi, serving


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    """The server, and a kubeconfig that leads to it."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with serving() as fake:
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
        yield fake


@dataclass
class Told:
    """What a command left."""

    code: int
    out: str
    err: str


Run = Callable[..., Told]


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line in this process."""
    monkeypatch.setattr("sys.argv", ["gpubatch"])

    def call(*arguments: str) -> Told:
        capfdbinary.readouterr()
        code = main(list(arguments))
        told = capfdbinary.readouterr()
        return Told(code, told.out.decode(), told.err.decode())

    return call
