"""API keys: the entries of a Secret that is mounted as a folder. The gateway has no right to read any Secret.

An entry's name is what the key is called in logs, its value says whose it is:

    {"key": "sk-...", "namespace": "search", "serviceAccount": "batches"}

or, so that the key itself stands nowhere, `"sha256"` with 64 hexadecimal digits in the place of `"key"`.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gpubatch_operator.api.base import NAME

MIN_KEY = 20  # characters: what can be guessed is no key

log = logging.getLogger(__name__)

Name = Annotated[str, Field(max_length=253, pattern=NAME)]


class _Entry(BaseModel):
    """One value of the Secret."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    namespace: Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    service_account: Name = Field(alias="serviceAccount")
    key: Annotated[str, Field(min_length=MIN_KEY, max_length=4096)] | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("set exactly one of key and sha256")
        return self

    @property
    def digest(self) -> str:
        return self.sha256 or hashlib.sha256((self.key or "").encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Account:
    """The service account that a key stands for."""

    namespace: str
    name: str

    @property
    def user(self) -> str:
        """As the API server calls it."""
        return f"system:serviceaccount:{self.namespace}:{self.name}"

    @property
    def groups(self) -> tuple[str, ...]:
        """Those that it is in."""
        return ("system:serviceaccounts", f"system:serviceaccounts:{self.namespace}", "system:authenticated")


class Keys:
    """The keys that there are, by their hashes.

    Args:
        accounts: Hexadecimal SHA-256 and whose it is.
    """

    def __init__(self, accounts: Iterable[tuple[str, Account]] = ()) -> None:
        self._accounts = tuple(accounts)

    def __len__(self) -> int:
        return len(self._accounts)

    def account(self, digest: str) -> Account | None:
        """Whose key it is; how long that takes tells nothing of the keys there are.

        Args:
            digest: Hexadecimal SHA-256 of what the caller has shown.
        """
        found = None
        for known, account in self._accounts:
            if hmac.compare_digest(known, digest):
                found = account
        return found


def read(entries: Mapping[str, str]) -> Keys:
    """The keys of a Secret's entries; one that can't be used is logged, without its value, and left out."""
    accounts = []
    for name, text in entries.items():
        try:
            entry = _Entry.model_validate_json(text)
        except ValidationError as e:
            first = e.errors(include_input=False)[0]
            log.error("the API key %r can't be used: %s: %s", name, ".".join(map(str, first["loc"])), first["msg"])
            continue
        accounts.append((entry.digest, Account(entry.namespace, entry.service_account)))
    return Keys(accounts)
