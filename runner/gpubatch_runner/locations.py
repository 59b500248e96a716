"""Where a job's files are: the URLs of its input, output and errors, parsed and checked before anything is touched."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from gpubatch_runner.contract import SECRET_SCHEME, RunSpec
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import InputUnreadable, OutputNotWritable, RunnerError

INPUT_FIELD = "spec.inference.input.url"
OUTPUT_FIELD = "spec.inference.output.url"
ERRORS_FIELD = "spec.inference.errors.url"
CHECKPOINT_FIELD = "spec.inference.checkpoint.url"

BUCKETS = ("s3", "gs", "az")
WEB = ("http", "https")
SCHEMES = {
    INPUT_FIELD: (*BUCKETS, *WEB, "configmap", "pvc"),
    OUTPUT_FIELD: (*BUCKETS, "pvc", *WEB),
    ERRORS_FIELD: (*BUCKETS, "pvc", *WEB),
    CHECKPOINT_FIELD: (*BUCKETS, "pvc"),
}
FROM_SECRET = (*BUCKETS, *WEB)
"""What a URL in a Secret may be: volumes are mounted before anybody has read it."""


@dataclass(frozen=True)
class Location:
    """One file of a job."""

    field: str
    """The manifest's field that names it."""

    url: str
    """As given, in the manifest or in the Secret."""

    scheme: str
    container: str
    """Bucket, claim, ConfigMap or host."""

    path: str
    """Key in the bucket, or path inside the volume; never leaves it."""

    secret: str | None = None
    """`NAME/KEY` of the Secret that the URL came from."""

    @property
    def shown(self) -> str:
        """The URL without its query and user: those of a presigned URL are credentials."""
        if self.scheme not in WEB:
            return self.url
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"

    @property
    def is_input(self) -> bool:
        """Whether the runner reads it; otherwise it writes it."""
        return self.field.startswith("spec.inference.input.")

    @property
    def is_place(self) -> bool:
        """Whether files can be put beside it and read back; of a web server one can only ask to take one file."""
        return self.scheme not in WEB

    def beside(self, suffix: str) -> Location:
        """The location of a sibling whose name is this one's and `suffix`."""
        return replace(self, url=self.url + suffix, path=self.path + suffix)

    def now(self, environment: Environment) -> Location:
        """The same, with the URL that the Secret has now.

        Raises:
            RunnerError: The Secret is gone, or holds no such URL.
        """
        if self.secret is None:
            return self
        field = self.field.removesuffix("From")
        return parse(f"{SECRET_SCHEME}://{self.secret}", field, environment)

    def file(self, environment: Environment) -> Path:
        """The file of a `pvc://` or `configmap://` location inside this container.

        Raises:
            RunnerError: The volume is not mounted, or a link leads out of it.
        """
        root = (environment.claims_dir if self.scheme == "pvc" else environment.configmaps_dir) / self.container
        kind = "claim" if self.scheme == "pvc" else "ConfigMap"
        if not root.is_dir():
            raise self.problem(f"the {kind} {self.container!r} is not mounted at {root}; check that it exists")
        file = root / self.path
        if not file.resolve().is_relative_to(root.resolve()):
            raise self.problem(f"a link leads out of the {kind} {self.container!r}; name a file inside it")
        return file

    def problem(self, text: str) -> RunnerError:
        """The failure that says what is wrong with this location."""
        kind = InputUnreadable if self.is_input else OutputNotWritable
        return kind(f"{self.field} {self.shown}: {text}")


def parse(url: str, field: str, environment: Environment) -> Location:
    """Parses the URL of `field`, or the one in the Secret that it names.

    Raises:
        InputUnreadable, OutputNotWritable: The URL is not one that the field takes, or the Secret holds none.
    """
    schemes, secret = SCHEMES[field], None
    if url.startswith(f"{SECRET_SCHEME}://"):
        secret = url.removeprefix(f"{SECRET_SCHEME}://")
        field += "From"
        url = _in_secret(secret, field, environment)
        schemes = tuple(scheme for scheme in schemes if scheme in FROM_SECRET)
    scheme, separator, rest = url.partition("://")
    container, _, path = rest.partition("/")
    location = Location(field, url, scheme.lower(), container, path, secret)
    # Until it is known to be a URL, nothing of a secret one may be shown.
    unknown = replace(location, url=f"(from the Secret {secret})" if secret else url, scheme="")
    if not separator or location.scheme not in schemes:
        expected = ", ".join(f"{name}://" for name in schemes)
        raise unknown.problem(f"expected a URL that begins with one of {expected}")
    if location.scheme in WEB:
        try:
            if not urlsplit(url).hostname:
                raise ValueError
            _ = location.shown
        except ValueError:
            raise unknown.problem("expected http(s)://HOST/PATH") from None
        return location
    parts = path.split("/")
    if not container or container in (".", "..") or any(part in ("", ".", "..") for part in parts) or "\0" in url:
        raise location.problem(
            f"expected {scheme}://NAME/PATH, where no part of the path is empty, '.' or '..' and none is at its end"
        )
    if location.scheme == "configmap" and len(parts) > 1:
        raise location.problem("a ConfigMap's key has no '/'; expected configmap://NAME/KEY")
    return location


def _in_secret(secret: str, field: str, environment: Environment) -> str:
    """The URL in a mounted Secret; `secret` is NAME/KEY."""
    name, _, key = secret.partition("/")
    kind = InputUnreadable if "input" in field else OutputNotWritable
    try:
        url = (environment.secrets_dir / name / key).read_text().strip()
    except (OSError, ValueError):
        raise kind(f"{field}: the Secret {name!r} has no key {key!r}; create it in the job's namespace") from None
    if not url:
        raise kind(f"{field}: the key {key!r} of the Secret {name!r} is empty; expected a URL")
    return url


@dataclass(frozen=True)
class JobLocations:
    """The files of a job."""

    input: Location
    output: Location
    errors: Location | None
    """None: failed requests stand in the output, beside the answered ones."""
    checkpoint: Location | None
    """Where an attempt's work is kept for the next; None: beside the output, or nowhere if that cannot be read back."""


def of_job(spec: RunSpec, environment: Environment) -> JobLocations:
    """Parses all locations of a job.

    Raises:
        InputUnreadable, OutputNotWritable: A URL is not one that its field takes.
    """
    assert spec.input is not None, "a live run has no files"
    assert spec.output is not None, "an input goes with an output"
    output = parse(spec.output, OUTPUT_FIELD, environment)
    errors = parse(spec.errors, ERRORS_FIELD, environment) if spec.errors else None
    if errors is None and output.is_place:
        errors = replace(output.beside(".errors.jsonl"), field=ERRORS_FIELD, secret=None)
    checkpoint = parse(spec.checkpoint, CHECKPOINT_FIELD, environment) if spec.checkpoint else None
    locations = JobLocations(parse(spec.input, INPUT_FIELD, environment), output, errors, checkpoint)
    if errors and output.url == errors.url:
        raise errors.problem(f"is also {OUTPUT_FIELD}; give the error file a name of its own")
    if locations.input.url in (output.url, errors.url if errors else None):
        raise output.problem(f"is also {INPUT_FIELD}; the results must not overwrite the requests")
    return locations


def run_token(run: str) -> str:
    """A short name of a run, fit for object names."""
    return hashlib.sha256(run.encode()).hexdigest()[:12]
