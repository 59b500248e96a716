"""Where a job's files are: the URLs of its input, output and errors, parsed and checked before anything is touched."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from gpubatch_runner.contract import RunSpec
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import InputUnreadable, OutputNotWritable, RunnerError

INPUT_FIELD = "spec.inference.input.url"
OUTPUT_FIELD = "spec.inference.output.url"
ERRORS_FIELD = "spec.inference.errors.url"

INPUT_SCHEMES = ("s3", "http", "https", "configmap", "pvc")
OUTPUT_SCHEMES = ("s3", "pvc")


@dataclass(frozen=True)
class Location:
    """One file of a job."""

    field: str
    """The manifest's field that names it."""

    url: str
    """As given."""

    scheme: str
    container: str
    """Bucket, claim, ConfigMap or host."""

    path: str
    """Key in the bucket, or path inside the volume; never leaves it."""

    @property
    def shown(self) -> str:
        """The URL without its query and user: those of a presigned URL are credentials."""
        if self.scheme not in ("http", "https"):
            return self.url
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"

    @property
    def is_input(self) -> bool:
        """Whether the runner reads it; otherwise it writes it."""
        return self.field == INPUT_FIELD

    def beside(self, suffix: str) -> Location:
        """The location of a sibling whose name is this one's and `suffix`."""
        return replace(self, url=self.url + suffix, path=self.path + suffix)

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


def parse(url: str, field: str) -> Location:
    """Parses the URL of `field`.

    Raises:
        InputUnreadable, OutputNotWritable: The URL is not one that the field takes.
    """
    schemes = INPUT_SCHEMES if field == INPUT_FIELD else OUTPUT_SCHEMES
    scheme, separator, rest = url.partition("://")
    container, _, path = rest.partition("/")
    location = Location(field=field, url=url, scheme=scheme.lower(), container=container, path=path)
    if not separator or location.scheme not in schemes:
        expected = ", ".join(f"{name}://" for name in schemes)
        raise replace(location, scheme="").problem(f"expected a URL that begins with one of {expected}")
    if location.scheme in ("http", "https"):
        try:
            if not urlsplit(url).hostname:
                raise ValueError
            _ = location.shown
        except ValueError:
            raise replace(location, scheme="").problem("expected http(s)://HOST/PATH") from None
        return location
    parts = path.split("/")
    if not container or container in (".", "..") or any(part in ("", ".", "..") for part in parts) or "\0" in url:
        raise location.problem(
            f"expected {scheme}://NAME/PATH, where no part of the path is empty, '.' or '..' and none is at its end"
        )
    if location.scheme == "configmap" and len(parts) > 1:
        raise location.problem("a ConfigMap's key has no '/'; expected configmap://NAME/KEY")
    return location


@dataclass(frozen=True)
class JobLocations:
    """The three files of a job."""

    input: Location
    output: Location
    errors: Location


def of_job(spec: RunSpec) -> JobLocations:
    """Parses all locations of a job.

    Raises:
        InputUnreadable, OutputNotWritable: A URL is not one that its field takes.
    """
    locations = JobLocations(
        parse(spec.input, INPUT_FIELD), parse(spec.output, OUTPUT_FIELD), parse(spec.errors, ERRORS_FIELD)
    )
    if spec.output == spec.errors:
        raise locations.errors.problem(f"is also {OUTPUT_FIELD}; give the error file a name of its own")
    if spec.input in (spec.output, spec.errors):
        raise locations.output.problem(f"is also {INPUT_FIELD}; the results must not overwrite the requests")
    return locations


def run_token(run: str) -> str:
    """A short name of a run, fit for object names."""
    return hashlib.sha256(run.encode()).hexdigest()[:12]
