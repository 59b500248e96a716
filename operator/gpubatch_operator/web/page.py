"""The page: one file, and the headers under which browsers run nothing but what is in it."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

BODY = resources.files("gpubatch_operator.web").joinpath("page.html").read_bytes()


def _hash(tag: str) -> str:
    """The hash by which a Content-Security-Policy allows the one element of this kind."""
    [content] = re.findall(rb"<%b>(.*?)</%b>" % (tag.encode(), tag.encode()), BODY, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src {_hash('script')}",
        f"style-src {_hash('style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ]
)
HEADERS = {"Content-Security-Policy": POLICY}
