"""Object storage as the runner sees it: opening a bucket, and telling its errors in the job's words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from gpubatch_runner.contract import Storage
from gpubatch_runner.failures import AccessDenied, InputNotFound, NoCredentials, OutputNotWritable, RunnerError
from gpubatch_runner.locations import Location

ABSENT = ("NoSuch", "NotFound")
"""How the codes begin by which S3 says that something isn't there."""

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def open_bucket(location: Location, storage: Storage) -> S3Store:
    """A client of the location's bucket; credentials and anything that `storage` leaves open come from `AWS_*`."""
    endpoints = storage.endpoint, *(os.environ.get(name) for name in ENDPOINT_VARIABLES)
    plain_http = any(endpoint.startswith("http://") for endpoint in endpoints if endpoint)
    settings: dict[str, str] = {}
    if storage.endpoint:
        settings["endpoint"] = storage.endpoint
    if storage.region:
        settings["region"] = storage.region
    return S3Store(
        location.container,
        virtual_hosted_style_request=False,
        disable_bulk_delete=True,  # not every server has it, and a refusal hides in its answer of 200
        client_options={
            "allow_http": plain_http,
            "connect_timeout": "30s",
            "read_timeout": "120s",
            "timeout": "600s",
        },
        retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=120)},
        **settings,  # type: ignore[arg-type]
    )


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
                "secretName names, with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the service account a "
                f"role ({reason(error)})"
            ) from error
        raise location.problem(f"{_advice(str(error))} ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """The telling part of an error of object storage: its code and message, or its first line."""
    text = str(error)
    message = re.search(r"<Message>(.*?)</Message>", text)
    if code := _code(text):
        return f"{code}: {message[1]}" if message else code
    return text.partition("\n")[0][:400] or type(error).__name__


def _code(text: str) -> str:
    """The code of S3's error document; '' if there is none."""
    found = re.search(r"<Code>(.*?)</Code>", text)
    return found[1] if found else ""


def _denied(location: Location, error: BaseException) -> AccessDenied:
    return AccessDenied(
        f"{location.field} {location.shown}: access denied ({reason(error)}); check the keys in the Secret that "
        f"spec.inference.storage.secretName names, and that they may {_needs(location)}"
    )


def _missing(location: Location, text: str) -> RunnerError:
    where = f"{location.field} {location.shown}"
    if "NoSuchBucket" in text or not location.is_input:
        advice = f"the bucket {location.container!r} does not exist; create it or correct the URL"
        return (InputNotFound if location.is_input else OutputNotWritable)(f"{where}: {advice}")
    return InputNotFound(f"{where}: no such object; upload the input before the job, or correct the URL")


def _needs(location: Location) -> str:
    return "get the object" if location.is_input else "put, get and delete objects beside this one"


def _advice(text: str) -> str:
    if "error sending request" in text or "Connect" in text:
        return "the storage could not be reached; check spec.inference.storage.endpoint"
    return "the storage refused the request"
