"""One tiny network per operator, counted by hand; then what a profile says of a whole network."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convwright.architecture import read
from convwright.cost import ModuleCost, count_by_torch, profile


class Calls(nn.Module):
    """A network that is one function of its input, with modules and parameters given by name."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def weight(*shape):
    return nn.Parameter(torch.rand(*shape))


# name, network, input shape (with batch), multiply-accumulates by hand
BY_HAND = [
    ("conv1d", nn.Conv1d(3, 5, 3), (1, 3, 10), 5 * 8 * 3 * 3),
    ("conv2d", nn.Conv2d(3, 5, 3, padding=1), (1, 3, 8, 7), 5 * 8 * 7 * 3 * 9),
    ("conv2d strided", nn.Conv2d(3, 5, 3, stride=2), (1, 3, 9, 9), 5 * 4 * 4 * 3 * 9),
    ("conv2d same", nn.Conv2d(3, 5, 3, padding="same"), (1, 3, 8, 8), 5 * 64 * 3 * 9),
    ("conv2d groups", nn.Conv2d(4, 6, 3, padding=1, groups=2), (1, 4, 8, 8), 6 * 64 * 2 * 9),
    ("conv2d depthwise", nn.Conv2d(4, 8, 3, padding=1, groups=4), (1, 4, 8, 8), 8 * 64 * 9),
    ("conv3d", nn.Conv3d(2, 3, 3), (1, 2, 5, 5, 5), 3 * 27 * 2 * 27),
    ("transposed 1d", nn.ConvTranspose1d(3, 5, 4, stride=2), (1, 3, 10), 3 * 10 * 5 * 4),
    ("transposed 2d", nn.ConvTranspose2d(3, 5, 4, stride=2), (1, 3, 6, 6), 3 * 36 * 5 * 16),
    ("transposed groups", nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 6, 6), 4 * 36 * 3 * 9),
    ("transposed 3d", nn.ConvTranspose3d(2, 3, 2), (1, 2, 3, 3, 3), 2 * 27 * 3 * 8),
    ("linear", nn.Linear(6, 5), (1, 6), 30),
    ("linear without bias", nn.Linear(6, 5, bias=False), (1, 6), 30),
    ("linear on rows", nn.Linear(6, 5), (1, 7, 4, 6), 28 * 30),
    ("addmm", Calls(lambda m, x: torch.addmm(m.b, x, m.w), b=weight(5), w=weight(6, 5)), (1, 6), 30),
    ("mm", Calls(lambda m, x: torch.mm(x, m.w), w=weight(6, 5)), (1, 6), 30),
    ("bmm", Calls(lambda m, x: torch.bmm(x, x.mT)), (1, 4, 6), 4 * 4 * 6),
    ("matmul", Calls(lambda m, x: x @ m.w, w=weight(6, 5)), (1, 4, 6), 4 * 30),
    ("matmul broadcast", Calls(lambda m, x: x @ m.w, w=weight(3, 6, 5)), (1, 4, 6), 3 * 4 * 30),
    ("row times batch", Calls(lambda m, x: m.w @ x, w=weight(4)), (1, 2, 4, 6), 2 * 4 * 6),
    ("baddbmm", Calls(lambda m, x: torch.baddbmm(m.b, x, m.w), b=weight(5), w=weight(1, 6, 5)), (1, 4, 6), 120),
    ("lstm", Calls(lambda m, x: m.r(x)[0], r=nn.LSTM(6, 5, 2, batch_first=True)), (1, 4, 6), 4 * 20 * (6 + 5 + 5 + 5)),
    (
        "gru both ways",
        Calls(lambda m, x: m.r(x)[0], r=nn.GRU(6, 5, batch_first=True, bidirectional=True)),
        (1, 4, 6),
        4 * 2 * 15 * 11,
    ),
    ("einsum", Calls(lambda m, x: torch.einsum("bij,jk->bik", x, m.w), w=weight(6, 5)), (1, 4, 6), 120),
    ("einsum outer", Calls(lambda m, x: torch.einsum("bi,j->bij", x, m.w), w=weight(5)), (1, 6), 0),
    ("attention", Calls(lambda m, x: F.scaled_dot_product_attention(x, x, x)), (1, 2, 5, 3), 2 * 2 * 75),
    ("no work", nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)), (1, 3, 8, 8), 0),
]


@pytest.mark.parametrize(("model", "shape", "macs"), [c[1:] for c in BY_HAND], ids=[c[0] for c in BY_HAND])
def test_operator_by_hand(model, shape, macs):
    arch = read(model, torch.rand(shape))
    costs = profile(arch)
    assert costs.macs == macs
    assert costs.complete
    assert count_by_torch(model, arch.example_input) == macs
    assert arch.cost_model().macs({}) == macs


def test_multihead_attention_counts_projections_and_both_products():
    model = Calls(lambda m, x: m.attention(x, x, x)[0], attention=nn.MultiheadAttention(8, 2, batch_first=True))
    costs = profile(read(model, torch.rand(1, 4, 8)))
    assert costs.macs == 4 * 8 * 24 + 2 * (4 * 4 * 8) + 4 * 8 * 8
    assert costs.macs == count_by_torch(model, torch.rand(1, 4, 8))


@pytest.mark.parametrize(("vector", "shape"), [(lambda m, x: x @ m.w, (4, 6)), (lambda m, x: m.w @ x[0], (6, 4))])
def test_matrix_times_vector_has_no_formula_in_torch_and_is_listed(vector, shape):
    costs = profile(read(Calls(vector, w=weight(6)), torch.rand(1, *shape)))
    assert costs.macs == 0
    assert not costs.complete
    assert costs.uncounted == ("matmul in the network itself",)


def test_uncounted_names_the_module_once():
    net = nn.Sequential(Calls(lambda m, x: torch.fft.fft(x).real + torch.fft.fft(x).imag), nn.Linear(6, 2))
    costs = profile(read(net, torch.rand(1, 6)))
    assert costs.uncounted == ("fft_fft in 0",)


class Small(nn.Module):
    """Every kind of layer, and one used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.twice = nn.Conv2d(4, 4, 1)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(4, 5)
        self.spare = nn.Linear(2, 2)  # never called

    def forward(self, x):
        x = self.pool(self.stem(x))
        x = self.twice(self.twice(x)) + x
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def small():
    return profile(read(Small(), (3, 8, 8)))


def test_layers(small):
    rows = {layer.name: layer for layer in small.layers}
    assert rows["stem.0"].macs == 4 * 64 * 27
    assert rows["stem.0"].params == 4 * 27
    assert rows["stem.0"].output_bytes == 4 * 64 * 4
    assert rows["stem.1"].norm_ops == rows["stem.2"].activation_ops == 4 * 64
    assert rows["stem.1"].params == 8
    assert rows["pool"].pool_ops == 4 * 16 * 4
    assert rows["mean"].pool_ops == 4 * 16
    assert rows["add"].elementwise_ops == 4 * 16
    assert rows["twice"].macs == rows["twice#2"].macs == 16 * 16
    assert (rows["twice"].params, rows["twice#2"].params) == (20, 0)
    assert rows["head"].other_ops == 0


def test_whole(small):
    assert small.macs == sum(layer.macs for layer in small.layers)
    assert small.params == sum(p.numel() for p in Small().parameters())
    assert small.params == sum(layer.params for layer in small.layers) + 6  # the spare layer
    assert small.buffers == 4 + 4 + 1
    assert small.weight_bytes == 4 * (small.params + 8) + 8


def test_questions(small):
    assert small.by_kind["conv"].macs == 4 * 64 * 27 + 2 * 256
    assert small.by_kind["linear"] == ModuleCost(20, 25, 0)
    modules = small.by_module()
    assert modules[""].macs == small.macs
    assert modules[""].params == small.params
    assert modules["stem"] == ModuleCost(4 * 64 * 27, 4 * 27 + 8, 2 * 256)
    assert modules["twice"] == ModuleCost(512, 20, 0)
    assert modules["spare"] == ModuleCost(0, 6, 0)
    assert "stem.0" in modules
    assert set(small.by_module(depth=1)) == {"", "stem", "twice", "pool", "head", "spare"}
    assert set(small.by_module(depth=0)) == {""}


def test_as_dict_is_plain(small):
    import json

    plain = json.loads(json.dumps(small.as_dict()))
    assert plain["macs"] == small.macs
    assert plain["complete"] is True
    assert plain["layers"][0]["name"] == "stem.0"


@pytest.mark.parametrize("batch", [2, 3])
def test_costs_are_per_sample(small, batch):
    costs = profile(read(Small(), torch.rand(batch, 3, 8, 8)))
    assert costs == small
    assert count_by_torch(Small(), torch.rand(batch, 3, 8, 8)) == small.macs


def test_work_on_weights_is_not_divided_by_the_batch():
    model = Calls(lambda m, x: F.linear(x, m.a @ m.b), a=weight(5, 4), b=weight(4, 6))
    for batch in (1, 3):
        arch = read(model, torch.rand(batch, 6))
        costs = profile(arch)
        assert costs.macs == 5 * 4 * 6 + 30 == count_by_torch(model, arch.example_input)
        assert costs.activation_bytes == 4 * (6 + 30 + 5)
        assert arch.cost_model().macs({}) == costs.macs
        assert arch.cost_model().activation_bytes({}) == costs.activation_bytes


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.c = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.c.weight = self.b.weight

    def forward(self, x):
        return self.c(self.b(self.a(x)).relu()).mean((2, 3))


def test_shared_parameters_once():
    costs = profile(read(Tied(), (3, 6, 6)))
    assert costs.params == sum(p.numel() for p in Tied().parameters()) == 16 + 144
    assert sum(layer.params for layer in costs.layers) == costs.params
    assert costs.weight_bytes == 4 * costs.params
    assert costs.macs == 36 * (12 + 144 + 144)


def test_frozen_parameters_are_parameters():
    model = Small().requires_grad_(False)
    assert profile(read(model, (3, 8, 8))).params == sum(p.numel() for p in model.parameters())


def test_recount_leaves_the_model_as_it_was():
    model = Small().train()
    model.stem.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    count_by_torch(model, torch.rand(2, 3, 8, 8))
    assert [m.training for m in (model, model.stem, model.head)] == [True, False, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_recount_runs_what_needs_real_values():
    model = Calls(lambda m, x: m.layer(x[:, : int(x.sum()) or 6]), layer=nn.Linear(6, 2))
    assert count_by_torch(model, torch.zeros(1, 6)) == 12


def test_recount_passes_the_models_own_error_on():
    with pytest.raises(RuntimeError):
        count_by_torch(nn.Linear(6, 2), torch.zeros(1, 5))


def test_the_independent_count_undoes_what_a_refused_run_stored():
    class Keeping(nn.Module):
        """As torchvision's anchors: what the first run makes is kept, on the device of that run."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)
            self.kept = None

        def forward(self, images):
            self.kept = images.new_ones(1) if self.kept is None else self.kept
            return self.layer(images) * self.kept.item()

    model = Keeping()
    assert count_by_torch(model, torch.randn(1, 3, 2, 2)) == 4 * 3 * 4
    assert model.kept is None
