"""Small grey pictures of three classes that a network tells apart in a few steps: brighter for each class."""

import torch
from torch import nn

from convwright.training import ArrayImages, ImageData, Recipe, train


class Tiny(nn.Module):
    def __init__(self, stem=12):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem)
        self.a, self.bn_a = nn.Conv2d(stem, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        return self.fc(torch.relu(self.bn_a(self.a(x))).mean((2, 3)))


def picture_data():
    return ImageData("pictures", pictures(90, 1), pictures(41, 2), ("a", "b", "c"), lambda: pictures(20, 3))


def trained_tiny(data, stem=12):
    """A network that tells the pictures apart."""
    torch.manual_seed(0)
    model = Tiny(stem)
    train(model, data, Recipe(epochs=12, batch_size=16, lr=0.05), progress=False, test=False)
    return model


def pictures(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 110, (count, 1, 8, 8), generator=generator)
    images = (noise + labels.view(-1, 1, 1, 1) * 60).to(torch.uint8)
    return ArrayImages(images.contiguous(memory_format=torch.channels_last), labels, (0.4,), (0.3,))
