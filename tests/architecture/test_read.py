"""``read``: every kind of input it takes, and every input it must refuse in words."""

import copy

import pytest
import torch
from torch import nn

from convwright.architecture import parse_shape, read
from convwright.errors import EditError, ReadError

from . import networks

# ------------------------------------------------------------------ what is accepted


def test_a_module_with_a_shape_a_text_or_a_tensor():
    model = networks.Chain()
    for example in [(3, 9, 9), "3x9x9", "3,9,9", (1, 3, 9, 9), torch.rand(1, 3, 9, 9)]:
        arch = read(model, example)
        assert arch.model is model
        assert tuple(arch.example_input.shape) == (1, 3, 9, 9)
        assert arch.source == "Chain"


def test_the_example_takes_dtype_of_the_model():
    assert read(networks.Chain().double(), (3, 9, 9)).example_input.dtype == torch.float64


def test_a_batch_given_as_a_tensor_is_kept():
    example = torch.rand(5, 3, 9, 9)
    assert read(networks.Chain(), example).example_input is example


@pytest.mark.parametrize(
    ("source", "shape", "layer", "width"),
    [
        ("torchvision:squeezenet1_1", (3, 224, 224), "features.0", 64),
        ("timm:resnet10t", (3, 176, 176), "layer1.0.conv1", 64),
        ("zoo:resnet20", (3, 32, 32), "layer1.0.conv1", 16),
    ],
)
def test_named_models_know_their_input(source, shape, layer, width):
    arch = read(source)
    assert arch.source == source
    assert tuple(arch.example_input.shape) == (1, *shape)
    assert arch.layer(layer).kind == "conv"
    assert arch.group(layer).size == width


def test_underscores_and_hyphens_name_the_same_zoo_network():
    assert len(read("zoo:mnist_base").layers) == len(read("zoo:mnist-base").layers)


def test_the_nearest_names_are_each_said_once():
    with pytest.raises(EditError, match="Did you mean") as caught:
        read("zoo:resnet20").group("layer1.0.conv")
    assert str(caught.value).count("layer1.0.conv1") == 1


def test_a_named_model_takes_another_size_and_options():
    arch = read("zoo:resnet20", (3, 48, 48), num_classes=7)
    assert arch.layers[-1].output_shape == (1, 7)
    assert arch.layers[0].output_shape == (1, 16, 48, 48)


FILE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.fc = nn.Linear(width, 2)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))

def make(width=7):
    return Net(width)

ready = Net(11)
wrong = 5

def gives_number():
    return 5

def fails():
    raise ValueError("no weights here")

class Branching(Net):
    def forward(self, x):
        x = self.conv(x)
        if x.sum() > 0:  # a branch on values
            x = x + 1
        return self.fc(x.mean((2, 3)))
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "user_networks.py"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize(("attribute", "width"), [("Net", 5), ("make", 7), ("ready", 11)])
def test_a_file_with_a_class_a_function_or_an_instance(file, attribute, width):
    arch = read(f"{file}:{attribute}", (3, 9, 9))
    assert arch.group("conv").size == width


def test_options_reach_the_users_constructor(file):
    assert read(f"{file}:Net", (3, 9, 9), width=13).group("conv").size == 13


# ------------------------------------------------------------------ nothing changes


def test_every_module_gets_its_own_mode_back():
    model = networks.Chain().train()
    model.bn.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    read(model, (3, 9, 9))
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_modes_come_back_after_a_failure_too():
    model = networks.Chain().train()
    model.bn.eval()
    with pytest.raises(ReadError):
        read(model, (4, 9, 9))
    assert model.training
    assert not model.bn.training


def test_no_weight_or_buffer_changes():
    model = networks.Chain().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    same = dict(model.named_parameters())
    read(model, (3, 9, 9))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter is same[name] for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_reading_draws_no_random_numbers():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    read(networks.Chain(), (3, 9, 9))
    model_state = torch.get_rng_state()
    torch.set_rng_state(state)
    networks.Chain()
    assert torch.equal(torch.get_rng_state(), model_state)


def test_an_architecture_is_immutable():
    arch = read(networks.Chain(), (3, 9, 9))
    with pytest.raises(AttributeError):
        arch.source = "other"


def test_layers_have_unique_names_and_shapes():
    arch = read(networks.Residual(), (3, 9, 9))
    names = [layer.name for layer in arch.layers]
    assert len(set(names)) == len(names)
    assert arch.layer("a").output_shape == (1, 7, 9, 9)
    assert arch.layer("a").input_shapes == ((1, 5, 9, 9),)
    assert arch.layer("a").parameters == ("a.weight", "a.bias")


# ------------------------------------------------------------------ outputs


def test_a_dictionary_with_one_tensor_works():
    class Dictionary(networks.Chain):
        def forward(self, x):
            return {"logits": super().forward(x)}

    assert read(Dictionary(), (3, 9, 9)).group("conv").size == 7


def test_a_tuple_works():
    class Pair(networks.Chain):
        def forward(self, x):
            return super().forward(x), None

    assert read(Pair(), (3, 9, 9)).group("conv").size == 7


# ------------------------------------------------------------------ what is refused


def refused(*args, **kwargs):
    """Return the message, which is one line that ends properly."""
    with pytest.raises(ReadError) as caught:
        read(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert message.rstrip().endswith((".", "?", ")", "!"))
    return message


@pytest.mark.parametrize(
    ("source", "nearest"),
    [
        ("torchvision:resnet1", "resnet18"),
        ("timm:ghostnet_10", "ghostnet_100"),
        ("zoo:resnet21", "resnet20"),
        ("resnet18", "torchvision:resnet18"),
        ("mobilenet_v2", "torchvision:mobilenet_v2"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(source, nearest):
    message = refused(source)
    assert nearest in message
    assert source.partition(":")[2] in message


@pytest.mark.parametrize("source", ["", "torchvision:", "nonsense", "keras:resnet"])
def test_a_name_that_is_no_name_is_told_the_forms(source):
    assert "torchvision:NAME" in refused(source)


def test_a_missing_file():
    assert "no file" in refused("nowhere/net.py:Net", (3, 9, 9))


def test_a_missing_attribute_with_the_nearest(file):
    assert "Did you mean" in refused(f"{file}:Nett", (3, 9, 9))


def test_a_file_that_does_not_import(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_this_name\n")
    message = refused(f"{path}:Net", (3, 9, 9))
    assert "could not be imported" in message
    assert "nothing_of_this_name" in message


@pytest.mark.parametrize(("attribute", "said"), [("gives_number", "int"), ("fails", "no weights here")])
def test_a_constructor_that_gives_no_module(file, attribute, said):
    assert said in refused(f"{file}:{attribute}", (3, 9, 9))


def test_an_attribute_that_is_no_constructor(file):
    assert "wrong" in refused(f"{file}:wrong", (3, 9, 9))


def test_options_that_the_constructor_does_not_know():
    assert "colour" in refused("torchvision:resnet18", colour="red")


def test_a_module_without_an_example():
    assert "needs an example input" in refused(networks.Chain())


@pytest.mark.parametrize("text", ["3x", "axbxc", "3x0x9", "", "3x-9x9"])
def test_a_shape_that_is_none(text):
    with pytest.raises(ReadError, match="input shape"):
        parse_shape(text)


def test_a_wrong_number_of_channels():
    message = refused(networks.Chain(), (4, 9, 9))
    assert "1x4x9x9" in message
    assert "Chain does not run" in message
    assert "--input" in message


def test_an_input_too_small():
    assert "1x3x2x2" in refused(networks.Conv3d(), torch.rand(1, 3, 2, 2))


def test_an_optional_second_input_is_none_of_our_business():
    class Optional(networks.Chain):
        def forward(self, image, mask=None):
            return super().forward(image if mask is None else image * mask)

    assert read(Optional(), (3, 9, 9)).group("conv").size == 7


def test_control_flow_on_values_names_the_users_line(file):
    assert read(f"{file}:Branching", (3, 9, 9)).groups
    message = refused(f"{file}:Branching", (3, 9, 9), capture="export")
    assert "torch.export cannot capture it" in message
    assert "user_networks.py" in message
    assert "if x.sum() > 0:  # a branch on values" in message


def test_a_forward_that_raises_is_quoted():
    class Failing(networks.Chain):
        def forward(self, x):
            raise ValueError("the cat is on the keyboard")

    message = refused(Failing(), (3, 9, 9))
    assert "the cat is on the keyboard" in message


def test_a_module_without_forward():
    assert "does not run" in refused(nn.Module(), (3, 9, 9))


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["data parallel", "compiled"]
)
def test_wrappers_are_refused_with_what_to_give_instead(wrap):
    message = refused(wrap(networks.Chain()), (3, 9, 9))
    assert "give the network inside it (model." in message


def test_a_file_without_a_class_lists_those_in_it(file):
    message = refused(str(file), (3, 9, 9))
    assert f"{file}:Branching" in message


def test_a_file_without_a_class_lists_the_functions_in_it(tmp_path):
    (tmp_path / "made.py").write_text("def small(): ...\n")
    message = refused(str(tmp_path / "made.py"), (3, 9, 9))
    assert message.endswith(f"needs the class or function in it that is the network: {tmp_path / 'made.py'}:small.")


def test_lazy_layers_are_to_be_run_once():
    assert "run the network once" in refused(nn.Sequential(nn.LazyConv2d(5, 3), nn.Conv2d(5, 3, 1)), (3, 9, 9))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_a_scripted_part_is_named():
    message = refused(nn.Sequential(torch.jit.script(nn.Conv2d(3, 5, 1)), nn.Conv2d(5, 3, 1)), (3, 9, 9))
    assert "0 in Sequential is compiled by TorchScript" in message


def test_a_name_like_none_is_answered_with_the_groups():
    with pytest.raises(EditError, match="Its groups are input, stem, conv"):
        read(networks.Chain(), (3, 9, 9)).group("zzzz")


def test_what_forward_stores_while_it_is_read_is_undone():
    class Caching(networks.Chain):
        anchors = torch.empty(0)

        def forward(self, x):
            y = super().forward(x)
            self.anchors = torch.arange(y.shape[1]) * 0.5
            return y + self.anchors

    net = Caching()
    read(net, (3, 9, 9))
    assert "anchors" not in vars(net)
    assert copy.deepcopy(net)(torch.zeros(1, 3, 9, 9)).shape == (1, 3)
