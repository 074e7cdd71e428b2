"""Networks that once broke the reading; one test each."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convwright.architecture import read


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
    assert "scaled_dot_product_attention" in arch.groups[2].reason
