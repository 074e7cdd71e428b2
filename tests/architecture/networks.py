"""Small networks, one per way in which channels are coupled; prime widths, so that no two axes agree by chance."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Net(nn.Module):
    """Between a stem of 5 channels and a classifier of 3 outputs."""

    width = 5
    head = 5

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, self.width, 3, padding=1)
        self.build()
        self.fc = nn.Linear(self.head, 3)

    def build(self):
        pass

    def middle(self, x):
        return x

    def forward(self, x):
        return self.fc(self.middle(self.stem(x)).mean((2, 3)))


class Chain(Net):
    head = 7

    def build(self):
        self.conv = nn.Conv2d(5, 7, 3, bias=False)
        self.bn = nn.BatchNorm2d(7)

    def middle(self, x):
        return F.relu(self.bn(self.conv(F.relu(x))))


class Residual(Net):
    def build(self):
        self.a = nn.Conv2d(5, 7, 3, padding=1)
        self.b = nn.Conv2d(7, 5, 3, padding=1)

    def middle(self, x):
        return x + self.b(F.relu(self.a(x)))


class Concat(Net):
    head = 11

    def build(self):
        self.a = nn.Conv2d(5, 7, 3, padding=1)
        self.b = nn.Conv2d(12, 11, 1)

    def middle(self, x):
        return self.b(torch.cat([x, F.relu(self.a(x))], 1))


class Split(Net):
    """Unequal parts go different ways."""

    head = 11

    def build(self):
        self.wide = nn.Conv2d(5, 10, 1)
        self.a = nn.Conv2d(3, 11, 1)
        self.b = nn.Conv2d(7, 11, 1)

    def middle(self, x):
        a, b = self.wide(x).split([3, 7], 1)
        return self.a(a) + self.b(b)


class Chunk(Net):
    """Equal parts go different ways, so they stay equal."""

    head = 11

    def build(self):
        self.wide = nn.Conv2d(5, 14, 1)
        self.a = nn.Conv2d(7, 11, 1)
        self.b = nn.Conv2d(7, 11, 1)

    def middle(self, x):
        a, b = self.wide(x).chunk(2, 1)
        return self.a(a) + self.b(b)


class Gated(Net):
    """Equal parts multiplied: each channel needs its partner."""

    head = 7

    def build(self):
        self.wide = nn.Conv2d(5, 14, 1)

    def middle(self, x):
        a, b = self.wide(x).chunk(2, 1)
        return a * torch.sigmoid(b)


class Shuffle(Net):
    """ShuffleNet's view, transpose, view over a concatenation, chunked again."""

    head = 11

    def build(self):
        self.wide = nn.Conv2d(5, 14, 1)
        self.a = nn.Conv2d(7, 7, 3, padding=1)
        self.b = nn.Conv2d(14, 11, 1)

    def middle(self, x):
        left, right = self.wide(x).chunk(2, 1)
        x = torch.cat([left, self.a(right)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.b(x)


class Flatten(Net):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(5, 7, 3, padding=1)
        self.fc = nn.Linear(7 * 9, 3)

    def forward(self, x):
        x = F.adaptive_max_pool2d(self.conv(self.stem(x)), 3)
        return self.fc(torch.flatten(x, 1))


class Grouped(Net):
    head = 15

    def build(self):
        self.wide = nn.Conv2d(5, 9, 1)
        self.conv = nn.Conv2d(9, 15, 3, padding=1, groups=3)

    def middle(self, x):
        return self.conv(F.relu(self.wide(x)))


class Depthwise(Net):
    def build(self):
        self.conv = nn.Conv2d(5, 5, 3, padding=1, groups=5)

    def middle(self, x):
        return self.conv(x)


class Multiplier(Net):
    head = 15

    def build(self):
        self.conv = nn.Conv2d(5, 15, 3, padding=1, groups=5)

    def middle(self, x):
        return self.conv(x)


class SqueezeExcite(Net):
    def build(self):
        self.down = nn.Conv2d(5, 3, 1)
        self.up = nn.Conv2d(3, 5, 1)

    def middle(self, x):
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class SplitAttention(Net):
    """ResNeSt: the parts of a radix are weighted by a softmax between them and summed."""

    head = 7

    def build(self):
        self.wide = nn.Conv2d(5, 14, 1)
        self.down = nn.Conv2d(7, 3, 1)
        self.up = nn.Conv2d(3, 14, 1)

    def middle(self, x):
        n, _, h, w = x.shape
        parts = self.wide(x).reshape(n, 2, -1, h, w)
        gap = parts.sum(1).mean((2, 3), keepdim=True)
        gate = self.up(F.relu(self.down(gap))).reshape(n, 2, -1, 1, 1).softmax(1)
        return (parts * gate).sum(1)


class SelectiveKernel(Net):
    """SKNet: branches stacked, weighted, summed."""

    head = 7

    def build(self):
        self.a = nn.Conv2d(5, 7, 3, padding=1)
        self.b = nn.Conv2d(5, 7, 3, padding=2, dilation=2)
        self.down = nn.Conv2d(7, 3, 1)
        self.up = nn.Conv2d(3, 14, 1, bias=False)

    def middle(self, x):
        parts = torch.stack([self.a(x), self.b(x)], 1)
        gate = self.up(F.relu(self.down(parts.sum(1).mean((2, 3), keepdim=True))))
        gate = gate.view(gate.shape[0], 2, -1, 1, 1).softmax(1)
        return (parts * gate).sum(1)


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        weight = self.weight
        mean = weight.mean((1, 2, 3), keepdim=True)
        std = weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (weight - mean) / (std + 1e-5), self.bias, padding=self.padding)


class WeightStandardised(Net):
    head = 7

    def build(self):
        self.conv = StandardisedConv(5, 7, 3, padding=1)

    def middle(self, x):
        return self.conv(F.relu(x))


class WeightNorm(Net):
    head = 7

    def build(self):
        self.conv = parametrizations.weight_norm(nn.Conv2d(5, 7, 3, padding=1))

    def middle(self, x):
        return self.conv(F.relu(x))


class Shared(Net):
    """One module called twice ties its own input to its output."""

    def build(self):
        self.conv = nn.Conv2d(5, 5, 3, padding=1)

    def middle(self, x):
        return self.conv(F.relu(self.conv(x)))


class LayerScale(Net):
    def build(self):
        self.scale = nn.Parameter(torch.ones(5, 1, 1))

    def middle(self, x):
        return x * self.scale


class ViewedScale(Net):
    def build(self):
        self.scale = nn.Parameter(torch.ones(5))

    def middle(self, x):
        return x * self.scale.view(1, -1, 1, 1)


class BlurPool(Net):
    """A fixed filter in a buffer, expanded over the channels."""

    def build(self):
        self.register_buffer("filter", torch.tensor([1.0, 2.0, 1.0]).outer(torch.ones(3)))

    def middle(self, x):
        kernel = self.filter[None, None].repeat(x.shape[1], 1, 1, 1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), kernel, stride=2, groups=x.shape[1])


class ChannelsLast(Net):
    """ConvNeXt's block: depthwise, then norm and linear layers on the last axis."""

    def build(self):
        self.depthwise = nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.norm = nn.LayerNorm(5)
        self.up, self.down = nn.Linear(5, 11), nn.Linear(11, 5)
        self.gamma = nn.Parameter(torch.ones(5))

    def middle(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class GroupNorm(Net):
    head = 15

    def build(self):
        self.conv = nn.Conv2d(5, 15, 1)
        self.norm = nn.GroupNorm(3, 15)

    def middle(self, x):
        return self.norm(self.conv(x))


class PReLU(Net):
    def build(self):
        self.act = nn.PReLU(5)

    def middle(self, x):
        return self.act(x)


class PixelShuffle(Net):
    head = 7

    def build(self):
        self.conv = nn.Conv2d(5, 28, 1)

    def middle(self, x):
        return F.pixel_shuffle(self.conv(x), 2)


class Transposed(Net):
    head = 7

    def build(self):
        self.conv = nn.ConvTranspose2d(5, 7, 2, 2)

    def middle(self, x):
        return self.conv(F.relu(x))


class Stacked(Net):
    head = 7

    def build(self):
        self.a, self.b = nn.Conv2d(5, 7, 1), nn.Conv2d(5, 7, 1)

    def middle(self, x):
        return torch.stack([self.a(x), self.b(x)]).amax(0)


class Unbound(Net):
    head = 7

    def build(self):
        self.a, self.b = nn.Conv2d(5, 7, 1), nn.Conv2d(5, 7, 1)

    def middle(self, x):
        a, b = torch.stack([self.a(x), self.b(x)]).unbind(0)
        return a * b


class OptionA(Net):
    """The parameter-free shortcut of CIFAR ResNets: zeros for the new channels."""

    head = 11

    def build(self):
        self.conv = nn.Conv2d(5, 11, 3, 2, 1)

    def middle(self, x):
        return self.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3))


class NoRule(Net):
    """An operator across the channels that nothing is known about."""

    def build(self):
        self.inner = Cumulated()

    def middle(self, x):
        return self.inner(x)


class Cumulated(nn.Module):
    def forward(self, x):
        return torch.cumprod(x, 1)  # the line that the reason names


class Recurrent(Net):
    """Channels as features of a sequence of positions: two layers, both ways, gates of one channel in one row each."""

    def build(self):
        self.rnn, self.back = nn.LSTM(5, 4, 2, bidirectional=True, batch_first=True), nn.Linear(8, 5)
        self.gru = nn.GRU(5, 5, bias=False)

    def middle(self, x):
        batch, _, height, width = x.shape
        steps = x.flatten(2).transpose(1, 2)
        steps = self.back(self.rnn(steps)[0]).transpose(0, 1)
        return self.gru(steps)[0].permute(1, 2, 0).reshape(batch, -1, height, width)


class Masked(Net):
    """A number written by a mask, and patches cut out by unfolding."""

    def middle(self, x):
        x = x.clone()
        x[x < 0] = 0.5
        return x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))


class Conv1d(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 5, 3), nn.Conv1d(5, 7, 3)
        self.fc = nn.Linear(7, 3)

    def forward(self, x):
        return self.fc(self.b(F.relu(self.a(x))).amax(2))


class Conv3d(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv3d(3, 5, 3), nn.Conv3d(5, 7, 3)
        self.bn, self.fc = nn.BatchNorm3d(7), nn.Linear(7, 3)

    def forward(self, x):
        return self.fc(F.avg_pool3d(self.bn(self.b(F.relu(self.a(x)))), 3).flatten(1))


class Returns(Chain):
    """A dictionary and a tuple come out."""

    def forward(self, x):
        x = self.middle(self.stem(x))
        return {"logits": self.fc(x.mean((2, 3))), "maps": (x,)}


def randomised(model, seed=0):
    """Give every parameter and buffer random values in float64, positive where they are variances."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(noise + 0.5 if "running_var" in name else noise - 0.5)
    return model
