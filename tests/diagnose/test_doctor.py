"""The doctor: what it says agrees with what edits do."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from convwright.architecture import read
from convwright.diagnose.doctor import Diagnosis, Part, diagnose, examine
from convwright.edits import AddBlock, Kernel, RemoveBlock, Resolution, Width
from convwright.errors import EditError


class Lenet(nn.Module):
    """A size written down before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 5)
        self.second = nn.Conv2d(6, 16, 5)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(16 * 25, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(self.first(x).relu(), 2)
        x = torch.max_pool2d(self.second(x).relu(), 2)
        return self.head(x.view(-1, 16 * 5 * 5))


@pytest.fixture(scope="module")
def lenet() -> Diagnosis:
    return diagnose(read(Lenet(), "3x32x32"))


def test_a_written_size_is_named_with_its_line(lenet: Diagnosis) -> None:
    (fixed,) = [o for o in lenet.frozen if "second" in o.names]
    assert fixed.line.startswith("test_doctor.py:")
    assert "x.view(-1, 16 * 5 * 5)" in fixed.line
    assert any("change the width of second, change this line: test_doctor.py:" in a for a in lenet.advice)
    assert [group.name for group in lenet.free] == ["first"]
    assert lenet.unused == ("unused.weight", "unused.bias")
    assert lenet.verdict == (
        "1 of 4 channel groups, 99% of the MACs, can change; no blocks were found; only inputs of 32 work."
    )


def test_input_sizes_fail_with_the_line(lenet: Diagnosis) -> None:
    assert lenet.resolutions.possible == ("32x32",)
    assert any("x.view(-1, 16 * 5 * 5)" in o.line and "24x24" in o.names for o in lenet.resolutions.obstacles)


def test_a_view_that_moves_positions_into_the_batch_does_not_work() -> None:
    found = diagnose(read(nn.Sequential(nn.Conv2d(3, 4, 1), Rows(), nn.Linear(64, 2)), "3x4x4"))
    assert found.resolutions.possible == ("4x4",)
    assert any("into the batch" in o.reason and o.names == ("8x8",) for o in found.resolutions.obstacles)


class Rows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 64)


def test_a_diagnosis_is_json(lenet: Diagnosis) -> None:
    assert json.loads(json.dumps(lenet.as_dict()))["model"] == "Lenet"


def test_what_the_doctor_says_holds() -> None:
    """Each change that is said to be possible is; each that is not is refused."""
    arch = read("zoo:resnet20")
    found = diagnose(arch)
    arch.apply(*(Width(group.name, 2 * group.size) for group in found.free), verify=False)
    for part, edit in (
        (found.removable, RemoveBlock),
        (found.repeatable, AddBlock),
        (found.kernels, lambda name: Kernel(name, 5)),
        (found.resolutions, lambda name: Resolution(int(name.partition("x")[0]))),
    ):
        assert len(part.possible) + len(refused(part)) == part.total
        for name in part.possible[:2]:
            arch.apply(edit(name), verify=False)
        for name in refused(part)[:2]:
            with pytest.raises(EditError):
                arch.apply(edit(name), verify=False)


def refused(part: Part) -> list[str]:
    return [name for obstacle in part.obstacles for name in obstacle.names]


def test_equal_reasons_are_one() -> None:
    found = diagnose(read("zoo:resnet20"))
    assert [(o.reason, o.names) for o in found.removable.obstacles] == [
        ("it changes the shape, and what follows needs that shape", ("layer2.0", "layer3.0"))
    ]
    assert found.advice == ()
    assert found.verdict == (
        "12 of 14 channel groups, 100% of the MACs, can change; 7 of 9 blocks can be removed; inputs from 8 to 64 work."
    )


def test_a_named_network_with_options() -> None:
    found = examine("zoo:resnet20", "3x40x40", num_classes=3)
    assert found.input_shape == (3, 40, 40)
    assert found.params < 272_474
    assert found.seconds > 0


def test_a_vector_has_one_size() -> None:
    found = diagnose(read(nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 4)), torch.zeros(1, 6)))
    assert found.verdict.endswith("only inputs of 6 work.")
