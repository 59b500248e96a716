"""The models' templates, and what is read anew."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gpubatch_gateway import models, rereading
from gpubatch_gateway.models import TemplateError

GOOD = "minilm: {gpus: 2, inference: {engine: {args: [--x], resources: {limits: {memory: 2Gi}}}}}\n"
BAD = {
    "text": "it is str",
    "{gpus: 0}": "gpus",
    "{gpuz: 1}": "gpuz",
    "{inference: {engin: {}}}": "inference.engin",
    "{inference: {engine: {args: x}}}": "inference.engine.args",
    "{inference: {input: {url: s3://a/b}}}": "inference.input",
    "{inference: {storage: {}}}": "inference.storage",
    "{inference: 3}": "inference",
    "{template: {}}": "template",
    "{priority: high}": "priority",
}


@pytest.mark.parametrize(("template", "field"), BAD.items())
def test_a_template_that_cannot_be_used_is_left_out_and_the_others_stay(
    template: str, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = models.read(f"{GOOD}bad: {template}\n")
    assert set(found.templates) == {"minilm"}
    assert f"'bad' can't be used: {field}" in caplog.text


def test_the_clients_wishes_count_more_than_the_template() -> None:
    found = models.read("a: {priority: 1, inference: {model: m, invalidRequests: Skip}}")
    spec = found.spec("a", {"input": {"url": "x"}}, {"priority": -1, "completionWindowSeconds": None})
    work = {"model": "m", "invalidRequests": "Skip", "input": {"url": "x"}, "servedModelName": "a"}
    assert spec == {"priority": -1, "inference": work}
    assert found.spec("a", {}, {"priority": None})["priority"] == 1


@pytest.mark.parametrize("text", ["[1]", "a: [", "x"])
def test_a_file_that_is_no_map(text: str) -> None:
    with pytest.raises(TemplateError):
        models.read(text)


async def test_what_changes_is_read_anew_and_what_is_wrong_leaves_what_was(tmp_path: Path) -> None:
    taken, changed = list[list[str]](), asyncio.Event()
    (tmp_path / "models.yaml").write_text(GOOD)
    (tmp_path / "..data").write_text("the kubelet's own")

    def take(files: dict[str, str]) -> None:
        taken.append(sorted(models.read(files.get("models.yaml", "")).templates))
        changed.set()

    following = asyncio.create_task(rereading.follow(tmp_path, take, pause=0.01))

    async def told(names: list[str]) -> None:
        while not taken or taken[-1] != names:
            changed.clear()
            await changed.wait()

    await told(["minilm"])
    (tmp_path / "models.yaml").write_text("a: [")
    await asyncio.sleep(0.05)
    assert taken == [["minilm"]]
    (tmp_path / "models.yaml").write_text(GOOD + "other: {}\n")
    await told(["minilm", "other"])
    (tmp_path / "models.yaml").unlink()
    await told([])
    following.cancel()
