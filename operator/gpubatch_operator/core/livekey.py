"""The key of a live job that names no Secret: derived, so that it is stored nowhere and good for that job alone.

Whoever knows the installation's secret (the operator and the gateway) knows every job's key. A job's pod is told only
the key's digest, from which nobody gets the key; and whoever gets hold of one key has those of no other job.
"""

from __future__ import annotations

import hashlib
import hmac


def key_of(secret: bytes, job_uid: str) -> str:
    """The key that clients of a job show, 64 hexadecimal digits (HMAC-SHA256, RFC 2104)."""
    return hmac.new(secret, b"gpubatch live " + job_uid.encode(), hashlib.sha256).hexdigest()


def digest_of(key: str) -> str:
    """What the job's runner is told: SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()
