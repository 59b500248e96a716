"""The image builder: Docker where its daemon answers, else buildah with a store of its own in the cache."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from localcluster import kind, packages
from localcluster.console import SetupError, say, step
from localcluster.settings import cache_root
from localcluster.shell import run, succeeds

BASE = "docker.io/library/python:3.11-slim-bookworm"
BASE_RECIPE = ("--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm")
MAX_LEFTOVERS = 60
PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "default-timeout")
CHROOT = {"BUILDAH_ISOLATION": "chroot"}  # needs no runtime and no network of its own


def prepare() -> None:
    """Make sure that there is a builder, and, without a registry to take it from, the base image.

    Raises:
        SetupError: neither Docker nor a Debian that can install buildah.
    """
    if kind.is_used():
        return
    packages.require(packages.IMAGES)
    if exists(BASE):
        return
    with step(f"Making {BASE} from Debian packages"), tempfile.TemporaryDirectory() as scratch:
        run("mmdebstrap", *BASE_RECIPE, f"{scratch}/base.tar")
        container = run(*_buildah(), "from", "scratch", env=CHROOT).strip()
        run(*_buildah(), "add", container, f"{scratch}/base.tar", "/", env=CHROOT)
        run(*_buildah(), "config", "--cmd", "python3", container, env=CHROOT)
        run(*_buildah(), "commit", "--rm", container, BASE, env=CHROOT)


def exists(reference: str) -> bool:
    """Whether the builder holds an image."""
    command = ["docker"] if kind.is_used() else _buildah()
    return succeeds(*command, "inspect", "--type", "image", reference)


def build(reference: str, context: Path, base: str = "") -> None:
    """Build the Dockerfile at the top of a folder, upon `base` if it asks for that.

    Raises:
        SetupError: the build failed; with the end of its output.
    """
    with tempfile.TemporaryDirectory() as scratch:
        given = [*_pip_secrets(Path(scratch)), *(("--build-arg", f"BASE={base}") if base else ())]
        if kind.is_used():
            run("docker", "build", *given, "--tag", reference, str(context))
        else:
            options = ("--layers", "--pull-never", *given)
            run(*_buildah(), "build", *options, "--tag", reference, str(context), env=CHROOT)


def save_command(reference: str) -> list[str]:
    """The command that writes an image as a tar to standard output."""
    return [*_buildah(), "push", "--quiet", reference, f"docker-archive:/dev/stdout:{reference}"]


def remove(reference: str) -> None:
    """Forget an image; one that is in use stays, and is said."""
    command = ["docker", "image", "rm"] if kind.is_used() else [*_buildah(), "rmi"]
    try:
        run(*command, reference)
    except SetupError as failure:
        say(f"    kept {reference}: {failure}")


def trim() -> None:
    """Drop the leftovers of builds when there are many; the next build of an image starts without its cached layers."""
    if kind.is_used():
        return
    if run(*_buildah(), "images", "--quiet", "--filter", "dangling=true").count("\n") > MAX_LEFTOVERS:
        run(*_buildah(), "rmi", "--prune")


def references() -> list[str]:
    """All image names that the builder holds."""
    if kind.is_used():
        return run("docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
    return run(*_buildah(), "images", "--format", "{{.Name}}:{{.Tag}}").split()


@functools.cache
def _buildah() -> list[str]:
    """buildah with the project's own store: overlay where the kernel lets us, else the much slower vfs."""
    store = cache_root() / "builder"
    for driver in ("overlay", "vfs"):
        folders = ("--root", str(store / driver), "--runroot", str(store / f"{driver}-run"))
        command = ["buildah", *folders, "--storage-driver", driver]
        if succeeds(*command, "images"):
            return command
    raise SetupError(f"buildah works with neither overlay nor vfs under {store}")


def _pip_secrets(folder: Path) -> list[str]:
    """This machine's settings of pip as build secrets: used by the builds, never part of an image."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    settings: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):  # the environment wins
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = value.strip("'\"")
    config = [f"{key} = {settings[key]}" for key in PIP_SETTINGS if key in settings]
    options = []
    if (bundle := settings.get("cert")) and Path(bundle).is_file():
        config.append("cert = /run/ca.pem")
        options += ["--secret", f"id=ca.pem,src={shutil.copy(bundle, folder / 'ca.pem')}"]
    if config:
        (folder / "pip.conf").write_text("\n".join(["[global]", *config, ""]))
        options += ["--secret", f"id=pip.conf,src={folder / 'pip.conf'}"]
    return options
