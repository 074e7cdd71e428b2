"""Small grey pictures of three classes that a network tells apart in a few steps: brighter for each class."""

import torch

from convwright.training import ArrayImages


def pictures(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 110, (count, 1, 8, 8), generator=generator)
    images = (noise + labels.view(-1, 1, 1, 1) * 60).to(torch.uint8)
    return ArrayImages(images.contiguous(memory_format=torch.channels_last), labels, (0.4,), (0.3,))
