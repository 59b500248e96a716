"""One cluster with two nodes, each with a (pretended) GPU, and the operator in it as users install it.

The cluster is hack/cluster's, number GPUBATCH_CLUSTER_ID. It is left as it was found; KEEP=1 leaves all as it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack

import pytest
from obstore.store import S3Store

from demo_lib import tools
from demo_lib.console import Console
from localcluster.settings import current
from localcluster.shell import lock
from support.api import Api
from support.installation import Installation, describe

Say = Callable[[str], None]
FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Let fixtures know whether their test failed."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Say:
    """Prints at once, past pytest's capture: nobody should think that it hangs."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def print_now(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"    {text}", flush=True)

    return print_now


@pytest.fixture(scope="session")
def installation(request: pytest.FixtureRequest) -> Iterator[Installation]:
    """The cluster with the operator in it."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    keep = os.environ.get("KEEP", "") not in ("", "0")
    with ExitStack() as held:
        with capture.global_and_fixture_disabled():
            # Two runs on one cluster would take each other's jobs away.
            held.enter_context(lock(current().lock.with_suffix(".tests")))
            console = Console()
            console.heading("A cluster with two nodes, and the project's images on them")
            was_up = tools.cluster_is_up()
            found = Installation(tools.cluster_up(), tools.load_images("training", "transcription"), console)
            console.heading("The operator by Helm, an S3 server, a receiver of webhooks")
            found.remove()
            found.install()
            console.heading("The tests")
        yield found
        if keep:
            return
        with capture.global_and_fixture_disabled():
            console.heading("Cleaning up")
            found.remove()
            if not was_up:
                tools.cluster_down()


@pytest.fixture(scope="session")
def image(installation: Installation) -> str:
    """An image with Python, which the nodes hold."""
    return installation.images["runner"]


@pytest.fixture
def bucket(installation: Installation) -> Iterator[S3Store]:
    """The jobs' bucket."""
    with installation.bucket() as store:
        yield store


@pytest.fixture
async def api(installation: Installation, request: pytest.FixtureRequest, say: Say) -> AsyncIterator[Api]:
    """The jobs' namespace, empty of jobs before and after."""
    start = time.monotonic()
    say(request.node.name)
    async with installation.queue() as api:
        yield api
        if request.node.stash.get(FAILED, False):
            describe(installation.kube, say)
        say(f"{time.monotonic() - start:.0f} s")
