"""Object storage as the runner sees it: opening a bucket, and telling its errors in the job's words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, S3Store

from gpubatch_runner.contract import Storage, Upload
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import AccessDenied, InputNotFound, NoCredentials, OutputNotWritable, RunnerError
from gpubatch_runner.locations import Location

Bucket = S3Store | GCSStore | AzureStore

ABSENT = ("NoSuch", "NotFound", "BlobNotFound", "ContainerNotFound")
"""How the codes begin by which a store says that something isn't there."""

ENDPOINT_VARIABLES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": (),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
CREDENTIALS = {
    "s3": {
        "AWS_ACCESS_KEY_ID": "access_key_id",
        "AWS_SECRET_ACCESS_KEY": "secret_access_key",
        "AWS_SESSION_TOKEN": "session_token",
    },
    "gs": {"GOOGLE_SERVICE_ACCOUNT_KEY": "service_account_key"},
    "az": {
        "AZURE_STORAGE_ACCOUNT_NAME": "account_name",
        "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
        "AZURE_STORAGE_SAS_KEY": "sas_key",
        "AZURE_CLIENT_ID": "client_id",
        "AZURE_CLIENT_SECRET": "client_secret",
        "AZURE_TENANT_ID": "tenant_id",
    },
}
"""Variables of a Secret, and what the client calls them. All others it takes from the environment by itself."""


def credentials(scheme: str, environment: Environment) -> dict[str, str]:
    """What the mounted Secret says now, which may be newer than the environment of this process."""
    found = {}
    for variable, name in CREDENTIALS[scheme].items():
        try:
            found[name] = (environment.credentials_dir / variable).read_text().strip()
        except OSError:
            continue
    return found


def open_bucket(location: Location, storage: Storage, upload: Upload, environment: Environment) -> Bucket:
    """A client of the location's bucket; anything that `storage` and the Secret leave open comes from the variables
    that the cloud's own tools know (`AWS_*`, `GOOGLE_*`, `AZURE_*`), or from the service account."""
    scheme = location.scheme
    endpoints = storage.endpoint, *(os.environ.get(name) for name in ENDPOINT_VARIABLES[scheme])
    options: dict[str, Any] = {
        "client_options": {
            "allow_http": any(endpoint.startswith("http://") for endpoint in endpoints if endpoint),
            "connect_timeout": f"{upload.connect_seconds:g}s",
            # One limit for both ways: the client counts from the last byte of the answer, or from the request's start.
            "read_timeout": f"{max(upload.read_seconds, upload.write_seconds):g}s",
            "timeout": f"{upload.total_seconds:g}s",
        },
        "retry_config": {
            "max_retries": 4,
            "retry_timeout": timedelta(seconds=min(120.0, upload.total_seconds)),
            "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=15), "base": 2},
        },
        **credentials(scheme, environment),
    }
    if scheme == "gs":
        if storage.endpoint:
            options["base_url"] = storage.endpoint
        return GCSStore(location.container, **options)
    if storage.endpoint:
        options["endpoint"] = storage.endpoint
    if scheme == "az":
        return AzureStore(location.container, **options)
    if storage.region:
        options["region"] = storage.region
    return S3Store(
        location.container,
        virtual_hosted_style_request=False,
        disable_bulk_delete=True,  # not every server has it, and a refusal hides in its answer of 200
        **options,
    )


class Opened:
    """A bucket that is used for long: its client has the keys that the mounted Secret holds now.

    Args:
        location: Anything in the bucket.
        storage: How to reach it.
        upload: Patience with it.
        environment: Where the Secret is mounted.
    """

    def __init__(self, location: Location, storage: Storage, upload: Upload, environment: Environment) -> None:
        self._location, self._storage, self._upload, self._environment = location, storage, upload, environment
        self._keys: dict[str, str] = {}
        self._bucket: Bucket | None = None

    @property
    def bucket(self) -> Bucket:
        """The client."""
        keys = credentials(self._location.scheme, self._environment)
        if self._bucket is None or keys != self._keys:
            self._bucket = open_bucket(self._location, self._storage, self._upload, self._environment)
            self._keys = keys
        return self._bucket


@contextmanager
def told(location: Location) -> Iterator[None]:
    """Turns errors of object storage into failures that name the job's field."""
    try:
        yield
    except FileNotFoundError as error:
        code = _code(str(error))
        if code and not code.startswith(ABSENT):  # versitygw answers 404 to an access key that it doesn't know
            raise _denied(location, error) from error
        raise _missing(location, str(error)) from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise _denied(location, error) from error
    except (BaseError, ValueError, OSError) as error:
        if "169.254.169.254" in str(error) or "credential" in str(error).lower():
            raise NoCredentials(
                f"{location.field} {location.shown}: no credentials; create the Secret that spec.inference.storage."
                f"secretName names, with {_keys(location)}, or give the service account a role ({reason(error)})"
            ) from error
        raise location.problem(f"{_advice(str(error))} ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """The telling part of an error of object storage: its type, and its code and message or its first line."""
    text = str(error)
    message = re.search(r"<Message>(.*?)</Message>", text, re.DOTALL)
    if code := _code(text):
        return f"{code}: {' '.join(message[1].split())[:400]}" if message else code
    return f"{type(error).__name__}: {text.partition(chr(10))[0][:600]}"


def _code(text: str) -> str:
    """The code of the store's error document; '' if there is none."""
    found = re.search(r"<Code>(.*?)</Code>", text)
    return found[1] if found else ""


def _denied(location: Location, error: BaseException) -> AccessDenied:
    return AccessDenied(
        f"{location.field} {location.shown}: access denied ({reason(error)}); check the keys in the Secret that "
        f"spec.inference.storage.secretName names, and that they may {_needs(location)}"
    )


def _missing(location: Location, text: str) -> RunnerError:
    where = f"{location.field} {location.shown}"
    if "NoSuchBucket" in text or "ContainerNotFound" in text or not location.is_input:
        advice = f"the bucket {location.container!r} does not exist; create it or correct the URL"
        return (InputNotFound if location.is_input else OutputNotWritable)(f"{where}: {advice}")
    return InputNotFound(f"{where}: no such object; upload the input before the job, or correct the URL")


def _keys(location: Location) -> str:
    names = {
        "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "gs": "GOOGLE_SERVICE_ACCOUNT_KEY",
        "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    }
    return names[location.scheme]


def _needs(location: Location) -> str:
    return "get the object" if location.is_input else "put, get and delete objects beside this one"


def _advice(text: str) -> str:
    if "error sending request" in text or "Connect" in text:
        return "the storage could not be reached; check spec.inference.storage.endpoint"
    return "the storage refused the request"
