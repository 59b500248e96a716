"""The secrets that sign a webhook's deliveries, out of the Secret that it names."""

from __future__ import annotations

import base64
import binascii

from gpubatch_operator.kube.client import ApiError, Client

LABEL = "gpubatch.dev/webhook-secret"
KEYS = ("secret", "previousSecret")
"""The one that signs, and the one before it, while receivers learn the new one: then there are two signatures."""


class UnusableError(Exception):
    """The Secret can't be used, and why: its user or an administrator can mend it."""


async def secrets(client: Client, namespace: str, name: str) -> list[str]:
    """The values of those keys.

    Raises:
        UnusableError: It isn't there, may not be used for this or has no such key.
        ApiError: The API server couldn't say.
    """
    try:
        raw = await client.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
    except ApiError as e:
        if e.status == 404:
            raise UnusableError(f"Secret {name} doesn't exist in namespace {namespace}") from None
        if e.status == 403:
            raise UnusableError(
                f"the operator may not read Secret {name} in namespace {namespace}; an administrator can allow it by "
                "the chart's value rbac.webhookSecrets"
            ) from None
        raise
    # Without the label anybody who may create jobs could have any Secret used for signing, and test guesses at it.
    if (raw["metadata"].get("labels") or {}).get(LABEL) != "true":
        raise UnusableError(f"Secret {name} lacks the label {LABEL}=true, which permits this use")
    data = raw.get("data") or {}
    if KEYS[0] not in data:
        raise UnusableError(f"Secret {name} has no key '{KEYS[0]}'")
    return [_text(name, key, data[key]) for key in KEYS if key in data]


def _text(name: str, key: str, value: str) -> str:
    try:
        return base64.b64decode(value).decode().strip()
    except (binascii.Error, UnicodeDecodeError):
        raise UnusableError(f"the key '{key}' of Secret {name} is no text") from None
