"""URLs that clients name: the gateway reads audio there, and PUTs results, from inside of the cluster's network.

So a client must not get by it to what only the cluster can reach: each connection's very address is checked just before
it is dialled, whatever name or redirect led to it.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import aiohttp
from aiohttp import AddrInfoType
from yarl import URL

from gpubatch_gateway.problems import RequestError, invalid
from gpubatch_gateway.settings import Settings
from gpubatch_operator.addresses import allowed, networks
from gpubatch_runner.puts import expiry, said_by

MAX_URL = 8192  # characters
CHUNK = 256 * 1024
HOPELESS = (400, 401, 403, 404, 405, 410)
"""Answers to a download that will be the same the next time."""


class DownloadError(Exception):
    """The audio can't be had.

    Args:
        problem: What its owner is told.
        again: Whether it may be there the next time.
    """

    def __init__(self, problem: RequestError, again: bool) -> None:
        super().__init__(problem.message)
        self.problem, self.again = problem, again


class Reach:
    """What may be reached.

    Args:
        settings: Which networks, how patiently, how much.
    """

    def __init__(self, settings: Settings) -> None:
        self._networks = networks(settings.allowed_networks)
        self._schemes = ("https", "http") if settings.allow_http else ("https",)
        self._limits, self._most = settings.upload(), settings.max_audio_bytes

    def check(self, url: str, field: str) -> None:
        """Judges a URL as far as it can be judged by itself.

        Raises:
            RequestError: 400; the message names the field and never the URL, which may be a credential.
        """
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname or "", parts.port
            URL(url, encoded=True)
        except ValueError:
            parts, host = urlsplit(""), ""
        expected = " or ".join(f"{scheme}://HOST/PATH" for scheme in self._schemes)
        if not host or len(url) > MAX_URL or not re.fullmatch(r"[!-~]+", url) or parts.username is not None:
            raise invalid(f"Invalid {field!r}: expected {expected}, at most {MAX_URL} characters.", field)
        if parts.scheme not in self._schemes:
            more = "; an administrator can allow http by the setting allowHttp" if parts.scheme == "http" else ""
            raise invalid(f"Invalid {field!r}: it begins with {parts.scheme[:20]!r}; expected {expected}{more}.", field)
        try:
            self._judge(host)
        except OSError as e:
            raise invalid(f"Invalid {field!r}: {e.strerror}.", field) from None
        except ValueError:
            pass  # a name: where it leads is seen when it is dialled
        if (end := expiry(url)) is not None and end <= time.time():
            raise invalid(f"Invalid {field!r}: the URL has expired. Send a fresh one.", field, "expired_url")

    def connector(self) -> aiohttp.TCPConnector:
        """Connections of one exchange, which lead to allowed addresses only."""
        return aiohttp.TCPConnector(socket_factory=self._socket, force_close=True)

    def _socket(self, info: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, where = info
        self._judge(str(where[0]))
        return socket.socket(family, kind, protocol)

    def _judge(self, text: str) -> None:
        """Raises OSError if an address isn't allowed, ValueError if it is none."""
        address = ipaddress.ip_address(text)
        if not allowed(address, self._networks):
            raise OSError(
                errno.EACCES,
                f"{address} isn't a public address; an administrator can allow its network by the setting "
                "allowedNetworks",
            )

    async def read(self, url: str, field: str) -> AsyncIterator[bytes]:
        """What is at a URL, as it comes.

        Raises (while iterating):
            DownloadError: It can't be had, or is too long.
        """

        def problem(what: str, status: int = 400, code: str = "download_failed") -> RequestError:
            return RequestError(status, code, f"The audio of {field!r} can't be had: {what}.", field)

        limits, size = self._limits, 0
        timeout = aiohttp.ClientTimeout(
            total=limits.total_seconds, sock_connect=limits.connect_seconds, sock_read=limits.read_seconds
        )
        try:
            async with (
                aiohttp.ClientSession(connector=self.connector(), timeout=timeout, auto_decompress=False) as http,
                http.get(
                    URL(url, encoded=True), allow_redirects=False, headers={"Accept-Encoding": "identity"}
                ) as answer,
            ):
                if answer.status != 200:
                    what = f"the server answered {answer.status}, expected 200"
                    if 300 <= answer.status < 400:
                        what += "; give the URL that it leads to"
                    raise DownloadError(problem(what), answer.status not in HOPELESS and answer.status >= 400)
                if (answer.content_length or 0) > self._most:
                    raise DownloadError(self._too_long(field), False)
                async for chunk in answer.content.iter_chunked(CHUNK):
                    size += len(chunk)
                    if size > self._most:
                        raise DownloadError(self._too_long(field), False)
                    yield chunk
        except TimeoutError as e:
            raise DownloadError(problem(f"no progress within the time limits ({type(e).__name__})"), True) from e
        except (aiohttp.ClientError, OSError, ValueError) as e:
            raise DownloadError(problem(f"{type(e).__name__}: {said_by(e)}"), True) from e
        if not size:
            raise DownloadError(problem("it is empty"), False)

    def _too_long(self, field: str) -> RequestError:
        return RequestError(413, "file_too_large", f"The audio is longer than {self._most} bytes, the limit.", field)
