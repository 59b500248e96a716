"""Which cluster, as whom and in which namespace: what kubectl would take, by the official client's loader."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpubatch_cli.errors import CliError, WrongUse

IN_CLUSTER = "in-cluster"
ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Access:
    """How to reach a cluster."""

    configuration: Any
    """The client's own `Configuration`: host, certificates, tokens, proxy."""

    namespace: str
    """Where jobs are looked for unless the command says otherwise."""

    context: str
    """Its name, for messages."""

    headers: dict[str, str] = field(default_factory=dict)
    """Of impersonation, if the kubeconfig's user says so."""


@dataclass(frozen=True)
class Merged:
    """What several kubeconfig files say together."""

    contexts: dict[str, dict[str, Any]]
    users: dict[str, dict[str, Any]]
    current: str


def load(kubeconfig: str | None = None, context: str | None = None) -> Access:
    """By `--kubeconfig`, else `$KUBECONFIG` (several files are merged), else `~/.kube/config`, else as a pod.

    Raises:
        WrongUse: There is no kubeconfig, or it makes no sense.
        CliError: Its exec plugin failed.
    """
    paths = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    found = [path for path in paths.split(os.pathsep) if path and Path(path).expanduser().exists()]
    if found:
        return _by_files(os.pathsep.join(found), context)
    if kubeconfig is None and context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        return _in_cluster()
    raise WrongUse(
        f"there is no kubeconfig at {paths}",
        "Name one by --kubeconfig FILE or $KUBECONFIG; whoever runs the cluster has it.",
    )


def merged(paths: str) -> Merged:
    """The files' contexts and users; of what stands in several files, the first one counts, as for kubectl.

    Raises:
        WrongUse: A file is no kubeconfig.
    """
    import yaml
    from kubernetes.config import ConfigException
    from kubernetes.config.kube_config import KubeConfigMerger

    try:
        merger = KubeConfigMerger(paths)
        documents = list(merger.config_files.values())
        contexts = _named(documents, "contexts", "context")
        users = _named(documents, "users", "user")
        current = next((c for d in documents if (c := d.get("current-context"))), "")
    except (ConfigException, OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise WrongUse(f"{paths} is no kubeconfig: {_line(error)}", "Compare it with `kubectl config view`.") from None
    return Merged(contexts, users, str(current))


def _named(documents: list[dict[str, Any]], collection: str, item: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for document in documents:
        for entry in document.get(collection) or []:
            found.setdefault(entry["name"], entry.get(item) or {})
    return found


def _by_files(paths: str, context: str | None) -> Access:
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_kube_config

    config = merged(paths)
    name = context or config.current
    if name not in config.contexts:
        known = ", ".join(sorted(config.contexts)) or "none"
        if not name:
            raise WrongUse(f"{paths} has no current-context", f"Choose one by --context: {known}.")
        raise WrongUse(f"{paths} has no context {name!r}", f"There are: {known}.")
    configuration = Configuration()
    try:
        with _complaints() as heard:
            load_kube_config(config_file=paths, context=name, client_configuration=configuration)
        if heard:
            raise ConfigException(heard[-1])
    except ConfigException as error:
        raise CliError(f"context {name} of {paths}: {_line(error)}", _exec_advice(str(error))) from None
    except OSError as error:  # a certificate, or a token
        raise CliError(
            f"context {name} of {paths}: {error.filename}: {error.strerror}",
            "Its user or cluster names a file that isn't here: correct the path.",
        ) from None
    configuration.retries = False
    user = config.users.get(str(config.contexts[name].get("user")), {})
    namespace = config.contexts[name].get("namespace") or "default"
    return Access(configuration, str(namespace), name, impersonation(user))


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the client's loader logs: of an exec plugin that fails it says no more, and goes on as nobody."""
    heard = _Heard()
    logging.root.addHandler(heard)
    try:
        yield heard.messages
    finally:
        logging.root.removeHandler(heard)


def _in_cluster() -> Access:
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_incluster_config

    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)
        namespace = ACCOUNT_NAMESPACE.read_text().strip()
    except (ConfigException, OSError) as error:
        raise WrongUse(
            f"in this pod there is no access to its cluster: {_line(error)}",
            "Give the pod a service account with a mounted token, or name a kubeconfig by $KUBECONFIG.",
        ) from None
    configuration.retries = False
    return Access(configuration, namespace, IN_CLUSTER)


def impersonation(user: dict[str, Any]) -> dict[str, str]:
    """The headers for a kubeconfig user's `as`, `as-uid` and `as-groups`.

    Raises:
        WrongUse: Several groups, or extras, which the client's plain headers can't hold.
    """
    if user.get("as-user-extra") or len(user.get("as-groups") or []) > 1:
        raise WrongUse(
            "the kubeconfig's user impersonates with extras or several groups, which gpubatch can't",
            "Use a context with at most one as-groups and no as-user-extra.",
        )
    headers = {"Impersonate-User": user.get("as"), "Impersonate-Uid": user.get("as-uid")}
    headers["Impersonate-Group"] = next(iter(user.get("as-groups") or []), None)
    return {name: str(value) for name, value in headers.items() if value}


def _exec_advice(text: str) -> str:
    if text.startswith("exec:"):
        return "The kubeconfig's login program failed: log in anew (with it, or your cloud's tool), and try again."
    if "No such file" in text or "Permission denied" in text:
        return "The kubeconfig's user names a login program that isn't here: install it, or correct the path."
    return "Compare it with `kubectl config view`."


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
