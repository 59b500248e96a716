"""What a user is told at `kubectl apply`, before anybody asks why a job waits or GPUs are idle."""

from __future__ import annotations

import pytest

from gpubatch_operator.admission.advice import MAX, Sightings, warnings
from gpubatch_operator.core.model import Node, Shape
from unit.operator.build import EPOCH, gpu_shape, node


def told(shape: Shape, *nodes: Node) -> list[str]:
    return warnings(shape, nodes, Sightings(), EPOCH)


def test_one_of_eight_gpus_of_a_node_with_one_slot_is_worth_a_warning() -> None:
    [said] = told(gpu_shape(gpus=1), node("dgx", gpus=8))
    assert said == (
        "the job asks for 1 of the 8 GPUs of a node such as dgx, which has 1 slot: the others stay idle; ask for more, "
        "or let an administrator label it gpubatch.dev/slots=8"
    )


def test_the_longest_name_of_a_node_doesnt_make_the_warning_too_long() -> None:
    [said] = told(gpu_shape(gpus=1), node("n" * 253, gpus=8))
    assert len(said) <= MAX


@pytest.mark.parametrize(
    ("gpus", "nodes"),
    [
        (8, [node(gpus=8)]),
        (1, [node(gpus=8, slots=8)]),
        (1, [node("dgx", gpus=8), node("small", gpus=1)]),
        (3, [node(gpus=6, slots=2)]),
    ],
    ids=["all of them", "a slot for each", "another node suits better", "all slots together"],
)
def test_where_nothing_stays_idle_nothing_is_said(gpus: int, nodes: list[Node]) -> None:
    assert told(gpu_shape(gpus=gpus), *nodes) == []


def test_a_job_that_fits_nowhere_is_told_that_and_nothing_else() -> None:
    [said] = told(gpu_shape(gpus=16), node("dgx", gpus=8))
    assert said.startswith("no node can take the job")
