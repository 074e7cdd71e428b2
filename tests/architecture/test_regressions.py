"""Networks that once broke the reading; one test each."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convwright as cw
from convwright.architecture import read
from convwright.architecture.rules import RULES
from convwright.diagnose.doctor import diagnose


class Net(nn.Module):
    def __init__(self, forward, **members):
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member)
        self.compute = forward

    def forward(self, x):
        return self.compute(self, x)


def test_a_cast_in_forward_is_an_assertion_without_a_value():
    net = Net(lambda s, x: s.c(x).to(torch.float32).mean((2, 3)), c=nn.Conv2d(3, 5, 1))
    assert read(net, (3, 4, 4)).group("c").size == 5


@pytest.mark.parametrize(
    "widen", [lambda s, x: x.expand(-1, 3, -1, -1), lambda s, x: x * s.w], ids=["expand", "product"]
)
def test_one_input_channel_may_broadcast(widen):
    net = Net(lambda s, x: s.c(widen(s, x)), c=nn.Conv2d(3, 5, 1), w=nn.Parameter(torch.ones(3, 1, 1)))
    assert read(net, (1, 4, 4)).group("c").size == 5


def test_a_linear_operator_with_a_vector():
    net = Net(lambda s, x: F.linear(s.c(x).mean((2, 3)), s.w), c=nn.Conv2d(3, 5, 1), w=nn.Parameter(torch.ones(5)))
    assert "no rule for linear" in read(net, (3, 4, 4)).group("c").reason


def test_a_grouped_transposed_convolution_is_counted_in_its_output():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Conv2d(6, 2, 1))
    group = read(net, (3, 4, 4)).group("1")
    assert (group.size, group.step) == (6, 2)


def test_a_shared_weight_keeps_both_layers_under_their_names():
    net = nn.Sequential(*[nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)])
    net[2].weight = net[1].weight
    arch = read(nn.Sequential(*net, nn.Conv2d(6, 2, 1)), (3, 5, 5))
    assert [layer.name for layer in arch.layers] == ["0", "1", "2", "3"]
    assert arch.group("1") == arch.group("2") == arch.group("0")


def test_tokens_do_not_multiply_labellings():
    """A residual stream of attention blocks: every block must cost the same, not twice the one before."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

        def forward(self, x):
            q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
            x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
            return self.out(x)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.blocks = nn.Conv2d(3, 12, 2, 2), nn.ModuleList(Attention() for _ in range(9))
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            for block in self.blocks:
                x = x + block(x)
            return self.head(x.mean(1))

    arch = read(Tokens(), (3, 14, 14))
    assert max(len(v.planes) for v in arch.channels.follower.values.values() if not isinstance(v, list)) <= 4
    assert not arch.group("patch").frozen
    assert {group.reason for group in arch.groups if "blocks" in group.name} == {""}


def test_the_dtype_of_another_tensor_couples_nothing():
    net = Net(
        lambda s, x: s.d(s.a(x).type_as(s.b(x))) + s.e(s.b(x)),
        a=nn.Conv2d(3, 5, 1),
        b=nn.Conv2d(3, 7, 1),
        d=nn.Conv2d(5, 4, 1),
        e=nn.Conv2d(7, 4, 1),
    )
    assert [group.name for group in read(net, (3, 4, 4)).free_groups] == ["a", "b"]


@pytest.mark.parametrize("make", [torch.Tensor.new_zeros, torch.Tensor.new_ones, torch.Tensor.new_empty])
def test_new_tensors_take_the_dtype_only_and_the_size_of_what_they_meet(make):
    net = Net(
        lambda s, x: s.d(s.a(x) + make(x, (1, s.a(x).shape[1], 1, 1))), a=nn.Conv2d(3, 5, 1), d=nn.Conv2d(5, 4, 1)
    )
    arch = read(net, (3, 4, 4))
    assert arch.group("input").reason == "they are the network's input (x)"
    assert arch.apply(cw.Width("a", 10), verify=make is not torch.Tensor.new_empty).model.a.out_channels == 10


def test_channels_written_into_a_new_tensor_stay_channels():
    def compute(s, x):
        y = s.a(x)
        both = y.new_zeros(y.shape[0], y.shape[1] + 2, *y.shape[2:])
        both[:, : y.shape[1]] = y
        return s.d(both.relu())

    arch = read(Net(compute, a=nn.Conv2d(3, 5, 1), d=nn.Conv2d(7, 4, 1)), (3, 4, 4))
    assert not arch.group("a").frozen
    assert arch.channels.axis_labels(("d.weight", 1)).numel() == 7


def test_pairs_become_complex_numbers_and_pairs_again():
    def compute(s, x):
        y = s.a(x)
        pairs = y.permute(0, 2, 3, 1).reshape(*y.shape[:1], *y.shape[2:], -1, 2).contiguous()
        return s.d(torch.view_as_real(torch.view_as_complex(pairs) * 2j).flatten(3).permute(0, 3, 1, 2))

    arch = read(Net(compute, a=nn.Conv2d(3, 6, 1), d=nn.Conv2d(6, 4, 1)), (3, 4, 4))
    assert arch.apply(cw.Width("a", 12)).changes[0].exact


def test_an_axis_of_length_zero_carries_no_channels():
    net = Net(lambda s, x: s.c(x) + s.anchors.transpose(0, 1).sum(), c=nn.Conv2d(3, 5, 1))
    net.register_buffer("anchors", torch.empty(0, 2))
    assert read(net, (3, 4, 4)).group("c").size == 5


def test_a_rule_that_raises_is_no_rule_and_says_so(monkeypatch):
    def broken(follower, node):
        raise KeyError("a hole in the rule")

    monkeypatch.setitem(RULES, "hardtanh", broken)
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 6, 1), nn.ReLU6(), nn.Conv2d(6, 2, 1))
    arch = read(net, (3, 4, 4))
    assert re.match(r"its rule does not fit \w+ in 2.*KeyError: 'a hole in the rule'", arch.group("1").reason)
    assert arch.apply(cw.Width("0", 10)).changes[0].exact


def test_a_size_that_self_stores_under_another_name_follows():
    class Own(nn.Module):
        def __init__(this):  # noqa: N805
            super().__init__()
            this.half, this.a, this.b = 5, nn.Conv2d(3, 10, 1), nn.Conv2d(5, 4, 1)

        def forward(this, x):  # noqa: N805
            first, second = this.a(x).split(this.half, 1)
            return this.b(first) * this.b(second)

    new = read(Own(), (3, 4, 4)).apply(cw.Width("a", 20))
    assert (new.model.half, new.changes[0].exact) == (10, True)


def test_attention_that_has_no_rule_is_named_where_it_keeps_the_width_of_what_lies_around():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.kv, self.out = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x):
            n, t, c = x.shape
            q = self.q(x).reshape(n, t, 4, 3).transpose(1, 2)
            k, v = self.kv(x).reshape(n, t, 2, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
            out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            return self.out(out.transpose(1, 2).reshape(n, t, c))

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.attention, self.last = nn.Conv2d(3, 12, 2, 2), Attention(), nn.Linear(12, 4)

        def forward(self, x):
            x = self.stem(x).flatten(2).transpose(1, 2)
            return self.last(x + self.attention(x))

    with pytest.raises(
        cw.EditError, match=r"attention.out.weight keeps its width: convwright has no rule for scaled_dot"
    ):
        read(Windows(), (3, 8, 8)).apply(cw.Width("stem", 24))
    about = [text for text in diagnose(read(Windows(), (3, 8, 8))).advice if "the width of stem" in text]
    assert about
    assert all("give it a rule" in text for text in about)


def test_a_slice_without_channels_carries_none():
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            x = self.stem(x)
            return self.last(torch.cat([x, F.relu(x[:, :0])], 1).mean((2, 3)))

    arch = read(Empty(), (3, 8, 8))
    assert [group.name for group in arch.free_groups] == ["stem"]
    assert cw.receptive_field(arch).layers
    assert arch.apply(cw.Width("stem", 5)).changes[0].exact


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_modes_and_values_come_back_beside_a_compiled_child():
    from convwright.architecture.capture.graph import in_mode

    model = nn.Sequential(torch.jit.script(nn.BatchNorm2d(3)), nn.BatchNorm2d(3)).eval()
    with in_mode(model, training=True):
        model(torch.randn(2, 3, 4, 4))
    assert [module.training for module in model] == [False, False]
