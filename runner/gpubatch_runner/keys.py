"""Who may send live requests: whoever shows a key, as OpenAI's clients do (`Authorization: Bearer KEY`)."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from gpubatch_runner.contract import SECRET_SCHEME, Live
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import InputUnreadable

FIELD = "spec.inference.input.live.keyFrom"


class Keys:
    """The keys that count: those that a Secret holds now, one a line, or the one of which the run knows the digest.

    Args:
        live: Says which; if neither, nobody may.
        environment: Where Secrets are mounted.

    Raises:
        InputUnreadable: The Secret holds no key.
    """

    def __init__(self, live: Live, environment: Environment) -> None:
        self._file: Path | None = None
        self._seen: tuple[int, int] | None = None
        self._digests: tuple[bytes, ...] = (bytes.fromhex(live.key_digest),) if live.key_digest else ()
        if live.key is not None:
            name, _, key = live.key.removeprefix(f"{SECRET_SCHEME}://").partition("/")
            self._file = environment.secrets_dir / name / key
            self._refresh()
            if not self._digests:
                raise InputUnreadable(
                    f"{FIELD}: the Secret {name!r} has no key {key!r}, or an empty one; create it in the job's "
                    f"namespace: kubectl create secret generic {name} --from-literal={key}=$(openssl rand -hex 32)"
                )

    def allow(self, authorization: str | None) -> bool:
        """Whether a request with this header may come in; compares in constant time."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        self._refresh()
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0  # all are looked at

    def _refresh(self) -> None:
        """Reads the Secret again if the kubelet has written it anew; one that vanished lets nobody in."""
        if self._file is None:
            return
        try:
            stat = self._file.stat()
            seen = stat.st_mtime_ns, stat.st_ino
            if seen != self._seen:
                lines = filter(None, map(bytes.strip, self._file.read_bytes().splitlines()))
                self._digests = tuple(hashlib.sha256(line).digest() for line in lines)
                self._seen = seen
        except OSError:
            self._digests, self._seen = (), None
