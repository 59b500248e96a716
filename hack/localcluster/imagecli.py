"""The command line of `hack/images`: build what changed, load what is missing, forget what is old."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from localcluster import builder, loading
from localcluster.console import SetupError, say, step
from localcluster.recipes import RECIPES
from localcluster.settings import cache_root, current
from localcluster.shell import lock, replace_file

KEPT = 2  # tags of each image: today's, and the one before it


def build(names: Sequence[str]) -> dict[str, str]:
    """Build the images whose inputs changed; returns name -> reference."""
    built = {}
    with lock(cache_root() / "builder.lock"):
        builder.prepare()
        for name in names:
            _build(name, built)
        keep = _remember(built)
        for reference in builder.references():
            repository = reference.rpartition(":")[0]
            if repository in keep and reference not in keep[repository]:
                builder.remove(reference)
        builder.trim()
    return built


def _build(name: str, built: dict[str, str]) -> str:
    """Build an image, and first what it builds upon; returns its reference."""
    if name in built:
        return built[name]
    recipe = RECIPES[name]
    base = _build(recipe.base, built) if recipe.base else ""
    with tempfile.TemporaryDirectory() as context:
        reference = built[name] = recipe.write_context(Path(context), base)
        if not builder.exists(reference):
            with step(f"Building {reference}"):
                builder.build(reference, Path(context), base)
    return reference


def load(names: Sequence[str]) -> dict[str, str]:
    """Build, and bring the images onto all nodes of the cluster."""
    built, cluster = build(names), current()
    with lock(cluster.lock):
        loading.prune(cluster, list(built.values()))  # first: an engine's image takes ten gigabytes of each node
        loading.load(cluster, list(built.values()))
    return built


def _remember(used: dict[str, str]) -> dict[str, list[str]]:
    """Note these as the last used; returns, for each repository, the references to keep."""
    path = cache_root() / "images.json"
    kept: dict[str, list[str]] = json.loads(path.read_text()) if path.exists() else {}
    for reference in used.values():
        repository = reference.rpartition(":")[0]
        older = [other for other in kept.get(repository, []) if other != reference]
        kept[repository] = [*older, reference][-KEPT:]
    replace_file(path, json.dumps(kept, indent=1))
    return kept


def main(argv: Sequence[str] | None = None) -> int:
    """The whole command; prints the references as JSON."""
    parser = argparse.ArgumentParser(
        prog="hack/images",
        description="Container images from the Dockerfiles under images/; prints JSON: name -> reference.",
    )
    parser.add_argument("command", choices=("build", "load"), help="load: build, then bring onto the cluster's nodes")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}; default: all")
    arguments = parser.parse_args(argv)
    if unknown := sorted(set(arguments.names) - set(RECIPES)):
        parser.error(f"no image {', '.join(unknown)}; there are: {', '.join(RECIPES)}")
    names = arguments.names or list(RECIPES)
    try:
        print(json.dumps(build(names) if arguments.command == "build" else load(names), indent=1))
    except SetupError as failure:
        say(f"hack/images: {failure}")
        return 1
    return 0
