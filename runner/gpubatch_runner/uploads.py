"""Takes away what killed writers left in S3: parts of uploads that were never completed. No reader sees them, but they
are paid for.

The client of stores can't list uploads, so the two requests are made here, signed by AWS' Signature Version 4
(https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html) with the keys from the Secret. With a
service account's role instead of keys, a lifecycle rule of the bucket has to do it (AbortIncompleteMultipartUpload).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from html import unescape
from urllib.parse import quote

import aiohttp
from yarl import URL

from gpubatch_runner.contract import Storage
from gpubatch_runner.environment import Environment
from gpubatch_runner.locations import Location
from gpubatch_runner.objectstore import ENDPOINT_VARIABLES, credentials

log = logging.getLogger(__name__)

_TIMEOUT = aiohttp.ClientTimeout(total=30)
_NOTHING = hashlib.sha256(b"").hexdigest()


async def sweep(prefix: Location, storage: Storage, environment: Environment, age: float = 0.0) -> None:
    """Aborts the uploads of objects whose names begin as `prefix`, if they began `age` seconds ago; never raises."""
    keys = credentials("s3", environment)
    access = keys.get("access_key_id") or os.environ.get("AWS_ACCESS_KEY_ID")
    secret = keys.get("secret_access_key") or os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not access or not secret:
        return
    token = keys.get("session_token") or os.environ.get("AWS_SESSION_TOKEN")
    region = storage.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    set_ones = (os.environ.get(name) for name in ENDPOINT_VARIABLES["s3"])
    endpoint = storage.endpoint or next(filter(None, set_ones), f"https://s3.{region}.amazonaws.com")
    bucket = f"{endpoint.rstrip('/')}/{prefix.container}"

    def headers(method: str, url: str, query: Mapping[str, str]) -> dict[str, str]:
        return signed(method, url, query, region, access, secret, token, datetime.now(UTC))

    try:
        async with aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True) as session:
            query = {"uploads": "", "prefix": prefix.path}
            async with session.get(_url(bucket, query), headers=headers("GET", bucket, query)) as response:
                listing = await response.text()
                response.raise_for_status()
            for found in re.findall(r"<Upload>(.*?)</Upload>", listing, re.DOTALL):
                key, upload = _field(found, "Key"), _field(found, "UploadId")
                began = datetime.fromisoformat(_field(found, "Initiated")) if age else None
                if not key.startswith(prefix.path) or (began and (datetime.now(UTC) - began).total_seconds() < age):
                    continue
                target, query = f"{bucket}/{quote(key)}", {"uploadId": upload}
                async with session.delete(_url(target, query), headers=headers("DELETE", target, query)) as response:
                    response.raise_for_status()
                log.info("unfinished upload removed", extra={"url": f"s3://{prefix.container}/{key}"})
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        log.warning("unfinished uploads not removed", extra={"url": prefix.url, "problem": problem})


def signed(
    method: str,
    url: str,
    query: Mapping[str, str],
    region: str,
    access: str,
    secret: str,
    token: str | None,
    now: datetime,
) -> dict[str, str]:
    """The headers of a request without a body, signed.

    Args:
        method: Of the request.
        url: Percent-encoded, without query.
        query: Not encoded.
        region: Of the bucket.
        access: The key's id.
        secret: The key.
        token: Of temporary keys.
        now: UTC.
    """
    stamp, parts = now.strftime("%Y%m%dT%H%M%SZ"), URL(url, encoded=True)
    host = parts.raw_authority.rpartition("@")[2]
    headers = {"host": host, "x-amz-content-sha256": _NOTHING, "x-amz-date": stamp}
    if token:
        headers["x-amz-security-token"] = token
    names = ";".join(sorted(headers))
    request = "\n".join(
        [
            method,
            parts.raw_path,
            _encoded(query),
            *(f"{name}:{headers[name]}" for name in sorted(headers)),
            "",
            names,
            _NOTHING,
        ]
    )
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{secret}".encode()
    for part in (stamp[:8], region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    value = f"AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={names}, Signature={signature}"
    return headers | {"Authorization": value}


def _url(url: str, query: Mapping[str, str]) -> URL:
    return URL(f"{url}?{_encoded(query)}", encoded=True)


def _encoded(query: Mapping[str, str]) -> str:
    return "&".join(f"{quote(name, safe='')}={quote(query[name], safe='')}" for name in sorted(query))


def _field(xml: str, name: str) -> str:
    found = re.search(rf"<{name}>(.*?)</{name}>", xml, re.DOTALL)
    if not found:
        raise ValueError(f"no {name} in the list of uploads")
    return unescape(found[1])
