"""Networks for 32x32 images as repositories for CIFAR hold them, in the ways they write them, only narrower.

What matters is the code: views with numbers written down, lambdas as shortcuts, pools by functions, lists that are
concatenated, channels counted while building, random branches in training.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(i, o, k=1, s=1, p=0, g=1, act=True):
    layers = [nn.Conv2d(i, o, k, s, p, groups=g, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if act else nn.Sequential(*layers)


# ------------------------------------------------------------------ plain chains


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        out = F.max_pool2d(F.relu(self.conv1(x)), 2)
        out = F.max_pool2d(F.relu(self.conv2(out)), 2)
        out = out.view(out.size(0), -1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(out)))))


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        layers, i = [], 3
        for x in [16, "M", 24, "M", 32, 32, "M", 40, "M", 40, "M"]:
            layers += (
                [nn.MaxPool2d(2, 2)] if x == "M" else [nn.Conv2d(i, x, 3, padding=1), nn.BatchNorm2d(x), nn.ReLU(True)]
            )
            i = i if x == "M" else x
        self.features = nn.Sequential(*layers, nn.AvgPool2d(kernel_size=1, stride=1))
        self.classifier = nn.Sequential(nn.Linear(40, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10))

    def forward(self, x):
        out = self.features(x)
        return self.classifier(out.view(out.size()[0], -1))


class AlexNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 11, stride=4, padding=5), nn.ReLU(True), nn.MaxPool2d(2, 2),
            nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(True), nn.MaxPool2d(2, 2), nn.Conv2d(32, 24, 3, padding=1),
            nn.ReLU(True), nn.MaxPool2d(2, 2),
        )  # fmt: skip
        self.classifier = nn.Linear(24, 10)

    def forward(self, x):
        x = self.features(x)
        return self.classifier(x.view(x.size(0), 24))


class NetworkInNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        layers = []
        for i, (a, b, c, k) in zip((3, 16, 24), ((24, 20, 16, 5), (24, 24, 24, 5), (24, 24, 10, 3)), strict=True):
            layers += [nn.Conv2d(i, a, k, padding=k // 2), nn.ReLU(True), nn.Conv2d(a, b, 1), nn.ReLU(True)]
            layers += [nn.Conv2d(b, c, 1), nn.ReLU(True), nn.MaxPool2d(3, 2, 1) if k == 5 else nn.AvgPool2d(8)]
        self.net = nn.Sequential(*layers)

    def forward(self, x):
        return self.net(x).view(x.size(0), 10)


class SqueezeNet(nn.Module):
    class Fire(nn.Module):
        def __init__(self, i, o, squeeze):
            super().__init__()
            self.squeeze = conv_bn(i, squeeze)
            self.expand_1x1, self.expand_3x3 = conv_bn(squeeze, o // 2), conv_bn(squeeze, o // 2, 3, p=1)

        def forward(self, x):
            x = self.squeeze(x)
            return torch.cat([self.expand_1x1(x), self.expand_3x3(x)], 1)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 24, 3, p=1), nn.MaxPool2d(2, 2))
        self.fire2, self.fire3, self.fire4 = self.Fire(24, 32, 8), self.Fire(32, 32, 8), self.Fire(32, 48, 8)
        self.conv10, self.avg, self.maxpool = nn.Conv2d(48, 10, 1), nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(2, 2)

    def forward(self, x):
        f2 = self.fire2(self.stem(x))
        f3 = self.fire3(f2) + f2
        x = self.avg(self.conv10(self.fire4(self.maxpool(f3))))
        return x.view(x.size(0), -1)


# ------------------------------------------------------------------ residual networks


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, i, planes, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or i != self.expansion * planes:
            self.shortcut = nn.Sequential(nn.Conv2d(i, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, i, planes, stride=1, groups=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        o = self.expansion * planes
        self.conv3, self.bn3 = nn.Conv2d(planes, o, 1, bias=False), nn.BatchNorm2d(o)
        self.shortcut = nn.Sequential()
        if stride != 1 or i != o:
            self.shortcut = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.shortcut(x)
        return F.relu(out)


class PreActBlock(nn.Module):
    expansion = 1

    def __init__(self, i, planes, stride=1):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, planes, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(planes), nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        if stride != 1 or i != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(i, planes, 1, stride, bias=False))

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out += shortcut
        return out


class SEBlock(PreActBlock):
    def __init__(self, i, planes, stride=1):
        super().__init__(i, planes, stride)
        self.fc1, self.fc2 = nn.Conv2d(planes, planes // 4, 1), nn.Conv2d(planes // 4, planes, 1)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        w = F.avg_pool2d(out, out.size(2))
        w = torch.sigmoid(self.fc2(F.relu(self.fc1(w))))
        out = out * w
        out += shortcut
        return out


class BottleneckSE(nn.Module):
    expansion = 2

    def __init__(self, i, planes, stride=1):
        super().__init__()
        o = planes * self.expansion
        self.residual = nn.Sequential(conv_bn(i, planes), conv_bn(planes, planes, 3, stride, 1), conv_bn(planes, o))
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.excitation = nn.Sequential(nn.Linear(o, o // 4), nn.ReLU(True), nn.Linear(o // 4, o), nn.Sigmoid())
        self.shortcut = conv_bn(i, o, s=stride, act=False) if stride != 1 or i != o else nn.Sequential()

    def forward(self, x):
        shortcut, residual = self.shortcut(x), self.residual(x)
        squeeze = self.squeeze(residual)
        squeeze = squeeze.view(squeeze.size(0), -1)
        excitation = self.excitation(squeeze)
        excitation = excitation.view(residual.size(0), residual.size(1), 1, 1)
        return F.relu(residual * excitation.expand_as(residual) + shortcut)


class LambdaLayer(nn.Module):
    def __init__(self, lambd):
        super().__init__()
        self.lambd = lambd

    def forward(self, x):
        return self.lambd(x)


class OptionABlock(BasicBlock):
    """Every second position, channels padded by zeros, in a lambda."""

    def __init__(self, i, planes, stride=1):
        super().__init__(i, planes, stride)
        if stride != 1 or i != planes:
            self.shortcut = LambdaLayer(
                lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0)
            )


class DownsampleA(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.avg = nn.AvgPool2d(kernel_size=1, stride=stride)

    def forward(self, x):
        x = self.avg(x)
        return torch.cat((x, x.mul(0)), 1)


class MulZeroBlock(BasicBlock):
    """The first half of the shortcut is the input, the second zero times it."""

    def __init__(self, i, planes, stride=1):
        super().__init__(i, planes, stride)
        if stride != 1 or i != planes:
            self.shortcut = DownsampleA(i, planes, stride)


class WideBlock(nn.Module):
    expansion = 1

    def __init__(self, i, planes, stride=1):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, planes, 3, padding=1, bias=True)
        self.dropout = nn.Dropout(p=0.3)
        self.bn2, self.conv2 = nn.BatchNorm2d(planes), nn.Conv2d(planes, planes, 3, stride, 1, bias=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or i != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(i, planes, 1, stride, bias=True))

    def forward(self, x):
        out = self.dropout(self.conv1(F.relu(self.bn1(x))))
        out = self.conv2(F.relu(self.bn2(out)))
        out += self.shortcut(x)
        return out


class StochasticBlock(BasicBlock):
    def forward(self, x):
        if self.training and torch.equal(torch.bernoulli(torch.tensor([0.8])), torch.zeros(1)):
            return self.shortcut(x)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu((out if self.training else 0.8 * out) + self.shortcut(x))


class PyramidBlock(nn.Module):
    """Widths grow block by block; the shortcut is padded by zeros that forward makes."""

    expansion = 1

    def __init__(self, i, planes, stride=1):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, planes, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(planes), nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.downsample = nn.AvgPool2d(2, 2, ceil_mode=True) if stride != 1 else None

    def forward(self, x):
        out = self.bn3(self.conv2(F.relu(self.bn2(self.conv1(self.bn1(x))))))
        shortcut = x if self.downsample is None else self.downsample(x)
        batch, have, side = out.size(0), shortcut.size(1), shortcut.size()[2:4]
        if out.size(1) != have:
            padding = torch.zeros(batch, out.size(1) - have, side[0], side[1])
            out += torch.cat((shortcut, padding), 1)
        else:
            out += shortcut
        return out


class ShakeBlock(nn.Module):
    expansion = 1

    def __init__(self, i, planes, stride=1):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.ReLU(), conv_bn(i, planes, 3, stride, 1), conv_bn(planes, planes, 3, p=1, act=False))
            for _ in range(2)
        )
        self.stride, self.equal = stride, i == planes
        if not self.equal:
            self.left, self.right = nn.Conv2d(i, planes // 2, 1), nn.Conv2d(i, planes // 2, 1)
            self.bn = nn.BatchNorm2d(planes)

    def forward(self, x):
        a, b = (branch(x) for branch in self.branches)
        alpha = torch.rand(x.size(0), 1, 1, 1) if self.training else 0.5
        mixed = alpha * a + (1 - alpha) * b
        if self.equal:
            return x + mixed
        y = F.relu(x)
        left = self.left(F.avg_pool2d(y, 1, self.stride))
        right = self.right(F.avg_pool2d(F.pad(y, (-1, 1, -1, 1)), 1, self.stride))
        return self.bn(torch.cat([left, right], 1)) + mixed


class ResNet(nn.Module):
    def __init__(self, block, widths=(16, 32, 64), blocks=2, pool=8):
        super().__init__()
        self.in_planes, self.pool = widths[0], pool
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0])
        for k, width in enumerate(widths):
            setattr(self, f"layer{k + 1}", self._make_layer(block, width, blocks, 1 if k == 0 else 2))
        self.stages = len(widths)
        self.linear = nn.Linear(widths[-1] * block.expansion if isinstance(block, type) else self.in_planes, 10)

    def _make_layer(self, block, planes, blocks, stride):
        layers = []
        for s in [stride] + [1] * (blocks - 1):
            layers.append(block(self.in_planes, planes, s))
            self.in_planes = planes * layers[-1].expansion
        return nn.Sequential(*layers)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        for k in range(self.stages):
            out = getattr(self, f"layer{k + 1}")(out)
        out = F.avg_pool2d(out, self.pool)
        out = out.view(out.size(0), -1)
        return self.linear(out)


class SizedPool(ResNet):
    """Pools by the size that arrives."""

    def forward(self, x):
        out = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        out = F.avg_pool2d(out, out.size()[3])
        return self.linear(out.view(out.size(0), -1))


class PyramidNet(ResNet):
    def __init__(self):
        super().__init__(PyramidBlock, (16, 22, 28), 1)


class RiR(nn.Module):
    """ResNet in ResNet: a residual and a transient stream that exchange."""

    class Block(nn.Module):
        def __init__(self, i, o, stride=1):
            super().__init__()
            self.residual, self.transient = nn.Conv2d(i, o, 3, stride, 1), nn.Conv2d(i, o, 3, stride, 1)
            self.residual_across, self.transient_across = nn.Conv2d(i, o, 3, stride, 1), nn.Conv2d(i, o, 3, stride, 1)
            self.residual_bn = nn.Sequential(nn.BatchNorm2d(o), nn.ReLU(True))
            self.transient_bn = nn.Sequential(nn.BatchNorm2d(o), nn.ReLU(True))
            self.shortcut = nn.Conv2d(i, o, 1, stride) if i != o or stride != 1 else nn.Sequential()

        def forward(self, x):
            r, t = x
            rr = self.residual(r) + self.shortcut(r) + self.transient_across(t)
            return self.residual_bn(rr), self.transient_bn(self.transient(t) + self.residual_across(r))

    def __init__(self):
        super().__init__()
        self.pre_residual, self.pre_transient = conv_bn(3, 12, 3, p=1), conv_bn(3, 12, 3, p=1)
        self.blocks = nn.Sequential(self.Block(12, 12), self.Block(12, 20, 2), self.Block(20, 20))
        self.conv = conv_bn(40, 10, act=False)
        self.classifier = nn.Sequential(nn.Linear(10, 32), nn.Dropout(), nn.Linear(32, 10))

    def forward(self, x):
        r, t = self.blocks((self.pre_residual(x), self.pre_transient(x)))
        h = F.adaptive_avg_pool2d(self.conv(torch.cat([r, t], dim=1)), 1)
        return self.classifier(h.view(h.size()[0], -1))


class Attention(nn.Module):
    """Residual attention: a trunk times a mask from an hourglass, resized to the size that was."""

    def __init__(self):
        super().__init__()
        res = partial(PreActBlock, 16, 16)
        self.pre = conv_bn(3, 16, 3, p=1)
        self.trunk, self.down1, self.down2, self.skip = (nn.Sequential(res(), res()) for _ in range(4))
        self.up1, self.up2, self.last = res(), res(), PreActBlock(16, 24, 2)
        self.sigmoid = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(True), nn.Conv2d(16, 16, 1, bias=False), nn.Sigmoid())
        self.linear = nn.Linear(24, 10)

    def forward(self, x):
        x = self.pre(x)
        size = (x.size(2), x.size(3))
        trunk = self.trunk(x)
        a = self.down1(F.max_pool2d(x, 3, 2, 1))
        b = self.down2(F.max_pool2d(a, 3, 2, 1))
        b = self.up1(F.interpolate(b, size=(a.size(2), a.size(3)), mode="bilinear", align_corners=True)) + self.skip(a)
        mask = self.sigmoid(self.up2(F.interpolate(b, size=size, mode="bilinear", align_corners=True)))
        out = F.adaptive_avg_pool2d(self.last((1 + mask) * trunk), 1)
        return self.linear(out.view(out.size(0), -1))


# ------------------------------------------------------------------ dense networks, several branches


class DenseNet(nn.Module):
    class Layer(nn.Module):
        def __init__(self, i, growth):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, 4 * growth, 1, bias=False)
            self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

        def forward(self, x):
            out = self.conv1(F.relu(self.bn1(x)))
            out = self.conv2(F.relu(self.bn2(out)))
            return torch.cat([out, x], 1)

    class Transition(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.bn, self.conv = nn.BatchNorm2d(i), nn.Conv2d(i, o, 1, bias=False)

        def forward(self, x):
            return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)

    def __init__(self, growth=6, blocks=(2, 3, 2)):
        super().__init__()
        planes = 2 * growth
        self.conv1, layers = nn.Conv2d(3, planes, 3, padding=1, bias=False), []
        for number, count in enumerate(blocks):
            for _ in range(count):
                layers.append(self.Layer(planes, growth))
                planes += growth
            if number < len(blocks) - 1:
                out = math.floor(planes * 0.5)
                layers.append(self.Transition(planes, out))
                planes = out
        self.dense, self.bn, self.linear = nn.Sequential(*layers), nn.BatchNorm2d(planes), nn.Linear(planes, 10)

    def forward(self, x):
        out = self.dense(self.conv1(x))
        out = F.avg_pool2d(F.relu(self.bn(out)), 8)
        return self.linear(out.view(out.size(0), -1))


class ListDenseNet(nn.Module):
    """Keeps a list of what every layer gave, and concatenates all of it each time; no bottleneck."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(10 + 5 * k), nn.ReLU(), nn.Conv2d(10 + 5 * k, 5, 3, padding=1))
            for k in range(4)
        )
        self.linear = nn.Linear(30, 10)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.linear(torch.cat(features, 1).mean(3).mean(2))


class Branches(nn.Module):
    """Branches side by side, concatenated: the block of all inceptions."""

    def __init__(self, *branches):
        super().__init__()
        for k, branch in enumerate(branches):
            setattr(self, f"b{k + 1}", branch)
        self.count = len(branches)

    def forward(self, x):
        return torch.cat([getattr(self, f"b{k + 1}")(x) for k in range(self.count)], 1)


def inception(i, a, b3, c3, b5, c5, pool):
    five = nn.Sequential(conv_bn(i, b5), conv_bn(b5, c5, 3, p=1), conv_bn(c5, c5, 3, p=1))
    pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(i, pool))
    return Branches(conv_bn(i, a), nn.Sequential(conv_bn(i, b3), conv_bn(b3, c3, 3, p=1)), five, pooled)


class GoogLeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.pre_layers = conv_bn(3, 24, 3, p=1)
        self.a3, self.b3 = inception(24, 8, 12, 16, 4, 6, 6), inception(36, 10, 12, 14, 6, 8, 8)
        self.a4, self.maxpool = inception(40, 12, 10, 18, 4, 8, 10), nn.MaxPool2d(3, stride=2, padding=1)
        self.avgpool, self.linear = nn.AvgPool2d(8, stride=1), nn.Linear(48, 10)

    def forward(self, x):
        out = self.b3(self.a3(self.maxpool(self.pre_layers(x))))
        out = self.avgpool(self.a4(self.maxpool(out)))
        return self.linear(out.view(out.size(0), -1))


class InceptionV3(nn.Module):
    """Factorised kernels, and a branch that forks at its end."""

    class Forked(nn.Module):
        def __init__(self, i):
            super().__init__()
            self.b1, self.stem = conv_bn(i, 12), conv_bn(i, 16)
            self.a, self.b = conv_bn(16, 12, (1, 3), p=(0, 1)), conv_bn(16, 12, (3, 1), p=(1, 0))
            self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_bn(i, 8))

        def forward(self, x):
            fork = self.stem(x)
            fork = torch.cat([self.a(fork), self.b(fork)], 1)
            return torch.cat([self.b1(x), fork, self.pool(x)], 1)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 12, 3, p=1), conv_bn(12, 20, 3, p=1))
        self.mixed = Branches(
            conv_bn(20, 12),
            nn.Sequential(conv_bn(20, 8), conv_bn(8, 8, (1, 7), p=(0, 3)), conv_bn(8, 12, (7, 1), p=(3, 0))),
            nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), conv_bn(20, 8)),
        )
        self.reduce = Branches(conv_bn(32, 16, 3, 2), nn.MaxPool2d(3, 2))
        self.forked, self.dropout, self.linear = self.Forked(48), nn.Dropout2d(), nn.Linear(44, 10)

    def forward(self, x):
        x = self.forked(self.reduce(self.mixed(self.stem(x))))
        x = self.dropout(F.adaptive_avg_pool2d(x, (1, 1)))
        return self.linear(x.view(x.size(0), -1))


class InceptionV4(nn.Module):
    """A stem of concatenated reductions; the layers of a stage built in a loop."""

    def __init__(self):
        super().__init__()
        self.stem1, self.stem_pool, self.stem_conv = conv_bn(3, 12, 3), nn.MaxPool2d(3, 1), conv_bn(12, 14, 3)
        self.stage = self._stage(2, 26)
        self.reduce, self.linear = Branches(nn.MaxPool2d(3, 2), conv_bn(26, 12, 3, 2)), nn.Linear(38, 10)

    @staticmethod
    def _stage(count, i):
        layers = nn.Sequential()
        for k in range(count):
            double = nn.Sequential(conv_bn(i, 6), conv_bn(6, 8, 3, p=1))
            layers.add_module(
                f"inception_{k}", Branches(conv_bn(i, 10), double, nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_bn(i, 8)))
            )
        return layers

    def forward(self, x):
        x = self.stem1(x)
        x = torch.cat([self.stem_pool(x), self.stem_conv(x)], 1)
        x = self.reduce(self.stage(x))
        return self.linear(F.adaptive_avg_pool2d(x, 1).view(-1, 38))


class InceptionResNet(nn.Module):
    """Concatenated branches, brought back to the input's width and added with a factor."""

    class Block(nn.Module):
        def __init__(self, i):
            super().__init__()
            self.mixed = Branches(conv_bn(i, 6), nn.Sequential(conv_bn(i, 6), conv_bn(6, 8, 3, p=1)))
            self.reduction1x1, self.shortcut = nn.Conv2d(14, i, 1), nn.Conv2d(i, i, 1)
            self.bn, self.scale = nn.BatchNorm2d(i), 0.2

        def forward(self, x):
            residual = self.reduction1x1(self.mixed(x))
            return F.relu(self.bn(residual * self.scale + self.shortcut(x)))

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = conv_bn(3, 18, 3, 2, 1), nn.Sequential(self.Block(18), self.Block(18))
        self.linear = nn.Linear(18, 10)

    def forward(self, x):
        return self.linear(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).view(-1, 18))


class DPN(nn.Module):
    """Dual path: the first channels are added, the others concatenated; their number stands in the module."""

    class Block(nn.Module):
        def __init__(self, last, inside, out, dense, stride, first):
            super().__init__()
            self.out_planes, self.dense_depth = out, dense
            self.conv1, self.bn1 = nn.Conv2d(last, inside, 1, bias=False), nn.BatchNorm2d(inside)
            self.conv2 = nn.Conv2d(inside, inside, 3, stride, 1, groups=4, bias=False)
            self.bn2, self.conv3 = nn.BatchNorm2d(inside), nn.Conv2d(inside, out + dense, 1, bias=False)
            self.bn3, self.shortcut = nn.BatchNorm2d(out + dense), nn.Sequential()
            if first:
                self.shortcut = conv_bn(last, out + dense, s=stride, act=False)

        def forward(self, x):
            out = F.relu(self.bn1(self.conv1(x)))
            out = F.relu(self.bn2(self.conv2(out)))
            out = self.bn3(self.conv3(out))
            x = self.shortcut(x)
            d = self.out_planes
            out = torch.cat([x[:, :d, :, :] + out[:, :d, :, :], x[:, d:, :, :], out[:, d:, :, :]], 1)
            return F.relu(out)

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.last_planes = 16
        self.layer1, self.layer2 = self._make_layer(8, 24, 4, 1), self._make_layer(16, 32, 6, 2)
        self.linear = nn.Linear(32 + 3 * 6, 10)

    def _make_layer(self, inside, out, dense, stride):
        layers = []
        for k, s in enumerate([stride, 1]):
            layers.append(self.Block(self.last_planes, inside, out, dense, s, k == 0))
            self.last_planes = out + (k + 2) * dense
        return nn.Sequential(*layers)

    def forward(self, x):
        out = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        out = F.avg_pool2d(out, 4)
        out = F.adaptive_avg_pool2d(out, 1)
        return self.linear(out.view(out.size(0), -1))


# ------------------------------------------------------------------ aggregated trees, cells


class Root(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o)

    def forward(self, xs):
        return F.relu(self.bn(self.conv(torch.cat(xs, 1))))


class SimpleTree(nn.Module):
    def __init__(self, i, o, level=1, stride=1):
        super().__init__()
        self.root = Root(2 * o, o)
        if level == 1:
            self.left_tree, self.right_tree = BasicBlock(i, o, stride), BasicBlock(o, o, 1)
        else:
            self.left_tree = SimpleTree(i, o, level - 1, stride)
            self.right_tree = SimpleTree(o, o, level - 1, 1)

    def forward(self, x):
        out1 = self.left_tree(x)
        out2 = self.right_tree(out1)
        return self.root([out1, out2])


class Tree(nn.Module):
    """Looks its parts up by names that it makes."""

    def __init__(self, i, o, level=1, stride=1):
        super().__init__()
        self.level = level
        if level == 1:
            self.root = Root(2 * o, o)
            self.left_node, self.right_node = BasicBlock(i, o, stride), BasicBlock(o, o, 1)
        else:
            self.root = Root((level + 2) * o, o)
            for k in reversed(range(1, level)):
                setattr(self, f"level_{k}", Tree(i, o, level=k, stride=stride))
                i, stride = o, 1
            self.prev_root = BasicBlock(i if level == 1 else o, o, 1)
            self.left_node, self.right_node = BasicBlock(o, o, 1), BasicBlock(o, o, 1)

    def forward(self, x):
        xs = [self.prev_root(self.level_1(x))] if self.level > 1 else []
        for k in reversed(range(1, self.level)):
            x = getattr(self, f"level_{k}")(x)
            xs.append(x)
        x = self.left_node(x)
        xs.append(x)
        x = self.right_node(x)
        xs.append(x)
        return self.root(xs)


class DLA(nn.Module):
    def __init__(self, tree=Tree):
        super().__init__()
        self.base, self.layer1 = conv_bn(3, 12, 3, p=1), conv_bn(12, 12, 3, p=1)
        self.layer3, self.layer4 = tree(12, 16, 1, 1), tree(16, 20, 2, 2)
        self.linear = nn.Linear(20, 10)

    def forward(self, x):
        out = self.layer4(self.layer3(self.layer1(self.base(x))))
        out = F.avg_pool2d(out, 16)
        return self.linear(out.view(out.size(0), -1))


class PNASNet(nn.Module):
    class Separable(nn.Module):
        def __init__(self, i, o, k, s):
            super().__init__()
            self.conv1 = nn.Conv2d(i, o, k, s, padding=(k - 1) // 2, bias=False, groups=i)
            self.bn1 = nn.BatchNorm2d(o)

        def forward(self, x):
            return self.bn1(self.conv1(x))

    class Cell(nn.Module):
        def __init__(self, i, o, stride):
            super().__init__()
            self.stride = stride
            self.sep1, self.sep2, self.sep3 = (PNASNet.Separable(i, o, k, stride) for k in (7, 3, 5))
            if stride == 2:
                self.conv1, self.bn1 = nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o)
            self.conv2, self.bn2 = nn.Conv2d(2 * o, o, 1, bias=False), nn.BatchNorm2d(o)

        def forward(self, x):
            y1, y2 = self.sep1(x), self.sep2(x)
            y3 = F.max_pool2d(x, 3, stride=self.stride, padding=1)
            if self.stride == 2:
                y3 = self.bn1(self.conv1(y3))
            b1, b2 = F.relu(y1 + y3), F.relu(y2 + self.sep3(x))
            return F.relu(self.bn2(self.conv2(torch.cat([b1, b2], 1))))

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.layer1, self.layer2, self.layer3 = self.Cell(12, 12, 1), self.Cell(12, 24, 2), self.Cell(24, 24, 1)
        self.linear = nn.Linear(24, 10)

    def forward(self, x):
        out = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        out = F.avg_pool2d(out, 8)
        return self.linear(F.avg_pool2d(out, 2).view(out.size(0), -1))


class NASNet(nn.Module):
    """Cells of two inputs, handed on as a pair; what came before may be of twice the side."""

    class Cell(nn.Module):
        def __init__(self, x_in, prev_in, o, halved):
            super().__init__()
            separable = partial(self._separable, o)
            self.fit_prev = conv_bn(prev_in, o, s=2 if halved else 1)
            self.dim = conv_bn(x_in, o)
            self.left, self.right, self.third = separable(3), separable(5), separable(3)
            self.pool = nn.AvgPool2d(3, stride=1, padding=1)

        @staticmethod
        def _separable(c, k):
            depthwise = nn.Conv2d(c, c, k, padding=k // 2, groups=c)
            return nn.Sequential(nn.ReLU(), depthwise, nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c))

        def forward(self, x):
            x, prev = x
            prev, h = self.fit_prev(prev), self.dim(x)
            parts = [self.left(h) + h, self.right(prev) + self.third(h), self.pool(h) + prev, self.pool(prev) * 2, prev]
            return torch.cat(parts, 1), x

    def __init__(self):
        super().__init__()
        self.stem, self.cell1, self.cell2 = (
            conv_bn(3, 12, 3, p=1),
            self.Cell(12, 12, 8, False),
            self.Cell(40, 12, 8, False),
        )
        self.down, self.cell3 = nn.Conv2d(40, 16, 3, 2, 1), self.Cell(16, 40, 10, True)
        self.fc = nn.Linear(50, 10)

    def forward(self, x):
        x = self.stem(x)
        x, _ = self.cell2(self.cell1((x, x)))
        x, _ = self.cell3((self.down(x), x))
        x = F.adaptive_avg_pool2d(F.relu(x), 1)
        return self.fc(x.view(x.size(0), -1))


# ------------------------------------------------------------------ small networks


class MobileNet(nn.Module):
    cfg = (16, (24, 2), 24, (32, 2), 32)

    class Block(nn.Module):
        def __init__(self, i, o, stride=1):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(i, i, 3, stride, 1, groups=i, bias=False), nn.BatchNorm2d(i)
            self.conv2, self.bn2 = nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o)

        def forward(self, x):
            return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, layers, i = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), [], 16
        for x in self.cfg:
            o, stride = x if isinstance(x, tuple) else (x, 1)
            layers.append(self.Block(i, o, stride))
            i = o
        self.layers, self.linear = nn.Sequential(*layers), nn.Linear(32, 10)

    def forward(self, x):
        out = F.avg_pool2d(self.layers(F.relu(self.bn1(self.conv1(x)))), 8)
        return self.linear(out.view(out.size(0), -1))


class MobileNetV2(nn.Module):
    class Block(nn.Module):
        def __init__(self, i, o, expansion, stride):
            super().__init__()
            self.stride, planes = stride, expansion * i
            self.conv1, self.bn1 = nn.Conv2d(i, planes, 1, bias=False), nn.BatchNorm2d(planes)
            self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, groups=planes, bias=False)
            self.bn2, self.conv3 = nn.BatchNorm2d(planes), nn.Conv2d(planes, o, 1, bias=False)
            self.bn3, self.shortcut = nn.BatchNorm2d(o), nn.Sequential()
            if stride == 1 and i != o:
                self.shortcut = conv_bn(i, o, act=False)

        def forward(self, x):
            out = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
            out = self.bn3(self.conv3(out))
            return out + self.shortcut(x) if self.stride == 1 else out

    def __init__(self):
        super().__init__()
        self.stem, self.head = conv_bn(3, 12, 3, p=1), conv_bn(24, 48)
        self.layers = nn.Sequential(
            *(self.Block(*b) for b in ((12, 8, 1, 1), (8, 16, 3, 2), (16, 16, 3, 1), (16, 24, 3, 2)))
        )
        self.conv2 = nn.Conv2d(48, 10, 1)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.head(self.layers(self.stem(x))), 1)
        return self.conv2(x).view(x.size(0), -1)


class ShuffleBlock(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.groups = groups

    def forward(self, x):
        n, c, h, w = x.size()
        g = self.groups
        return x.view(n, g, c // g, h, w).permute(0, 2, 1, 3, 4).reshape(n, c, h, w)


class ShuffleNet(nn.Module):
    class Block(nn.Module):
        def __init__(self, i, o, stride, groups):
            super().__init__()
            self.stride, mid = stride, o // 4
            g = 1 if i == 8 else groups
            self.conv1, self.bn1 = nn.Conv2d(i, mid, 1, groups=g, bias=False), nn.BatchNorm2d(mid)
            self.shuffle1 = ShuffleBlock(groups=g)
            self.conv2, self.bn2 = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False), nn.BatchNorm2d(mid)
            self.conv3, self.bn3 = nn.Conv2d(mid, o, 1, groups=groups, bias=False), nn.BatchNorm2d(o)
            self.shortcut = nn.Sequential(nn.AvgPool2d(3, 2, 1)) if stride == 2 else nn.Sequential()

        def forward(self, x):
            out = self.shuffle1(F.relu(self.bn1(self.conv1(x))))
            out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
            res = self.shortcut(x)
            return F.relu(torch.cat([out, res], 1)) if self.stride == 2 else F.relu(out + res)

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.in_planes = 8
        self.layer1, self.layer2 = self._make_layer(40, 2), self._make_layer(80, 2)
        self.linear = nn.Linear(80, 10)

    def _make_layer(self, o, blocks):
        layers = []
        for k in range(blocks):
            less = self.in_planes if k == 0 else 0
            layers.append(self.Block(self.in_planes, o - less, 2 if k == 0 else 1, 2))
            self.in_planes = o
        return nn.Sequential(*layers)

    def forward(self, x):
        out = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        out = F.avg_pool2d(out, 8)
        return self.linear(out.view(out.size(0), -1))


class ShuffleNetV2(nn.Module):
    class SplitBlock(nn.Module):
        def __init__(self, ratio):
            super().__init__()
            self.ratio = ratio

        def forward(self, x):
            c = int(x.size(1) * self.ratio)
            return x[:, :c, :, :], x[:, c:, :, :]

    class Basic(nn.Module):
        def __init__(self, i):
            super().__init__()
            self.split, c = ShuffleNetV2.SplitBlock(0.5), int(i * 0.5)
            self.conv1, self.bn1 = nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c)
            self.conv2, self.bn2 = nn.Conv2d(c, c, 3, 1, 1, groups=c, bias=False), nn.BatchNorm2d(c)
            self.conv3, self.bn3, self.shuffle = nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c), ShuffleBlock(2)

        def forward(self, x):
            x1, x2 = self.split(x)
            out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x2)))))
            out = F.relu(self.bn3(self.conv3(out)))
            return self.shuffle(torch.cat([x1, out], 1))

    class Down(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            mid = o // 2
            self.left = nn.Sequential(conv_bn(i, i, 3, 2, 1, i, act=False), conv_bn(i, mid))
            self.right = nn.Sequential(conv_bn(i, mid), conv_bn(mid, mid, 3, 2, 1, mid, act=False), conv_bn(mid, mid))
            self.shuffle = ShuffleBlock(2)

        def forward(self, x):
            return self.shuffle(torch.cat([self.left(x), self.right(x)], 1))

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.layers = nn.Sequential(
            self.Down(12, 24), self.Basic(24), self.Basic(24), self.Down(24, 48), self.Basic(48)
        )
        self.conv2, self.linear = conv_bn(48, 64), nn.Linear(64, 10)

    def forward(self, x):
        out = self.conv2(self.layers(F.relu(self.bn1(self.conv1(x)))))
        out = F.avg_pool2d(out, 8)
        return self.linear(out.view(out.size(0), -1))


class EfficientNet(nn.Module):
    class Block(nn.Module):
        def __init__(self, i, o, k, stride, expand):
            super().__init__()
            c = expand * i
            self.expand, self.has_skip = expand, stride == 1 and i == o
            self.conv1, self.bn1 = nn.Conv2d(i, c, 1, bias=False), nn.BatchNorm2d(c)
            self.conv2 = nn.Conv2d(c, c, k, stride, 1 if k == 3 else 2, groups=c, bias=False)
            self.bn2, self.se1, self.se2 = nn.BatchNorm2d(c), nn.Conv2d(c, i // 4, 1), nn.Conv2d(i // 4, c, 1)
            self.conv3, self.bn3 = nn.Conv2d(c, o, 1, bias=False), nn.BatchNorm2d(o)

        @staticmethod
        def swish(x):
            return x * x.sigmoid()

        def forward(self, x):
            out = x if self.expand == 1 else self.swish(self.bn1(self.conv1(x)))
            out = self.swish(self.bn2(self.conv2(out)))
            w = self.se2(self.swish(self.se1(F.adaptive_avg_pool2d(out, (1, 1))))).sigmoid()
            out = self.bn3(self.conv3(out * w))
            if self.has_skip:
                if self.training:
                    mask = torch.empty(out.shape[0], 1, 1, 1).bernoulli_(0.8)
                    out.div_(0.8)
                    out.mul_(mask)
                out = out + x
            return out

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layers = nn.Sequential(
            self.Block(16, 16, 3, 1, 1), self.Block(16, 24, 5, 2, 3), self.Block(24, 24, 3, 1, 3)
        )
        self.linear = nn.Linear(24, 10)

    def forward(self, x):
        out = self.layers(self.Block.swish(self.bn1(self.conv1(x))))
        out = F.adaptive_avg_pool2d(out, 1)
        out = out.view(out.size(0), -1)
        return self.linear(F.dropout(out, p=0.2) if self.training else out)


class RegNet(ResNet):
    class Block(nn.Module):
        expansion = 1

        def __init__(self, i, o, stride, group_width=4):
            super().__init__()
            self.conv1, self.conv2 = conv_bn(i, o), conv_bn(o, o, 3, stride, 1, o // group_width)
            self.se1, self.se2 = nn.Conv2d(o, i // 4, 1), nn.Conv2d(i // 4, o, 1)
            self.conv3, self.shortcut = conv_bn(o, o, act=False), nn.Sequential()
            if stride != 1 or i != o:
                self.shortcut = conv_bn(i, o, s=stride, act=False)

        def forward(self, x):
            out = self.conv2(self.conv1(x))
            w = torch.sigmoid(self.se2(F.relu(self.se1(F.adaptive_avg_pool2d(out, (1, 1))))))
            out = self.conv3(out * w)
            out += self.shortcut(x)
            return F.relu(out)

    def __init__(self):
        super().__init__(self.Block)


class Xception(nn.Module):
    class Separable(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.depthwise, self.pointwise = nn.Conv2d(i, i, 3, padding=1, groups=i, bias=False), nn.Conv2d(i, o, 1)

        def forward(self, x):
            return self.pointwise(self.depthwise(x))

    class Middle(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.convs = nn.Sequential(
                *(nn.Sequential(nn.ReLU(), Xception.Separable(c, c), nn.BatchNorm2d(c)) for _ in range(3))
            )
            self.shortcut = nn.Sequential()

        def forward(self, x):
            return self.convs(x) + self.shortcut(x)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 10, 3, p=1), conv_bn(10, 16, 3, p=1))
        self.residual = nn.Sequential(self.Separable(16, 24), nn.BatchNorm2d(24), nn.MaxPool2d(3, 2, 1))
        self.shortcut, self.middle = conv_bn(16, 24, s=2, act=False), nn.Sequential(self.Middle(24), self.Middle(24))
        self.exit, self.fc = nn.Sequential(self.Separable(24, 32), nn.BatchNorm2d(32), nn.ReLU(True)), nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem(x)
        x = self.middle(self.residual(x) + self.shortcut(x))
        x = F.adaptive_avg_pool2d(self.exit(x), (1, 1))
        return self.fc(x.view(x.size(0), -1))


class Res2Net(ResNet):
    """Splits by a width that it stores, and adds each part to the next."""

    class Block(nn.Module):
        expansion = 1

        def __init__(self, i, o, stride=1):
            super().__init__()
            self.width = o // 4
            self.conv1, self.conv3 = conv_bn(i, o), conv_bn(o, o, act=False)
            self.convs = nn.ModuleList(conv_bn(self.width, self.width, 3, p=1) for _ in range(3))
            self.down = nn.AvgPool2d(stride) if stride > 1 else nn.Sequential()
            self.shortcut = conv_bn(i, o, s=stride, act=False) if stride > 1 or i != o else nn.Sequential()

        def forward(self, x):
            parts = torch.split(self.conv1(x), self.width, 1)
            y, found = 0, []
            for part, conv in zip(parts, self.convs, strict=False):
                y = conv(part + y)
                found.append(y)
            out = self.conv3(torch.cat([*found, parts[3]], 1))
            return F.relu(self.down(out) + self.shortcut(x))

    def __init__(self):
        super().__init__(self.Block)


class ConvMixer(nn.Module):
    def __init__(self, dim=16, depth=3, kernel=5, patch=2):
        super().__init__()

        class Residual(nn.Module):
            def __init__(self, fn):
                super().__init__()
                self.fn = fn

            def forward(self, x):
                return self.fn(x) + x

        def after(*layers):
            return nn.Sequential(*layers, nn.GELU(), nn.BatchNorm2d(dim))

        depthwise = partial(nn.Conv2d, dim, dim, kernel, groups=dim, padding="same")
        self.net = nn.Sequential(
            after(nn.Conv2d(3, dim, patch, stride=patch)),
            *(nn.Sequential(Residual(after(depthwise())), after(nn.Conv2d(dim, dim, 1))) for _ in range(depth)),
            nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(dim, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)


NETWORKS = {
    **{c.__name__: c for c in (LeNet, VGG, AlexNet, NetworkInNetwork, SqueezeNet, PyramidNet, RiR, Attention)},
    "ResNet": partial(ResNet, BasicBlock),
    "ResNetBottleneck": partial(ResNet, Bottleneck, (8, 12, 16)),
    "PreActResNet": partial(ResNet, PreActBlock, (16, 24, 32, 40), 1, 4),
    "SENet": partial(ResNet, SEBlock, (16, 24, 32)),
    "SEBottleneck": partial(ResNet, BottleneckSE, (8, 12, 16)),
    "ResNetOptionA": partial(SizedPool, OptionABlock),
    "ResNetMulZero": partial(ResNet, MulZeroBlock),
    "WideResNet": partial(ResNet, WideBlock, (16, 32, 48), 1),
    "ResNeXt": partial(ResNet, partial(Bottleneck, groups=4), (8, 16, 24), 1),
    "StochasticDepth": partial(ResNet, StochasticBlock, (12, 16, 20)),
    "ShakeShake": partial(ResNet, ShakeBlock, (8, 16, 24), 1),
    "SimpleDLA": partial(DLA, SimpleTree),
    **{c.__name__: c for c in (DenseNet, ListDenseNet, GoogLeNet, InceptionV3, InceptionV4, InceptionResNet, DPN, DLA)},
    **{
        c.__name__: c for c in (PNASNet, NASNet, MobileNet, MobileNetV2, ShuffleNet, ShuffleNetV2, EfficientNet, RegNet)
    },
    **{c.__name__: c for c in (Xception, Res2Net, ConvMixer)},
}
