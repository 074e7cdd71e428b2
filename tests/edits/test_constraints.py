"""What the user wants left as it is: as data, bound to a network, and obeyed by edits."""

import pytest

import convwright as cw
from convwright.edits.constraints import (
    Constraints,
    Divisor,
    WidthRange,
    levels_of,
    multiple_of,
    odd_widths,
    width_range,
)
from convwright.edits.width import solve


@pytest.fixture(scope="module")
def arch():
    return cw.read("zoo:resnet20")


@pytest.fixture(scope="module")
def bound(arch):
    return Constraints(
        keep="layer3.*",
        ratio={"layer1.*": (0.5, 1), "layer2.*": {"least": 0.7}},
        divisor={"conv": 4},
        blocks="layer1.0",
        resolution="fixed",
    ).bound(arch)


def test_yaml_python_and_fields_say_the_same(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("keep: layer1.*\nratio:\n  fc: [null, 1]\ndivisor: {linear: 4}\nresolution: fixed\n")
    read = Constraints.of(file)
    assert read == Constraints(keep=["layer1.*"], ratio={"fc": (None, 1)}, divisor={"linear": 4}, resolution="fixed")
    assert Constraints.of(read.settings()) == Constraints.of(str(file)) == read
    assert not Constraints.of(None)
    assert Constraints.of({}).settings() == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keeps": "layer1.*"}, "there is no 'keeps'. Did you mean keep?"),
        ({"ratio": {"conv1": (2, 1)}}, "conv1: the least ratio 2 is above the greatest 1"),
        ({"ratio": {"conv1": 3}}, "ratio conv1: "),
        ({"divisor": {"conv1": 0}}, "conv1: 0 is no whole number from 1"),
        ({"resolution": "kept"}, "resolution: "),
    ],
)
def test_wrong_fields_are_one_line(given, message):
    with pytest.raises(cw.ConvwrightError, match=message) as caught:
        Constraints(**given)
    assert "\n" not in str(caught.value)


def test_a_wrong_file_is_named(tmp_path):
    file = tmp_path / "mine.yaml"
    with pytest.raises(cw.ConvwrightError, match=r"mine\.yaml: cannot be read"):
        Constraints.of(file)
    for text, message in (("keep: [", "cannot be read as YAML"), ("- a", "constraints are fields"), ("x: 1", "no 'x'")):
        file.write_text(text)
        with pytest.raises(cw.ConvwrightError, match=rf"mine\.yaml: .*{message}"):
            Constraints.of(file)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep": "layr1.0.conv1"}, "no layer or group that matches 'layr1.0.conv1'. Did you mean layer1.0.conv1"),
        ({"ratio": {"layer9.*": (0, 1)}}, "ratio: zoo:resnet20 has no"),
        ({"divisor": {"depthwise": 8}}, "divisor: zoo:resnet20 has no"),
        ({"blocks": "layer1.7"}, "no block that matches 'layer1.7'. Did you mean layer1.2"),
        ({"ratio": {"conv1": (0.9, 2), "layer1.*": (0.1, 0.5)}}, "no width of conv1 is within all ratios"),
    ],
)
def test_what_matches_nothing_is_an_error(arch, given, message):
    with pytest.raises(cw.EditError, match=message):
        Constraints(**given).bound(arch)


def test_a_layer_left_alone_keeps_what_it_makes_and_takes(arch):
    bound = Constraints(keep="layer1.1.conv2").bound(arch)
    frozen = {g.name: g.reason for g in bound.groups if g.frozen and not arch.group(g.name).frozen}
    assert frozen.keys() == {"conv1", "layer1.1.conv1"}
    assert frozen["conv1"] == "left alone by the user's constraints (keep layer1.1.conv2)"
    assert not Constraints().bound(bound).group("conv1").frozen


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (cw.Width("layer3.0.conv1", 32), "frozen, left alone by the user's constraints"),
        (cw.Width("layer1.0.conv1", 4), r"allow 8 to 16 \(ratio of layer1"),
        (cw.Width("layer1.0.conv1", 20), r"allow 8 to 16 \(ratio of layer1"),
        (cw.Width("layer2.0.conv1", 30), "allow multiples of 4"),
        (cw.RemoveBlock("layer1.0"), "the user's constraints keep it"),
        (cw.RemoveBlock("layer3.1"), "layer3.1.conv1 in it is left alone"),
        (cw.Kernel("layer3.1.conv1", 5), "left alone by the user's constraints"),
        (cw.Replace("layer3.1.conv1", "dw_separable"), "left alone by the user's constraints"),
        (cw.Resolution(24), "the resolution cannot change"),
    ],
)
def test_edits_that_break_a_constraint_are_refused(bound, edit, message):
    with pytest.raises(cw.EditError, match=message):
        bound.apply(edit, verify=False)


def test_what_edits_make_stays_bound_to_the_first_widths(bound):
    once = bound.apply(cw.Width("layer1.0.conv1", 12), cw.RemoveBlock("layer2.1"), verify=False)
    assert once.group("layer1.0.conv1").bounds.least == 8
    with pytest.raises(cw.EditError, match="allow 8 to 16"):
        once.apply(cw.Width("layer1.0.conv1", 4), verify=False)
    with pytest.raises(cw.EditError, match="layer3"):
        once.apply(cw.RemoveBlock("layer3.2"), verify=False)


@pytest.mark.parametrize("ratio", [0.1, 0.6, 1.7])
def test_scaled_widths_keep_within(bound, ratio):
    sizes = {edit.target: edit.size for edit in cw.scale_widths(bound, ratio, check=False)}
    assert not any(name.startswith(("layer2.0.conv2", "layer3")) for name in sizes)
    for name, size in sizes.items():
        allowed = width_range(bound.channels, bound.group(name))
        assert allowed.least <= size <= allowed.most
        assert size % 4 == 0
    solve(bound, [cw.Width(*pair) for pair in sizes.items()])


def range_of(constraints, arch, group, divisor="auto"):
    bound = constraints.bound(arch)
    return width_range(bound.channels, bound.group(group.name), divisor)


def test_ranges(arch, bound):
    asked = bound.constraints.asked
    assert range_of(asked, arch, arch.group("layer1.0.conv1")) == WidthRange(8, 16, 4)
    assert range_of(asked, arch, arch.group("layer2.0.conv1")).least == 24
    assert range_of(asked, arch, arch.group("layer3.0.conv1")) == WidthRange(64, 64, 16)
    assert range_of(Constraints(), arch, arch.group("layer3.0.conv1")).multiple == 16
    assert range_of(Constraints(), arch, arch.group("conv1"), 1).least == 1
    assert (asked.keeps_block("layer1.0"), asked.keeps_block("layer1.1"), asked.resolution) == (True, False, "fixed")


def test_tied_groups_share_a_range():
    arch = cw.read("torchvision:shufflenet_v2_x0_5")
    group = next(g for g in arch.free_groups if g.tied)
    other = Constraints(ratio={group.tied[0]: (0.5, 1.5)})
    allowed = range_of(other, arch, group, 1)
    assert allowed.least >= group.size / 2
    assert allowed.most <= 1.5 * group.size
    alone = range_of(Constraints(keep=group.tied[0]), arch, group, 1)
    assert (alone.least, alone.most) == (group.size, group.size)


def test_auto_takes_what_kernels_like(arch):
    sizes = {16: "conv1", 32: "layer2.0.conv1", 64: "layer3.0.conv1"}
    multiples = {size: multiple_of(arch.group(name), "auto") for size, name in sizes.items()}
    assert multiples == {16: 8, 32: 8, 64: 16}
    small = cw.read("zoo:mnist-a")
    assert {multiple_of(group, "auto") for group in small.free_groups if group.size < 16} == {1}
    levels = [level.wanted(arch.group("layer3.0.conv1")) for level in levels_of("auto")]
    assert levels == [16, 8, 4, 2, 1]
    assert levels_of(12) == (Divisor(12),)
    for wrong in (0, -4, True, "all", 1.5, None):
        with pytest.raises(cw.EditError, match="auto or a whole number from 1 on"):
            Divisor.of(wrong)


def test_a_divisor_by_kind_replaces_that_of_the_run():
    arch = Constraints(divisor={"depthwise": 4}).bound(cw.read("zoo:mobilenet-v2"))
    depthwise = [g for g in arch.free_groups if g.bounds.divisor == 4]
    assert depthwise
    assert len(depthwise) < len(arch.free_groups)
    assert {multiple_of(group, 16) for group in depthwise} == {4}


def test_odd_widths_are_those_that_a_change_made(arch):
    new = arch.apply(cw.Width("layer3.0.conv1", 45), cw.Width("layer2.0.conv1", 24), verify=False)
    assert odd_widths(arch, new) == {"layer3.0.conv1": 45}
    small = cw.read("zoo:mnist-a")
    narrow = small.apply(*cw.scale_widths(small, 0.6), verify=False)
    assert all(small.layer(name).output_shape[1] >= 16 for name in odd_widths(small, narrow))


def test_a_group_below_its_own_divisor_stays(arch):
    bound = Constraints(divisor={"conv1": 24}).bound(arch)
    assert "conv1" not in {edit.target for edit in cw.scale_widths(bound, 0.5, check=False)}
    assert width_range(bound.channels, bound.group("conv1"), "auto").most == 16
    with pytest.raises(cw.EditError, match="allow multiples of 24"):
        bound.apply(cw.Width("conv1", 8), verify=False)
