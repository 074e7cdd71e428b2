"""Recording: the same graph as torch.export where that works, any Python where it does not, and nothing left behind."""

import random
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convwright.architecture import read
from convwright.architecture.capture.capture import EXPORT, RECORDED, capture
from convwright.architecture.capture.graph import argument, depends_on_values, module_paths, source_of
from convwright.cost import measure_latency
from convwright.cost.recount import count_by_torch
from convwright.diagnose.doctor import diagnose
from convwright.edits import Width
from convwright.errors import ReadError
from convwright.metrics.receptive_field import receptive_field

from . import networks
from .test_channels import NETWORKS, SHAPES


def graph_of(model, shape, how):
    """Return what a capture says: operators with arguments, shapes, modules; and which tensors enter."""
    found = capture(model, torch.zeros(shape), how)
    nodes = []
    for node in (n for n in found.graph.nodes if n.op == "call_function" and n.users):
        schema = getattr(node.target, "_schema", None)
        names = [a.name for a in schema.arguments if not a.name.startswith("cudnn")] if schema else []
        value = node.meta.get("val")
        shapes = [tuple(v.shape) for v in (value if isinstance(value, list | tuple) else [value]) if v is not None]
        given = [str(argument(node, name)) for name in names] or [str(node.args)]
        nodes.append((node.name, str(node.target), given, shapes, module_paths(node)))
    used = {n.name: found.tensors.get(n.name) for n in found.graph.nodes if n.op == "placeholder" and n.users}
    return nodes, used, found.parameters, found.inputs, list(found.outputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_recording_is_the_graph_that_export_gives(name):
    model, shape = getattr(networks, name)().eval(), SHAPES.get(name, (2, 3, 8, 8))
    assert graph_of(model, shape, RECORDED) == graph_of(model, shape, EXPORT)


def test_an_unknown_capture_is_refused():
    with pytest.raises(ReadError, match="cannot be captured by 'jit': choose from recorded, export"):
        read(networks.Chain(), (3, 9, 9), capture="jit")


# ------------------------------------------------------------------ nothing is left behind


class Busy(nn.Module):
    """Draws numbers, counts its calls, and writes into a buffer, a parameter and itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.register_buffer("count", torch.zeros(()))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.count += 1
        self.conv.weight.data.mul_(0.5)
        return self.conv(x) * torch.rand(()) * random.random() * np.random.rand()


@pytest.mark.parametrize("training", [False, True])
def test_state_modes_and_random_numbers_stay(training):
    model = Busy().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    read(model, (3, 9, 9))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (model.calls, model.training, model.conv.training) == (0, training, training)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), str(np.random.get_state())) == states[1:]
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_failing_forward_leaves_nothing_behind_either():
    model = Busy().eval()
    with pytest.raises(ReadError, match="does not run on an input of shape 1x4x9x9"):
        read(model, (4, 9, 9))
    assert model.count == 0
    assert model.calls == 0


def test_statistics_of_a_training_only_branch_stay():
    class Auxiliary(networks.Chain):
        def build(self):
            super().build()
            self.aux, self.norm = nn.Conv2d(5, 2, 1), nn.BatchNorm2d(2)

        def middle(self, x):
            return super().middle(x + self.norm(self.aux(x)).mean() if self.training else x)

    model = Auxiliary()
    assert read(model, (3, 9, 9)).group("aux").size == 2
    assert model.norm.num_batches_tracked == 0
    assert not model.norm.running_mean.any()


# ------------------------------------------------------------------ parts of parameters, constants


class Parts(nn.Module):
    """Uses a part of a parameter that it cut out before, one whole through ``.data``, and a tensor of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(4, 2, 1)
        self.part = self.conv.weight.detach()[1:5]
        self.scale = torch.full((1, 1, 1, 1), 2.0)

    def forward(self, x):
        y = F.conv2d(x, self.part) * self.scale
        return F.conv2d(y, self.out.weight.data, self.out.bias)


def test_parts_of_parameters_are_followed_and_constants_named():
    found = read(Parts(), (3, 9, 9)).capture
    entering = {found.tensors[n.name] for n in found.graph.nodes if n.name in found.tensors and n.users}
    assert entering == {"conv.weight", "out.weight", "out.bias", "scale"}
    (cut,) = [n for n in found.graph.nodes if str(n.target) == "aten.slice.Tensor"]
    assert cut.args[1:] == (0, 1, 5)


def test_a_line_of_the_users_code_is_named():
    (conv,) = [n for n in read(Parts(), (3, 9, 9)).capture.graph.nodes if n.name == "conv2d"]
    assert "y = F.conv2d(x, self.part) * self.scale" in str(source_of(conv))


# ------------------------------------------------------------------ parts that depend on values


class Picks(nn.Module):
    """Takes the positions with a positive score, as a detector does; what comes before is a plain network."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.score = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 1), nn.Conv2d(7, 1, 1)

    def forward(self, x):
        y = F.relu(self.b(F.relu(self.a(x))))
        rows = y.permute(0, 2, 3, 1).reshape(-1, 7)
        scores = self.score(y).reshape(-1)
        if scores.max().item() > 1e9:
            return rows
        return rows[scores > 0], scores.nonzero()


def test_what_depends_on_values_freezes_what_enters_there_and_nothing_else():
    arch = read(Picks(), (3, 7, 7))
    assert any(depends_on_values(node) for node in arch.capture.graph.nodes)
    assert [group.name for group in arch.free_groups] == ["a"]
    assert "index in the network itself" in arch.group("b").reason
    assert "depends on the values of the data" in arch.group("b").reason
    assert arch.apply(Width("a", 3)).model.b.weight.shape == (7, 3, 1, 1)
    with pytest.raises(ReadError, match="by recording, which takes any Python"):
        read(Picks(), (3, 7, 7), capture="export")


# ------------------------------------------------------------------ what goes in and out

Pair = namedtuple("Pair", "image depth")


@dataclass
class Sample:
    image: torch.Tensor
    depth: torch.Tensor


class Two(nn.Module):
    """Two images in, a nest of three tensors out."""

    def __init__(self, take=lambda image, depth: (image, depth)):
        super().__init__()
        self.a, self.b, self.out, self.take = nn.Conv2d(3, 6, 3), nn.Conv2d(1, 6, 3), nn.Conv2d(6, 2, 1), take

    def forward(self, image, depth=None):
        image, depth = self.take(image, depth)
        y = self.a(image) + self.b(depth)
        return {"scores": [self.out(y)], "maps": (y.mean((2, 3)), depth)}


A, B = torch.zeros(1, 3, 9, 9), torch.zeros(1, 1, 9, 9)
GIVEN = {
    "tuple": ((A, B), lambda image, depth: (image, depth)),
    "shapes": (((3, 9, 9), (1, 9, 9)), lambda image, depth: (image, depth)),
    "by name": ({"image": (3, 9, 9), "depth": (1, 9, 9)}, lambda image, depth: (image, depth)),
    "text": ("image=3x9x9,depth=1x9x9", lambda image, depth: (image, depth)),
    "dictionary": ({"rgb": A, "d": B}, lambda x, _: (x["rgb"], x["d"])),
    "nested": ({"rgb": [A], "d": (B,)}, lambda x, _: (x["rgb"][0], x["d"][0])),
    "list": ([A, B], lambda x, _: x),
    "named tuple": ((Pair(A, B),), lambda x, _: (x.image, x.depth)),
    "dataclass": (Sample(A, B), lambda x, _: (x.image, x.depth)),
}  # fmt: skip


@pytest.mark.parametrize("kind", GIVEN)
def test_any_nest_of_inputs_is_read_and_edited(kind):
    given, take = GIVEN[kind]
    arch = read(Two(take).eval(), given)
    assert arch.group("a").size == 6
    assert arch.group("a").frozen  # it is returned
    assert len(arch.capture.inputs) == 2
    assert len(arch.capture.outputs) == 3
    assert arch.profile().macs == 7 * 7 * (27 * 6 + 9 * 6 + 12)


@pytest.mark.parametrize("kind", ["tuple", "dictionary", "dataclass"])
def test_a_network_of_several_inputs_is_edited_with_proof(kind):
    given, take = GIVEN[kind]

    class Inner(Two):
        def forward(self, image, depth=None):
            image, depth = self.take(image, depth)
            return self.out(F.relu(self.a(image) + self.b(depth)))

    new = read(Inner(take).eval(), given).apply(Width("a", 4))
    assert new.changes[0].exact
    assert new.model.b.weight.shape == (4, 1, 3, 3)


def test_a_missing_input_is_named():
    class Sum(networks.Chain):
        def forward(self, x, y):
            return super().forward(x + y)

    with pytest.raises(ReadError, match=r"takes x, y: missing a required argument: 'y'\. Give each by its name"):
        read(Sum(), (3, 9, 9))


def test_a_list_of_images_of_several_sizes():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1)

        def forward(self, images):
            return [self.b(F.relu(self.a(image[None]))) for image in images]

    arch = read(Detector(), [torch.zeros(3, 9, 9), torch.zeros(3, 7, 11)])
    assert arch.inputs.batch == 2
    assert arch.apply(Width("a", 3)).changes[0].exact


def test_a_file_tells_its_example_inputs(tmp_path):
    file = tmp_path / "two.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.a = nn.Conv2d(3, 5, 1)\n"
        "    def forward(self, x, y):\n        return self.a(x + y)\n"
        "def example_inputs():\n    return torch.zeros(1, 3, 7, 5), torch.zeros(1, 3, 1, 1)\n"
    )
    assert str(read(f"{file}:Net").inputs) == "1x3x7x5, 1x3x1x1"
    file.write_text(file.read_text() + "def example_inputs():\n    return 1 / 0\n")
    with pytest.raises(ReadError, match=r"example_inputs of .*two.py fails: ZeroDivisionError"):
        read(f"{file}:Net")


def test_outputs_are_frozen_with_their_place_and_free_on_request():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 3)

        def forward(self, x):
            y = self.a(x)
            return {"maps": [y, self.b(F.relu(y))]}

    arch = read(Pyramid(), (3, 9, 9))
    assert [g.reason for g in arch.groups if g.name != "input"] == [
        "they are the network's output (maps.0)", "they are the network's output (maps.1)"
    ]  # fmt: skip
    free = read(Pyramid().eval(), (3, 9, 9), free_outputs=True)
    new = free.apply(Width("a", 4), Width("b", 3), verify=False)
    assert [tuple(t.shape[1:2]) for t in new.model(torch.zeros(1, 3, 9, 9))["maps"]] == [(4,), (3,)]
    assert [g.size for g in new.free_groups] == [4, 3]


def test_a_network_that_returns_no_tensor_is_refused():
    class Silent(networks.Chain):
        def forward(self, x):
            super().forward(x)

    with pytest.raises(ReadError, match="Silent returns no tensor"):
        read(Silent(), (3, 9, 9))


def test_the_floors_above_take_several_inputs():
    arch = read(Two().eval(), {"image": A, "depth": B})
    assert count_by_torch(arch.model, arch.inputs) == arch.profile().macs
    assert arch.profile().eager_activation_bytes > 0
    assert measure_latency(arch.model, arch.inputs, repeats=6, warmup=1).median > 0
    assert receptive_field(arch).layer("a").size == (3, 3)
    found = diagnose(arch)
    assert found.resolutions.possible == ("9x9",)
    assert not found.branch


def test_doctor_names_the_line_that_looks_at_values():
    class Branches(networks.Chain):
        def middle(self, x):
            return super().middle(x if x.abs().max().item() < 0.5 else F.relu(x))

    model = Branches()
    nn.init.zeros_(model.stem.bias)
    assert "x.abs().max().item()" in diagnose(read(model, (3, 9, 9))).branch


def test_a_slice_of_one_channel_freezes_what_it_is_taken_from():
    class OneOfTwo(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.score = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1)

        def forward(self, x):
            return self.score(F.relu(self.a(x)))[:, 1:].flatten()

    arch = read(OneOfTwo(), (3, 9, 9))
    assert [group.name for group in arch.free_groups] == ["a"]
    assert "one channel is taken at slice" in arch.group("score").reason


def test_doctor_names_the_line_from_which_the_structure_is_random():
    class Randomly(networks.Chain):
        def middle(self, x):
            for _ in range(random.randrange(1, 9)):
                x = x.sigmoid()
            return super().middle(x)

    before = random.getstate()
    random.seed(5)  # five steps; with doctor's own seed three
    assert "x = x.sigmoid()" in diagnose(read(Randomly(), (3, 9, 9))).branch
    random.setstate(before)


def test_gradients_in_forward_are_refused_with_the_reason():
    class Inner(networks.Chain):
        def middle(self, x):
            with torch.enable_grad():
                y = super().middle(x)
                return y * torch.autograd.grad(y.sum(), self.conv.weight)[0].mean()

    with pytest.raises(ReadError, match="It computes gradients in forward"):
        read(Inner(), (3, 9, 9))


def test_a_result_written_into_a_buffer_by_name_is_undone():
    class Into(networks.Chain):
        def build(self):
            super().build()
            self.register_buffer("held", torch.zeros(1, 5, 9, 9))

        def middle(self, x):
            return super().middle(torch.add(x, 1, out=self.held))

    model = Into()
    read(model, (3, 9, 9))
    assert not model.held.any()
