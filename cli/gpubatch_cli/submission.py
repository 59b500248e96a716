"""Submitting: check the file, ask the cluster, upload, apply, show where the job stands."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpubatch_cli import manifest
from gpubatch_cli.api import Api, jobs_path
from gpubatch_cli.console import document, out, say
from gpubatch_cli.errors import CliError, Exit, NotFound, WrongUse
from gpubatch_cli.following import Follower, Limit, verdict
from gpubatch_cli.jobs import phase

JSON = dict[str, Any]
MANIFESTS = (".yaml", ".yml", ".json", "-")
LETTERS = "bcdfghjkmnpqrstvwxz23456789"  # none that make words or look alike
PATIENCE = 5.0  # seconds until an operator has looked at a new job
MOST_REQUESTS = 50_000  # the cluster's default; a cluster that allows more says so itself


@dataclass(frozen=True)
class Wishes:
    """The options of `submit` that make a job."""

    model: str | None = None
    target: str | None = None
    name: str | None = None
    served_model_name: str | None = None
    upload_url: str | None = None
    errors: str | None = None
    endpoint: str | None = None
    upload_endpoint: str | None = None
    region: str | None = None
    secret: str | None = None
    priority: int | None = None
    gpus: int | None = None
    node_selector: tuple[str, ...] = ()
    engine_image: str | None = None
    engine_arg: tuple[str, ...] = ()
    completion_window: float | None = None
    webhook: tuple[str, ...] = ()
    webhook_secret: str | None = None
    skip_invalid: bool = False
    force: bool = False


@dataclass(frozen=True)
class Prepared:
    """What to apply, and which file must be where before."""

    jobs: list[JSON]
    file: Path | None = None
    url: str = ""


class Submission:
    """One call of `submit`."""

    def __init__(
        self,
        connect: Callable[[], tuple[Api, str]],
        namespace: str | None,
        wishes: Wishes,
        dry_run: str,
        form: str | None,
    ) -> None:
        self._connect, self._namespace, self._wishes = connect, namespace, wishes
        self._dry_run, self._form = dry_run, form

    def run(self, file: str, wait_for: bool) -> int:
        """All of it; the exit status.

        Raises:
            CliError: Something is wrong with the file, the options, the store or the cluster.
        """
        prepared = self._manifests(file) if file.endswith(MANIFESTS) else self._requests(file)
        if self._dry_run == "client":
            self._print(prepared.jobs, self._form or "yaml")
            return Exit.OK
        api, default = self._connect()
        places = [job["metadata"].get("namespace") or self._namespace or default for job in prepared.jobs]
        self._ask(api, places, prepared)
        if self._dry_run == "server":
            say("the cluster would take it; nothing was changed")
            return Exit.OK
        if prepared.file is not None:
            self._upload(api, places[0], prepared.file, prepared.url)
        applied = [self._apply(api, place, job) for place, job in zip(places, prepared.jobs, strict=True)]
        if self._form:
            self._print(applied, self._form)
        return self._aftermath(api, applied, wait_for)

    # --- what to submit

    def _manifests(self, file: str) -> Prepared:
        given = asdict(self._wishes)
        if stray := [name for name, value in given.items() if value and name != "force"]:
            option = {"target": "output", "upload_url": "input"}.get(stray[0], stray[0].replace("_", "-"))
            raise WrongUse(f"--{option} is for files of requests; {file} is a manifest", "Write it into the manifest.")
        try:
            text = sys.stdin.read() if file == "-" else Path(file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise WrongUse(f"{file} can't be read: {getattr(error, 'strerror', None) or error}") from None
        jobs = manifest.documents(text, file)
        for job in jobs:
            place = job["metadata"].get("namespace")
            if place and self._namespace and place != self._namespace:
                raise WrongUse(
                    f"{file} is for namespace {place!r}, and -n says {self._namespace!r}", "Leave one of them out."
                )
            if self._dry_run == "client":
                manifest.check(job, file)
        return Prepared(jobs)

    def _requests(self, file: str) -> Prepared:
        wishes = self._wishes
        for option, value in (("--model", wishes.model), ("--output", wishes.target)):
            if not value:
                raise WrongUse(f"{option} is missing", f"gpubatch submit {file} --model MODEL --output s3://BUCKET/KEY")
        assert wishes.target is not None
        name = wishes.name or manifest.job_name(file, "".join(secrets.choice(LETTERS) for _ in range(5)))
        if "://" in file:
            if wishes.upload_url:
                raise WrongUse("--input is where a file of this machine goes", f"{file} is in its place already.")
            return Prepared([self._job(name, file, wishes.served_model_name)])
        served = self._checked(file)
        url = wishes.upload_url or manifest.beside(wishes.target, file)
        return Prepared([self._job(name, url, served)], Path(file), url)

    def _job(self, name: str, url: str, served: str | None) -> JSON:
        job = manifest.inference_job(name, self._namespace, asdict(self._wishes), url, served)
        manifest.check(job, "the job")
        self._locations(job, url)
        return job

    def _locations(self, job: JSON, url: str) -> None:
        from gpubatch_runner.environment import Environment
        from gpubatch_runner.failures import RunnerError
        from gpubatch_runner.locations import BUCKETS, INPUT_FIELD, OUTPUT_FIELD, parse

        work = job["spec"]["inference"]
        try:
            output = parse(work["output"]["url"], OUTPUT_FIELD, Environment())
            parse(url, INPUT_FIELD, Environment())
        except RunnerError as error:
            raise WrongUse(str(error)) from None
        if output.scheme not in BUCKETS and url.startswith(work["output"]["url"]):
            raise WrongUse(
                f"--output {output.shown}: nothing can be uploaded beside it from this machine",
                "Name where the requests go: --input s3://BUCKET/KEY; or submit their URL instead of a file.",
            )
        if url == work["output"]["url"]:
            raise WrongUse(f"--input and --output are both {url}", "The results must not overwrite the requests.")

    def _checked(self, file: str) -> str | None:
        """Judges the requests; what they call the model.

        Raises:
            WrongUse: The file can't be read.
            CliError: It has invalid lines.
        """
        from gpubatch_cli import inspection
        from gpubatch_runner.failures import RunnerError

        try:
            with inspection.findings(file, self._wishes.served_model_name) as found:
                problem = found.problem(sys.maxsize)
                if problem or (found.invalid and not self._wishes.skip_invalid):
                    for line in inspection.error_lines(found, everything=False):
                        say(line)
                    what = problem or f"{found.invalid} of {found.requests + found.invalid} lines are invalid"
                    advice = "Correct them (`gpubatch inspect` tells all)"
                    advice += "." if problem else ", or let the others run: --skip-invalid."
                    raise CliError(f"{file}: {what}", advice, Exit.FAILED)
                say(f"{file}: {found.requests} requests, about {found.input_tokens} prompt tokens")
                if found.requests + found.invalid > MOST_REQUESTS:
                    say(f"  more than {MOST_REQUESTS}: the cluster refuses that unless its maxRequestsPerJob is raised")
                if found.model not in (None, self._wishes.model, self._wishes.served_model_name):
                    say(f"  they call the model {found.model!r}: it is served under that name")
                return found.model
        except (OSError, RunnerError) as error:
            raise WrongUse(f"{file} can't be read: {getattr(error, 'strerror', None) or error}") from None

    # --- the cluster

    def _ask(self, api: Api, places: list[str], prepared: Prepared) -> None:
        """Whether the cluster would take them, before anything is uploaded or created."""
        for place, job in zip(places, prepared.jobs, strict=True):
            name = job["metadata"]["name"]
            if prepared.file is not None or "://" in str(self._wishes.target):
                self._new(api, place, name)
            api.apply(jobs_path(place, name), job, self._wishes.force, dry_run=True)

    def _new(self, api: Api, place: str, name: str) -> None:
        try:
            found = api.get(jobs_path(place, name))
        except NotFound:
            return
        raise WrongUse(
            f"there is a job {name!r} in namespace {place!r} already ({phase(found)})",
            f"Choose another --name; `gpubatch rerun {name}` runs that one again.",
        )

    def _upload(self, api: Api, place: str, file: Path, url: str) -> None:
        from gpubatch_cli.storage import Storage

        wishes = self._wishes
        storage = Storage(wishes.upload_endpoint or wishes.endpoint, wishes.region, wishes.secret)
        storage.take_keys(api, place, url)
        storage.upload(file, url)
        say(f"uploaded to {url}")

    def _apply(self, api: Api, place: str, job: JSON) -> JSON:
        name = job["metadata"]["name"]
        applied, created = api.apply(jobs_path(place, name), job, self._wishes.force)
        if not self._form:
            out(f"gpubatchjob.gpubatch.dev/{name} {'created' if created else 'configured'}")
        return applied

    @staticmethod
    def _print(jobs: list[JSON], form: str) -> None:
        if form == "name":
            for job in jobs:
                out(f"gpubatchjob.gpubatch.dev/{job['metadata']['name']}")
        elif form == "json":
            document(jobs[0] if len(jobs) == 1 else {"apiVersion": "v1", "kind": "List", "items": jobs}, form)
        else:
            for number, job in enumerate(jobs):
                if number:
                    out("---")
                document(job, form)

    # --- what became of it

    def _aftermath(self, api: Api, applied: list[JSON], wait_for: bool) -> int:
        if not self._form:
            for job in applied:
                self._stands(api, job)
        if not wait_for:
            return Exit.OK
        ended: list[JSON] = []
        for place in dict.fromkeys(job["metadata"]["namespace"] for job in applied):
            names = [job["metadata"]["name"] for job in applied if job["metadata"]["namespace"] == place]
            ended += Follower(api, place).ended(names, Limit(None))
        return verdict(ended)

    @staticmethod
    def _stands(api: Api, job: JSON) -> None:
        """Where it stands, once an operator has looked at it."""
        from gpubatch_cli.place import ahead_of
        from gpubatch_cli.queueview import now
        from gpubatch_cli.render import standing

        path = jobs_path(job["metadata"]["namespace"], job["metadata"]["name"])
        end = time.monotonic() + PATIENCE
        while True:
            job = api.get(path)
            status = job.get("status") or {}
            seen = status.get("observedGeneration") == job["metadata"]["generation"]
            placed = status.get("phase") not in ("Queued", "Validating") or "queuePosition" in status
            if (seen and placed) or time.monotonic() > end:
                break
            time.sleep(0.2)
        for line in standing(job, now(), ahead_of(api, job)):
            out(line)
        if not status.get("phase"):
            say("  no operator has looked at it yet: is one up? kubectl get pods -A -l app.kubernetes.io/name=gpubatch")
