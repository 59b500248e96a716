"""What each image is made of. An image's tag is the hash of all that goes into it: the same tag is the same image."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localcluster import builder, tools
from localcluster.console import SetupError
from localcluster.settings import REPOSITORY

PACKAGES = ("operator/gpubatch_operator", "runner/gpubatch_runner")
PYTHON_SOURCES = ("pyproject.toml", "constraints.txt", "LICENSE", *PACKAGES)


@dataclass(frozen=True)
class Recipe:
    """One image: files and folders, relative to `top` in the repository, and pinned programs, beside its Dockerfile.

    `base` is the image of ours that it builds upon, given to the Dockerfile as the build argument BASE.
    """

    name: str
    inputs: tuple[str, ...]
    top: str = "."
    programs: tuple[str, ...] = ()
    base: str = ""

    @property
    def repository(self) -> str:
        """The image's name without its tag."""
        return f"gpubatch.dev/{self.name}"

    def write_context(self, folder: Path, base: str = "") -> str:
        """Copy exactly what the image is made of into a build context; returns the reference of what was copied.

        Args:
            folder: Where to.
            base: The reference of its base, if that is one of our images.

        Raises:
            SetupError: an input is missing.
        """
        digest = hashlib.sha256(repr((base or builder.BASE, builder.BASE_RECIPE)).encode())
        for target, source in self._files():
            copy = folder / target
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)
            content = copy.read_bytes()
            digest.update(f"{target}\0{len(content)}\0".encode() + content)
        return f"{self.repository}:src-{digest.hexdigest()[:12]}"

    def _files(self) -> Iterator[tuple[str, Path]]:
        yield "Dockerfile", REPOSITORY / "images" / self.name / "Dockerfile"
        for program in self.programs:
            yield program, tools.path(program)
        top = REPOSITORY / self.top
        for entry in self.inputs:
            path = top / entry
            if not path.exists():
                raise SetupError(f"image {self.name} is made of {path.relative_to(REPOSITORY)}, which is missing")
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file() and "__pycache__" not in file.parts:
                    yield str(file.relative_to(top)), file


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("operator", (*PYTHON_SOURCES, "operator/gpubatch_gateway")),
        Recipe("runner", PYTHON_SOURCES),
        Recipe("s3", (), programs=("versitygw",)),
        Recipe("engine-cpu", ("requirements.txt", "cuda_stubs.py", "tiny_model.py"), top="images/engine-cpu"),
        Recipe("training", ("requirements.txt", "train.py", "finetune.py"), top="images/training", base="engine-cpu"),
        Recipe(
            "transcription",
            ("requirements.txt", "sentences.txt", "serve.py", "transcribe.py"),
            top="images/transcription",
        ),
    )
}
