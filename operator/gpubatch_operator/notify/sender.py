"""One attempt at a receiver: the Secret, the signature, the address, the POST, and what of the answer matters.

Each attempt has a connection of its own: one that is kept open was checked for another name, or long ago.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import httpx

from gpubatch_operator.addresses import networks
from gpubatch_operator.api.webhooks import Webhook
from gpubatch_operator.core.deliveries import Patience, Tried
from gpubatch_operator.kube.client import ApiError, Client
from gpubatch_operator.notify import dial, message, signing
from gpubatch_operator.settings import Settings

JSON = dict[str, Any]
MAX_ANSWER = 512  # bytes of a refusal that are read
MAX_RETRY_AFTER = 86_400.0
RESOLVERS = 32  # names that are looked up at a time, in each class of receivers
READERS = 8  # Secrets that are read at a time: the queue uses the same connections


class Sender:
    """Owns the HTTP client and the threads that look names up."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client, self._settings = client, settings
        self._networks = networks(settings.webhook_allowed_networks)
        self._readers = asyncio.Semaphore(READERS)
        # Apart from the event loop's own threads, which others need: a name server may hang, too.
        self._resolvers = {well: ThreadPoolExecutor(RESOLVERS, "resolve") for well in (True, False)}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(verify=_authorities(), limits=limits, follow_redirects=False, trust_env=False)

    async def close(self) -> None:
        """No more attempts."""
        for pool in self._resolvers.values():
            pool.shutdown(wait=False, cancel_futures=True)
        await self._http.aclose()

    def patience(self, hook: Webhook) -> Patience:
        """When this receiver is tried again."""
        wish, default = hook.delivery, self._settings
        return Patience(
            attempts=wish.attempts or default.webhook_attempts,
            backoff=wish.backoff_seconds or default.webhook_backoff_seconds,
            max_backoff=wish.max_backoff_seconds or default.webhook_max_backoff_seconds,
        )

    async def attempt(self, job: JSON, hook: Webhook, delivery: JSON, event: JSON, well: bool) -> Tried:
        """One attempt at a delivery, however it goes.

        Args:
            job: Its metadata.
            event: What it tells, as status keeps it.
            well: Whether the receiver is known to answer well and soon.
        """
        secrets: list[str] = []
        try:
            if hook.secret_name:
                async with self._readers:
                    secrets = await signing.secrets(self._client, job["namespace"], hook.secret_name)
            body = message.payload(job, event)
            headers = message.headers(delivery["id"], body, secrets)
        except (signing.UnusableError, ApiError) as e:
            return Tried(False, error=str(e))
        except ValueError as e:
            return Tried(False, error=f"the key 'secret' or 'previousSecret' of Secret {hook.secret_name} is {e}")
        return await self._post(hook, body, headers, signed=bool(secrets), well=well)

    async def _post(self, hook: Webhook, body: bytes, headers: dict[str, str], signed: bool, well: bool) -> Tried:
        wish, default = hook.delivery, self._settings
        total = wish.total_seconds or default.webhook_timeout_seconds
        read = wish.read_seconds or default.webhook_read_seconds
        connect = wish.connect_seconds or default.webhook_connect_seconds
        limits = httpx.Timeout(read, connect=connect)
        try:
            async with asyncio.timeout(total):
                targets = await dial.resolve(hook.url, self._networks, self._resolvers[well])
                for i, target in enumerate(targets):
                    try:
                        return await self._ask(target, body, headers, limits, signed)
                    except (httpx.ConnectError, httpx.ConnectTimeout):
                        if i + 1 == len(targets):
                            raise
            raise AssertionError("a name resolves to an address, or is refused")
        except dial.RefusedError as e:
            error = str(e)
        except httpx.ConnectTimeout:
            error = f"no connection within {connect:g} s (connectSeconds)"
        except httpx.ReadTimeout:
            error = f"no answer within {read:g} s (readSeconds)"
        except TimeoutError:
            error = f"not done within {total:g} s (totalSeconds)"
        except Exception as e:  # whatever it is, it counts as an attempt: else it would be made again for ever
            error = f"{type(e).__name__}: {e}"
        return Tried(False, signed, error=error)

    async def _ask(
        self, target: dial.Target, body: bytes, headers: dict[str, str], limits: httpx.Timeout, signed: bool
    ) -> Tried:
        request = self._http.build_request(
            "POST",
            target.url,
            content=body,
            headers=headers | {"host": target.host_header, "accept-encoding": "identity"},
            timeout=limits,
            extensions={"sni_hostname": target.hostname},
        )
        response = await self._http.send(request, stream=True)
        try:
            if response.is_success:
                return Tried(True, signed, response.status_code)
            error = f"the receiver answered {response.status_code}: {await _beginning(response)}"
            return Tried(False, signed, response.status_code, error, _retry_after(response, time.time()))
        finally:
            await response.aclose()


@cache
def _authorities() -> ssl.SSLContext:
    """Those of the public; reading them takes longer than an attempt."""
    return httpx.create_ssl_context(trust_env=False)


async def _beginning(response: httpx.Response) -> str:
    """Of an answer that may have no end; undecoded, since what is packed may unpack to anything."""
    text = b""
    async for chunk in response.aiter_raw():
        text += chunk
        if len(text) >= MAX_ANSWER:
            break
    return text[:MAX_ANSWER].decode(errors="replace")


def _retry_after(response: httpx.Response, now: float) -> float:
    """Seconds that the receiver asks for, as a number or a date (RFC 9110, section 10.2.3)."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value), MAX_RETRY_AFTER)
    try:
        return max(0.0, min(parsedate_to_datetime(value).timestamp() - now, MAX_RETRY_AFTER))
    except ValueError:
        return 0.0
