"""Object storage from this machine: inputs up, results down, by the library that the runner uses."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import obstore

from gpubatch_cli.api import Api
from gpubatch_cli.console import Advance, bar
from gpubatch_cli.errors import CliError, Exit, Forbidden, NotFound, WrongUse
from gpubatch_runner.contract import Storage as Place
from gpubatch_runner.contract import Upload
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import InputNotFound, RunnerError
from gpubatch_runner.locations import BUCKETS, INPUT_FIELD, OUTPUT_FIELD, Location, parse
from gpubatch_runner.objectstore import CREDENTIALS, open_bucket, told

JSON = dict[str, Any]
PART = 8 * 1024 * 1024
PARTS_IN_FLIGHT = 4
LIMITS = Upload(total_seconds=24 * 3600, read_seconds=120)
KEYS = {"s3": "AWS_ACCESS_KEY_ID", "gs": "GOOGLE_SERVICE_ACCOUNT_KEY", "az": "AZURE_STORAGE_ACCOUNT_NAME"}
OTHERS = {
    "s3": ("AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH"),
    "az": ("AZURE_CLIENT_ID", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_ACCOUNT_KEY"),
}
"""Other variables by which an environment brings credentials of its own."""


@dataclass(frozen=True)
class Storage:
    """A store, and whose keys open it."""

    endpoint: str | None = None
    region: str | None = None
    secret: str | None = None

    @classmethod
    def of_job(cls, storage: JSON, endpoint: str | None = None) -> Storage:
        """As spec.inference.storage says; `endpoint` where this machine reaches it elsewhere."""
        return cls(endpoint or storage.get("endpoint"), storage.get("region"), storage.get("secretName"))

    def take_keys(self, api: Api, namespace: str, url: str) -> None:
        """Into this process' environment, out of the job's Secret, if the environment has none.

        Raises:
            CliError: The Secret may not be read, or isn't there.
        """
        scheme = url.partition("://")[0]
        if scheme not in BUCKETS or not self.secret:
            return
        if any(os.environ.get(name) for name in (KEYS[scheme], *OTHERS[scheme])):
            return
        advice = f"Set {KEYS[scheme]} and what belongs to it in your environment."
        try:
            data = api.get(f"/api/v1/namespaces/{namespace}/secrets/{self.secret}").get("data") or {}
        except Forbidden as error:
            raise CliError(f"no keys for {url}: the environment has none, and {error.text}", advice) from None
        except NotFound:
            raise CliError(
                f"there is no Secret {self.secret!r} in namespace {namespace!r}, which the job names for its storage",
                "kubectl create secret generic NAME --from-literal=AWS_ACCESS_KEY_ID=... "
                "--from-literal=AWS_SECRET_ACCESS_KEY=...",
            ) from None
        for name in CREDENTIALS[scheme]:
            if name in data:
                os.environ[name] = base64.b64decode(data[name]).decode().strip()

    # --- up

    def upload(self, file: Path, url: str) -> None:
        """Puts a file, whole or not at all, with a bar.

        Raises:
            CliError: The store refuses or isn't reached.
        """
        location = _location(url, INPUT_FIELD)
        size = file.stat().st_size
        with _troubles(self), bar(f"uploading {file.name}", size) as advance:
            asyncio.run(self._put(file, size, location, advance))

    async def _put(self, file: Path, size: int, location: Location, advance: Advance) -> None:
        with told(location):
            bucket = open_bucket(location, self._place, LIMITS, Environment())
            if size < PART:
                await obstore.put_async(
                    bucket, location.path, await asyncio.to_thread(file.read_bytes), use_multipart=False
                )
                advance(size)
                return
            await obstore.put_async(
                bucket, location.path, _pieces(file, advance), chunk_size=PART, max_concurrency=PARTS_IN_FLIGHT
            )

    # --- down

    def fetch(self, url: str, path: Path) -> bool:
        """Gets a file, whole or not at all; False if there is none.

        Raises:
            CliError: It can't be read from here, or not be written.
        """
        partial = path.with_name(f".{path.name}.part")
        try:
            with partial.open("wb") as file:
                self.download(url, file)
            partial.replace(path)
        except NotFound:
            return False
        except OSError as error:
            raise WrongUse(f"{path}: {error.strerror}", "Name another folder, or free space.") from None
        finally:
            partial.unlink(missing_ok=True)
        return True

    def download(self, url: str, file: IO[bytes]) -> None:
        """Writes what is at a URL into a file, with a bar.

        Raises:
            NotFound: Nothing is there.
            CliError: It can't be read from here.
        """
        location = _location(url, OUTPUT_FIELD)
        with _troubles(self):
            asyncio.run(self._get(location, file))

    async def _get(self, location: Location, file: IO[bytes]) -> None:
        with _absence(location), told(location):
            bucket = open_bucket(location, self._place, LIMITS, Environment())
            try:
                found = await obstore.get_async(bucket, location.path)
            except FileNotFoundError as error:
                if "NoSuchBucket" not in str(error):
                    raise NotFound(f"nothing is at {location.shown}", "Was it moved or deleted?") from None
                raise
            with bar(f"fetching {location.path.rpartition('/')[2]}", found.meta["size"]) as advance:
                async for chunk in found.stream(min_chunk_size=PART):
                    file.write(bytes(chunk))
                    advance(len(chunk))

    @property
    def _place(self) -> Place:
        return Place(endpoint=self.endpoint, region=self.region)


@contextmanager
def _absence(location: Location) -> Iterator[None]:
    try:
        yield
    except InputNotFound as error:
        raise NotFound(str(error)) from None


async def _pieces(file: Path, advance: Advance) -> AsyncIterator[bytes]:
    with file.open("rb") as opened:
        while chunk := opened.read(1024 * 1024):
            advance(len(chunk))
            yield chunk


def _location(url: str, field: str) -> Location:
    try:
        location = parse(url, field, Environment())
    except RunnerError as error:
        raise WrongUse(str(error)) from None
    if location.scheme not in BUCKETS:
        raise CliError(
            f"{location.shown} can't be reached from this machine",
            "A volume is read by a pod that mounts it: kubectl cp from such a pod. What was PUT to a URL is with its "
            "owner."
            if location.scheme != "configmap"
            else "",
            Exit.CLUSTER,
        )
    return location


@contextmanager
def _troubles(storage: Storage) -> Iterator[None]:
    """The runner's sentences name the manifest's fields; from here, the environment and --endpoint count too."""
    try:
        yield
    except RunnerError as error:
        advice = "From this machine the keys come from the environment (AWS_*, GOOGLE_*, AZURE_*)"
        advice += f", else from the Secret {storage.secret}." if storage.secret else "."
        if "could not be reached" in str(error):
            advice = "Name the store as this machine reaches it: --endpoint (submit: --upload-endpoint)."
        raise CliError(str(error), advice) from None
