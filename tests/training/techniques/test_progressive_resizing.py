"""Progressive resizing: which sizes come when, what the images become, and networks that cannot take them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import convwright as cw
from convwright.training import Recipe
from convwright.training.preflight import prepare
from convwright.training.techniques.progressive_resizing import (
    ProgressiveResizing,
    ResizingEffect,
    progressive_resizing,
    resized,
)


@settings(max_examples=60, deadline=None)
@given(
    start=st.floats(0.05, 0.95), full=st.floats(0.1, 0.95), stages=st.integers(1, 7), multiple=st.integers(1, 9),
    height=st.integers(4, 67), width=st.integers(4, 67), steps=st.integers(10, 300),
)  # fmt: skip
def test_sizes_rise_to_the_full_one(
    start: float, full: float, stages: int, multiple: int, height: int, width: int, steps: int
) -> None:
    options = ProgressiveResizing(start=start, full=full, stages=stages, multiple=multiple)
    sizes = [options.size(step / steps, (height, width)) for step in range(steps)]
    assert sizes == sorted(sizes)
    assert all(size == (height, width) for step, size in enumerate(sizes) if step / steps > full + 1e-6)
    assert len(set(sizes)) <= stages + 1
    for side, whole in ((0, height), (1, width)):
        found = {size[side] for size in sizes}
        assert all(one == whole or (one % multiple == 0 and one < whole) for one in found)
        first = sizes[0][side]
        assert first == whole or abs(first - start * whole) <= max(multiple / 2, multiple - start * whole)


def test_the_last_fifth_is_full_size_by_default_and_each_size_takes_its_share() -> None:
    effect = ResizingEffect(ProgressiveResizing(), steps=100)
    images, targets = torch.randn(2, 3, 32, 48), torch.tensor([0, 1])
    shapes = []
    for step in range(100):
        batch, same = effect.batch(images, targets, step)
        assert same is targets
        shapes.append(tuple(batch.shape))
    expected = [(2, 3, *size) for size in ((16, 24), (20, 32), (24, 36), (28, 40), (32, 48)) for _ in range(20)]
    assert shapes == expected
    assert effect.batch(images, targets, 80)[0] is images


def test_images_keep_their_mean_their_layout_and_their_edges() -> None:
    torch.manual_seed(0)
    images = torch.randn(3, 5, 24, 36)
    smaller = resized(images, (12, 20))
    torch.testing.assert_close(resized(torch.full((1, 2, 24, 36), 1.5), (12, 20)), torch.full((1, 2, 12, 20), 1.5))
    torch.testing.assert_close(smaller.mean((2, 3)), images.mean((2, 3)), atol=0.03, rtol=0)
    last = images.contiguous(memory_format=torch.channels_last)
    assert resized(last, (12, 20)).is_contiguous(memory_format=torch.channels_last)
    assert smaller.is_contiguous()
    torch.testing.assert_close(resized(last, (12, 20)), smaller)
    ramp = torch.arange(24.0).expand(1, 1, 24, 24)
    torch.testing.assert_close(
        resized(ramp, (12, 12))[..., 2:-2], (torch.arange(12.0) * 2 + 0.5).expand(1, 1, 12, 12)[..., 2:-2]
    )


def test_noise_is_smoothed_not_sampled() -> None:
    """Antialiasing: at half the side each pixel averages several, so white noise loses variance."""
    torch.manual_seed(0)
    assert float(resized(torch.randn(8, 1, 64, 64), (32, 32)).var()) < 0.35


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(cw.RecipeError, match=r"progressive_resizing: start=1\.5: Input should be less than 1"):
        progressive_resizing(torch.zeros(1, 1, 8, 8), 0.0, start=1.5)
    for bad in ({"start": 0}, {"full": 1}, {"stages": 0}, {"multiple": 0}):
        with pytest.raises(cw.RecipeError, match=rf"techniques\.progressive_resizing\.{next(iter(bad))}="):
            Recipe(techniques={"progressive_resizing": bad})


# ------------------------------------------------------------------ in a recipe (images of 8 x 8)


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


def flattened() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Dropout(), nn.Flatten(), nn.Linear(5 * 64, 3))


def recipe(**options: object) -> Recipe:
    return Recipe(batch_size=16, techniques={"progressive_resizing": options})


def test_a_head_that_flattens_is_refused_and_works_behind_global_pooling(small_data) -> None:
    net = flattened()
    with pytest.raises(cw.RecipeError, match=r"techniques\.progressive_resizing\.start=0\.5.* 4x4 .*mat1 and mat2"):
        prepare(net, small_data, recipe())
    both = Recipe(batch_size=16, techniques={"global_pool": {}, "progressive_resizing": {}})
    assert prepare(net, small_data, both).warnings == ()


def test_checking_changes_nothing(small_data) -> None:
    net = pooled().train()
    before, random = {n: t.clone() for n, t in net.state_dict().items()}, torch.get_rng_state()
    assert prepare(net, small_data, recipe()).warnings == ()
    assert net.training
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("options", [{"multiple": 8}, {"start": 0.9}])
def test_sizes_that_do_not_change_are_a_warning(options: dict[str, object], small_data) -> None:
    (warning,) = prepare(pooled(), small_data, recipe(**options)).warnings
    assert warning.startswith("techniques.progressive_resizing has no effect: ")
    assert warning.endswith("leave all images at 8x8")


def test_scores_of_another_shape_are_refused(small_data) -> None:
    net = nn.Sequential(nn.Conv2d(3, 1, 3, 2, padding=1), nn.Flatten())  # 16 scores of 8x8 images, 4 of 4x4 ones
    classes = replace(small_data, class_names=tuple("abcdefghijklmnop"))
    with pytest.raises(cw.RecipeError, match=r"its scores have the shape \(2, 4\) there, else \(2, 16\)"):
        prepare(net, classes, recipe())


def test_the_network_sees_small_images_first(small_data, small_recipe) -> None:
    seen: list[tuple[int, int]] = []
    net = pooled()
    net[0].register_forward_pre_hook(
        lambda module, args: seen.append(tuple(args[0].shape[2:])) if module.training else None
    )
    result = cw.train(
        net,
        small_data,
        small_recipe.updated(epochs=5, techniques={"progressive_resizing": {"multiple": 2}}),
        progress=False,
    )
    training = seen[-20:]  # 5 epochs of 4 batches; before, the checks look once
    assert training == sorted(training)
    assert training[0] == (4, 4)
    assert training[16:] == [(8, 8)] * 4
    assert result.warnings == ()
