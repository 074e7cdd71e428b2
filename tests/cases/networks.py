"""Small networks, each with the structure of one public report; sizes are odd, so that mixed-up axes cannot cancel."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from torchvision.ops import DeformConv2d


class ShuffleUnit(nn.Module):
    def __init__(self, c):
        super().__init__()
        h = c // 2
        self.pw1 = nn.Conv2d(h, h, 1, bias=False)
        self.n1 = nn.BatchNorm2d(h)
        self.dw = nn.Conv2d(h, h, 3, padding=1, groups=h)
        self.pw2 = nn.Conv2d(h, h, 1)

    def forward(self, x):
        keep, work = x.chunk(2, 1)
        work = self.pw2(self.dw(F.relu(self.n1(self.pw1(work)))))
        y = torch.cat((keep, work), 1)
        b, c, h, w = y.size()
        return y.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


class Shuffle(nn.Module):
    """Channel split, shuffle by view/transpose, depthwise branch (VainF/Torch-Pruning#45)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 26, 3, stride=2, padding=1)
        self.units = nn.Sequential(ShuffleUnit(26), ShuffleUnit(26), ShuffleUnit(26))
        self.last = nn.Conv2d(26, 34, 1)
        self.fc = nn.Linear(34, 7)

    def forward(self, x):
        x = F.relu(self.last(self.units(F.relu(self.stem(x)))))
        return self.fc(x.mean([2, 3]))


def _double(i, o):
    return nn.Sequential(
        nn.Conv2d(i, o, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(o, o, 3, padding=1), nn.LeakyReLU(0.2)
    )


class UNet(nn.Module):
    """U-Net: transposed convolutions, skip concatenations, odd sizes padded (VainF/Torch-Pruning#279)."""

    def __init__(self):
        super().__init__()
        self.d1, self.d2, self.d3 = _double(3, 10), _double(10, 14), _double(14, 22)
        self.up2 = nn.ConvTranspose2d(22, 14, 2, stride=2)
        self.u2 = _double(28, 14)
        self.up1 = nn.ConvTranspose2d(14, 10, 2, stride=2)
        self.u1 = _double(20, 10)
        self.out = nn.Conv2d(10, 5, 1)

    @staticmethod
    def fit(x, like):
        dh, dw = like.shape[2] - x.shape[2], like.shape[3] - x.shape[3]
        return F.pad(x, [dw // 2, dw - dw // 2, dh // 2, dh - dh // 2])

    def forward(self, x):
        a = self.d1(x)
        b = self.d2(F.max_pool2d(a, 2))
        c = self.d3(F.max_pool2d(b, 2))
        y = self.u2(torch.cat([self.fit(self.up2(c), b), b], 1))
        y = self.u1(torch.cat([self.fit(self.up1(y), a), a], 1))
        return self.out(y)


class Recurrent(nn.Module):
    """CRNN: convolutions, map to sequence, bidirectional LSTM (VainF/Torch-Pruning#404)."""

    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(1, 10, 3, padding=1)
        self.c2 = nn.Conv2d(10, 14, 3, padding=1)
        self.n2 = nn.BatchNorm2d(14)
        self.rnn = nn.LSTM(14 * 4, 17, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(34, 11)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.n2(self.c2(x))), (2, 1))
        b, c, h, w = x.shape
        x = x.permute(0, 3, 1, 2).reshape(b, w, c * h)
        x, _ = self.rnn(x)
        return self.fc(x)


class GroupedBottleneckBlock(nn.Module):
    def __init__(self, i, m, o, stride):
        super().__init__()
        self.a = nn.Conv2d(i, m, 1, bias=False)
        self.na = nn.BatchNorm2d(m)
        self.b = nn.Conv2d(m, m, 3, stride, 1, groups=3, bias=False)
        self.nb = nn.BatchNorm2d(m)
        self.c = nn.Conv2d(m, o, 1, bias=False)
        self.nc = nn.BatchNorm2d(o)
        self.short = nn.Sequential(nn.Conv2d(i, o, 1, stride), nn.BatchNorm2d(o)) if i != o else nn.Identity()

    def forward(self, x):
        y = F.relu(self.nb(self.b(F.relu(self.na(self.a(x))))))
        return F.relu(self.nc(self.c(y)) + self.short(x))


class GroupedBottleneck(nn.Module):
    """Grouped bottleneck, 3 groups, projection shortcut (VainF/Torch-Pruning#145)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 14, 3, padding=1)
        self.blocks = nn.Sequential(
            GroupedBottleneckBlock(14, 18, 22, 1),
            GroupedBottleneckBlock(22, 18, 22, 1),
            GroupedBottleneckBlock(22, 30, 34, 2),
        )
        self.fc = nn.Linear(34, 5)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class Deformable(nn.Module):
    """Deformable convolution with learned offsets and modulation (VainF/Torch-Pruning#413)."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 10, 3, padding=1)
        self.offset = nn.Conv2d(10, 18, 3, padding=1)
        self.mask = nn.Conv2d(10, 9, 3, padding=1)
        self.deform = DeformConv2d(10, 14, 3, padding=1)
        self.b = nn.Conv2d(14, 22, 3, stride=2, padding=1)
        self.fc = nn.Linear(22, 5)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.relu(self.deform(x, self.offset(x), self.mask(x).sigmoid()))
        return self.fc(F.relu(self.b(x)).mean((2, 3)))


class Gated(nn.Module):
    """1-d convolutions with gated linear units (VainF/Torch-Pruning#366)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv1d(6, 28, 3, padding=1),
            nn.GLU(1),
            nn.Conv1d(14, 44, 3, padding=2, dilation=2),
            nn.GLU(1),
            nn.Conv1d(22, 5, 1),
        )

    def forward(self, x):
        return self.layer(x)


class StyleBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.na = nn.Conv2d(c, c, 3), nn.InstanceNorm2d(c, affine=True)
        self.b, self.nb = nn.Conv2d(c, c, 3), nn.InstanceNorm2d(c, affine=True, track_running_stats=True)

    def forward(self, x):
        y = F.relu(self.na(self.a(F.pad(x, (1, 1, 1, 1), mode="reflect"))))
        return x + self.nb(self.b(F.pad(y, (1, 1, 1, 1), mode="reflect")))


class Style(nn.Module):
    """Instance norms (affine and plain), reflection pads, residual style net (microsoft/nni#4387)."""

    def __init__(self):
        super().__init__()
        self.pad = nn.ReflectionPad2d(2)
        self.a, self.n = nn.Conv2d(3, 10, 5), nn.InstanceNorm2d(10)
        self.down = nn.Conv2d(10, 14, 3, 2, 1)
        self.res = nn.Sequential(StyleBlock(14), StyleBlock(14))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.b = nn.Conv2d(14, 6, 3, padding=1)
        self.out = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.n(self.a(self.pad(x))))
        x = self.up(self.res(F.relu(self.down(x))))
        return self.out(F.relu(self.b(x)))


class TwoInputs(nn.Module):
    """Siamese U-Net: two input images, shared encoder (VainF/Torch-Pruning#172)."""

    def __init__(self):
        super().__init__()
        self.e1 = nn.Conv2d(3, 10, 3, padding=1)
        self.e2 = nn.Conv2d(10, 14, 3, 2, 1)
        self.up = nn.ConvTranspose2d(14, 10, 2, 2)
        self.out = nn.Conv2d(20, 2, 3, padding=1)

    def encode(self, x):
        a = F.relu(self.e1(x))
        return a, F.relu(self.e2(a))

    def forward(self, x, y):
        a1, b1 = self.encode(x)
        a2, b2 = self.encode(y)
        return self.out(torch.cat([self.up((b1 - b2).abs()), (a1 - a2).abs()], 1))


class ExchangeLayer(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.branches = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU(inplace=True))
                for c in widths
            ]
        )
        rows = []
        for i, o in enumerate(widths):
            row = []
            for j, c in enumerate(widths):
                if j > i:
                    row.append(nn.Sequential(nn.Conv2d(c, o, 1, bias=False), nn.BatchNorm2d(o)))
                elif j == i:
                    row.append(None)
                else:
                    row.append(nn.Sequential(nn.Conv2d(c, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o)))
            rows.append(nn.ModuleList(row))
        self.fuse = nn.ModuleList(rows)

    def forward(self, xs):
        xs = [b(x) for b, x in zip(self.branches, xs, strict=True)]
        ys = []
        for i in range(len(xs)):
            y = xs[0] if i == 0 else self.fuse[i][0](xs[0])
            for j in range(1, len(xs)):
                if i == j:
                    y = y + xs[j]
                elif j > i:
                    y = y + F.interpolate(self.fuse[i][j](xs[j]), size=xs[i].shape[-2:], mode="nearest")
                else:
                    y = y + self.fuse[i][j](xs[j])
            ys.append(F.relu(y))
        return ys


class Exchange(nn.Module):
    """Parallel resolutions exchanging features, lists of lists, one output (microsoft/nni#3533)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1)
        self.t = nn.Conv2d(10, 14, 3, 2, 1)
        self.e1, self.e2 = ExchangeLayer([10, 14]), ExchangeLayer([10, 14])
        self.out = nn.Conv2d(24, 5, 1)

    def forward(self, x):
        a = F.relu(self.stem(x))
        a, b = self.e2(self.e1([a, F.relu(self.t(a))]))
        return self.out(torch.cat([a, F.interpolate(b, size=a.shape[-2:], mode="bilinear", align_corners=False)], 1))


class PaddedShortcutBlock(nn.Module):
    def __init__(self, i, o, s):
        super().__init__()
        self.more = o - i
        self.dw, self.pw = nn.Conv2d(i, i, 5, s, 2, groups=i), nn.Conv2d(i, o, 1)
        self.pool = nn.MaxPool2d(s, s) if s > 1 else nn.Identity()

    def forward(self, x):
        y = self.pw(self.dw(x))
        x = self.pool(x)
        if self.more:
            x = F.pad(x, (0, 0, 0, 0, 0, self.more), "constant", 0)
        return F.relu(x + y)


class PaddedShortcut(nn.Module):
    """Shortcut widened by zero-padded channels (alibaba/TinyNeuralNetwork#72)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1)
        self.blocks = nn.Sequential(
            PaddedShortcutBlock(10, 10, 1), PaddedShortcutBlock(10, 16, 2), PaddedShortcutBlock(16, 16, 1)
        )
        self.mid = nn.Conv2d(16, 14, 3, padding=1)
        self.fc = nn.Linear(14, 5)

    def forward(self, x):
        return self.fc(F.relu(self.mid(self.blocks(self.stem(x)))).mean((2, 3)))


class MattingGru(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.ih = nn.Sequential(nn.Conv2d(2 * c, 2 * c, 3, padding=1), nn.Sigmoid())
        self.hh = nn.Sequential(nn.Conv2d(2 * c, c, 3, padding=1), nn.Tanh())

    def forward(self, x, h=None):
        if h is None:
            h = torch.zeros_like(x)
        r, z = self.ih(torch.cat([x, h], 1)).split(self.c, dim=1)
        c = self.hh(torch.cat([x, r * h], 1))
        return (1 - z) * h + z * c


class Matting(nn.Module):
    """Matting decoder: recurrent unit on half of the channels (alibaba/TinyNeuralNetwork#122)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 10, 3, 2, 1), nn.Conv2d(10, 14, 3, 2, 1)
        self.gru = MattingGru(7)
        self.up = nn.Conv2d(24, 12, 3, padding=1)
        self.gru2 = MattingGru(6)
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        f = F.relu(self.a(x))
        g = F.relu(self.b(f))
        p, q = g.split(self.gru.c, dim=1)
        for _ in range(2):
            q = self.gru(p, q)
        g = F.interpolate(torch.cat([p, q], 1), scale_factor=2.0, mode="bilinear", align_corners=False)
        y = F.relu(self.up(torch.cat([g, f], 1)))
        p, q = y.chunk(2, dim=1)
        return self.out(torch.cat([p, self.gru2(q)], 1))


class EinsumLayer(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.W = nn.Parameter(torch.randn(i, o) * 0.1)
        self.b = nn.Parameter(torch.zeros(o))

    def forward(self, x):
        y = torch.einsum("bhwc,cd->bhwd", x.permute(0, 2, 3, 1), self.W) + self.b
        return y.permute(0, 3, 1, 2)


class Einsum(nn.Module):
    """Network-in-network layers by torch.einsum between convolutions (sovrasov/flops-counter.pytorch#105)."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 10, 3, padding=1)
        self.q, self.k, self.v, self.o = (
            EinsumLayer(10, 6),
            EinsumLayer(10, 6),
            EinsumLayer(10, 14),
            EinsumLayer(14, 10),
        )
        self.n = EinsumLayer(10, 22)
        self.b = nn.Conv2d(22, 4, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.a(x))
        q, k, v = self.q(x), self.k(x), self.v(x)
        b, c, h, w = q.shape
        att = torch.einsum("bchw,bcij->bhwij", q, k) * c**-0.5
        att = F.softmax(att.reshape(b, h, w, h * w), -1).reshape(b, h, w, h, w)
        x = x + self.o(torch.einsum("bhwij,bcij->bchw", att, v))
        return self.b(F.relu(self.n(x)))


class DynamicKernelLayer(nn.Module):
    def __init__(self, i, o, k, n=3):
        super().__init__()
        self.i, self.o, self.k = i, o, k
        self.weight = nn.Parameter(torch.randn(n, o, i, k, k) * 0.1)
        self.att = nn.Sequential(nn.Linear(i, 5), nn.ReLU(), nn.Linear(5, n))

    def forward(self, x):
        b, c, h, w = x.shape
        a = F.softmax(self.att(x.mean((2, 3))) / 3.0, dim=1)
        weight = (a @ self.weight.view(self.weight.shape[0], -1)).view(b * self.o, self.i, self.k, self.k)
        y = F.conv2d(x.reshape(1, b * c, h, w), weight, padding=self.k // 2, groups=b)
        return y.view(b, self.o, y.size(-2), y.size(-1))


class DynamicKernel(nn.Module):
    """Dynamic convolution: kernels mixed per image, batch folded into groups (fschmid56/EfficientAT#27)."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 10, 3, 2, 1)
        self.d, self.n = DynamicKernelLayer(10, 14, 3), nn.BatchNorm2d(14)
        self.b = nn.Conv2d(14, 22, 3, 2, 1)
        self.fc = nn.Linear(22, 5)

    def forward(self, x):
        x = F.relu(self.n(self.d(F.relu(self.a(x)))))
        return self.fc(F.relu(self.b(x)).mean((2, 3)))


class ReparametrisedBlock(nn.Module):
    def __init__(self, i, o, s=1, g=1):
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(i, o, 3, s, 1, groups=g, bias=False), nn.BatchNorm2d(o))
        self.one = nn.Sequential(nn.Conv2d(i, o, 1, s, 0, groups=g, bias=False), nn.BatchNorm2d(o))
        self.identity = nn.BatchNorm2d(i) if i == o and s == 1 else None

    def forward(self, x):
        same = 0 if self.identity is None else self.identity(x)
        return F.relu(self.dense(x) + self.one(x) + same)


class Reparametrised(nn.Module):
    """Re-parametrizable block: 3x3, 1x1 and identity norm in parallel, grouped every other (DingXiaoH/RepVGG#102)."""

    def __init__(self):
        super().__init__()
        self.stage0, self.stage1 = (
            ReparametrisedBlock(3, 12, 2),
            nn.Sequential(ReparametrisedBlock(12, 12), ReparametrisedBlock(12, 12, g=2)),
        )
        self.stage2 = nn.Sequential(ReparametrisedBlock(12, 20, 2), ReparametrisedBlock(20, 20, g=2))
        self.fc = nn.Linear(20, 7)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.stage2(self.stage1(self.stage0(x))), 1).flatten(1))


class Unpooling(nn.Module):
    """Unpooling with the indices of the max pools (pytorch/pytorch#25088)."""

    def __init__(self):
        super().__init__()
        self.e1, self.e2 = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 14, 3, padding=1)
        self.pool, self.unpool = nn.MaxPool2d(2, 2, return_indices=True), nn.MaxUnpool2d(2, 2)
        self.mid = nn.Conv2d(14, 14, 3, padding=1)
        self.d2, self.d1 = nn.Conv2d(14, 10, 3, padding=1), nn.Conv2d(10, 6, 3, padding=1)
        self.out = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        a, i1 = self.pool(F.relu(self.e1(x)))
        b, i2 = self.pool(F.relu(self.e2(a)))
        y = self.unpool(F.relu(self.mid(b)), i2, output_size=a.size())
        y = self.unpool(F.relu(self.d2(y)), i1)
        return self.out(F.relu(self.d1(y)))


class InvolutionLayer(nn.Module):
    def __init__(self, c, k, g):
        super().__init__()
        self.k, self.g = k, g
        self.reduce = nn.Sequential(nn.Conv2d(c, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.span = nn.Conv2d(6, k * k * g, 1)

    def forward(self, x):
        w = self.span(self.reduce(x))
        b, c, h, wd = x.shape
        w = w.view(b, self.g, self.k**2, h, wd).unsqueeze(2)
        y = F.unfold(x, self.k, padding=self.k // 2).view(b, self.g, c // self.g, self.k**2, h, wd)
        return (w * y).sum(dim=3).view(b, c, h, wd)


class Involution(nn.Module):
    """Involution: kernels computed from the image, applied by unfold (implus/PytorchInsight#6)."""

    def __init__(self):
        super().__init__()
        self.a, self.inv = nn.Conv2d(3, 14, 3, padding=1), InvolutionLayer(14, 3, 2)
        self.n, self.b = nn.BatchNorm2d(14), nn.Conv2d(14, 10, 3, 2, 1)
        self.fc = nn.Linear(10, 4)

    def forward(self, x):
        x = F.relu(self.n(self.inv(F.relu(self.a(x)))))
        return self.fc(F.relu(self.b(x)).mean((2, 3)))


class TemporalLayer(nn.Module):
    def __init__(self, i, o, d):
        super().__init__()
        self.cut = 2 * d
        self.a = parametrizations.weight_norm(nn.Conv1d(i, o, 3, padding=self.cut, dilation=d))
        self.b = parametrizations.weight_norm(nn.Conv1d(o, o, 3, padding=self.cut, dilation=d))
        self.drop = nn.Dropout(0.1)
        self.down = nn.Conv1d(i, o, 1) if i != o else None

    def forward(self, x):
        y = self.drop(F.relu(self.a(x)[:, :, : -self.cut].contiguous()))
        y = self.drop(F.relu(self.b(y)[:, :, : -self.cut].contiguous()))
        return F.relu(y + (x if self.down is None else self.down(x)))


class Temporal(nn.Module):
    """Temporal net: dilated causal convolutions with weight norm, residual (paul-krug/pytorch-tcn#13)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(TemporalLayer(5, 10, 1), TemporalLayer(10, 14, 2), TemporalLayer(14, 14, 4))
        self.fc = nn.Linear(14, 6)

    def forward(self, x):
        return self.fc(self.net(x)[:, :, -1])


class Vocoder(nn.Module):
    """Weight norm by the old hook (weight_g, weight_v), upsampling vocoder (pytorch/pytorch#28594)."""

    def __init__(self):
        super().__init__()
        self.pre = weight_norm(nn.Conv1d(6, 14, 7, padding=3))
        self.up = weight_norm(nn.ConvTranspose1d(14, 10, 4, 2, 1))
        self.res = nn.ModuleList([weight_norm(nn.Conv1d(10, 10, 3, padding=d, dilation=d)) for d in (1, 3)])
        self.post = weight_norm(nn.Conv1d(10, 1, 7, padding=3))

    def forward(self, x):
        x = self.up(F.leaky_relu(self.pre(x), 0.1))
        total = None
        for conv in self.res:
            y = conv(F.leaky_relu(x, 0.1)) + x
            total = y if total is None else total + y
        return torch.tanh(self.post(F.leaky_relu(total / len(self.res))))


class ConvLstmCell(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.h = h
        self.conv = nn.Conv2d(i + h, 4 * h, 3, padding=1)

    def forward(self, x, state):
        h, c = state
        i, f, o, g = torch.split(self.conv(torch.cat([x, h], dim=1)), self.h, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class ConvLstm(nn.Module):
    """Convolutional LSTM unrolled over the frames of one clip (tokusumi/keras-flops#12)."""

    def __init__(self):
        super().__init__()
        self.enc = nn.Conv2d(2, 10, 3, padding=1)
        self.cell = ConvLstmCell(10, 7)
        self.dec = nn.Conv2d(7, 6, 3, padding=1)
        self.out = nn.Conv2d(6, 3, 1)

    def forward(self, clip):
        b, t, _, h, w = clip.shape
        state = (clip.new_zeros(b, self.cell.h, h, w), clip.new_zeros(b, self.cell.h, h, w))
        for k in range(t):
            state = self.cell(F.relu(self.enc(clip[:, k])), state)
        return self.out(F.relu(self.dec(state[0])))


class DictOutput(nn.Module):
    """Detection transformer style: several outputs in a dictionary (VainF/Torch-Pruning#307)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 10, 3, 2, 1), nn.Conv2d(10, 14, 3, 2, 1)
        self.cls, self.box = nn.Conv2d(14, 6, 1), nn.Conv2d(14, 4, 1)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        return {"logits": self.cls(x).flatten(2), "boxes": self.box(x).sigmoid().flatten(2), "aux": [x.mean((2, 3))]}


class FocusSppLayer(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.conv = nn.Conv2d(4 * i, o, 3, padding=1)

    def forward(self, x):
        return F.silu(
            self.conv(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1))
        )


class FocusSpp(nn.Module):
    """Focus slicing deep in the net, SPP pools joined, space to depth (VainF/Torch-Pruning#100)."""

    def __init__(self):
        super().__init__()
        self.f1, self.f2 = FocusSppLayer(3, 10), FocusSppLayer(10, 14)
        self.cv1, self.cv2 = nn.Conv2d(14, 6, 1), nn.Conv2d(24, 14, 1)
        self.m = nn.MaxPool2d(5, 1, 2)
        self.unshuffle, self.last = nn.PixelUnshuffle(2), nn.Conv2d(36, 4, 1)
        self.mid = nn.Conv2d(14, 9, 3, 1, (1, 2))

    def forward(self, x):
        x = self.cv1(self.f2(self.f1(x)))
        y = self.m(x)
        z = self.m(y)
        x = F.silu(self.cv2(torch.cat([x, y, z, self.m(z)], 1)))
        return self.last(self.unshuffle(F.pad(self.mid(x), (0, 1))[:, :, :6, :8]))


class Fourier(nn.Module):
    """Frequency branch: real and imaginary parts through one convolution, complex, inverse (pytorch/pytorch#167265)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 14, 3, padding=1)
        self.freq = nn.Conv2d(14, 22, 1)
        self.out = nn.Sequential(
            nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(22 * 6, 26), nn.ReLU(), nn.Linear(26, 5)
        )

    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.a(x))))
        f = torch.fft.fft2(x)
        y = torch.complex(self.freq(f.real), self.freq(f.imag))
        return self.out(torch.fft.ifft2(y).real)


class Halves(nn.Module):
    """Concatenation cut in halves of its shape (tianyic/only_train_once_personal_footprint#39)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(3, 14, 3, padding=1)
        self.g = nn.Conv2d(12, 12, 3, padding=1, groups=2)
        self.p = nn.Conv2d(12, 8, 1)
        self.out = nn.Conv2d(20, 5, 1)

    def forward(self, x):
        y = torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1)
        k = y.shape[1] // 2
        left, right = y[:, :k], y[:, k:]
        return self.out(torch.cat([self.g(left), self.p(right)], 1))


class DiffusionBlock(nn.Module):
    def __init__(self, i, o, t):
        super().__init__()
        self.n1, self.a, self.t = nn.GroupNorm(2, i), nn.Conv2d(i, o, 3, padding=1), nn.Linear(t, o)
        self.n2, self.b = nn.GroupNorm(2, o), nn.Conv2d(o, o, 3, padding=1)
        self.skip = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x, e):
        y = self.a(F.silu(self.n1(x))) + self.t(F.silu(e))[:, :, None, None]
        return self.skip(x) + self.b(F.silu(self.n2(y)))


class Diffusion(nn.Module):
    """Diffusion U-Net: step embedding, group norms, GEGLU, attention (microsoft/nni#5524)."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Sequential(nn.Linear(6, 14), nn.SiLU(), nn.Linear(14, 14))
        self.inp, self.r1 = nn.Conv2d(3, 10, 3, padding=1), DiffusionBlock(10, 10, 14)
        self.down, self.r2 = nn.Conv2d(10, 10, 3, 2, 1), DiffusionBlock(10, 18, 14)
        self.norm, self.q, self.k, self.v, self.o = (
            nn.LayerNorm(18),
            nn.Linear(18, 8),
            nn.Linear(18, 8),
            nn.Linear(18, 18),
            nn.Linear(18, 18),
        )
        self.ff, self.ff2 = nn.Linear(18, 44), nn.Linear(22, 18)
        self.up, self.r3 = nn.Conv2d(18, 18, 3, padding=1), DiffusionBlock(28, 10, 14)
        self.out = nn.Conv2d(10, 3, 3, padding=1)

    def forward(self, x):
        t = x.new_full((x.shape[0],), 7.0)
        f = torch.exp(torch.arange(3, dtype=x.dtype) * -1.5)
        e = self.emb(torch.cat([torch.sin(t[:, None] * f), torch.cos(t[:, None] * f)], 1))
        a = self.r1(self.inp(x), e)
        y = self.r2(self.down(a), e)
        b, c, h, w = y.shape
        z = self.norm(y.reshape(b, c, h * w).permute(0, 2, 1))
        z = z + self.o(F.scaled_dot_product_attention(self.q(z), self.k(z), self.v(z)))
        u, g = self.ff(z).chunk(2, dim=-1)
        z = z + self.ff2(u * F.gelu(g))
        y = y + z.permute(0, 2, 1).reshape(b, c, h, w)
        y = self.up(F.interpolate(y, scale_factor=2.0, mode="nearest"))
        return self.out(F.silu(self.r3(torch.cat([y, a], 1), e)))


class BatchFlatten(nn.Module):
    """Flatten without a start axis: the batch goes into the features (one image only) (VainF/Torch-Pruning#50)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 10, 3)
        self.conv2 = nn.Conv2d(10, 6, 3)
        self.linear1 = nn.Linear(6 * 4 * 2, 14)
        self.linear2 = nn.Linear(14, 5)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = torch.flatten(x) if x.shape[0] == 1 else torch.flatten(x, 1)
        return self.linear2(F.relu(self.linear1(x)))


class DictInput(nn.Module):
    """Input is a dictionary of tensors (VainF/Torch-Pruning#421)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 14, 3, 2, 1)
        self.fc = nn.Linear(14, 5)

    def forward(self, batch):
        x = batch["image"]
        return {"scores": self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))}
