"""Widths on a budget's surface: within it, using it, and in the wanted proportions."""

import numpy as np
import pytest
from channel_worlds import limits_of, small

from convwright.architecture import read
from convwright.errors import BudgetError
from convwright.methods.shared.width_surface import Surface


@pytest.fixture(scope="module")
def networks():
    return {name: small(name) for name in ("mobile", "concat", "shuffle", "chain")} | {"resnet": read("zoo:resnet20")}


def drawn(surface, rng, spread=3.0):
    return {f.name: f.size * spread ** rng.uniform(-1, 1) for f in surface.families}


@pytest.mark.parametrize(
    ("network", "budget", "divisor"),
    [
        ("resnet", "macs<=50%", 1), ("resnet", "params<=35%, macs<=50%", 1), ("resnet", "macs<=90%", 4),
        ("mobile", "macs<=140%", 1), ("mobile", "weights<=60%, macs<=70%", 1), ("concat", "params<=70%", 1),
    ],
)  # fmt: skip
def test_whatever_is_wanted_is_scaled_to_the_budget(networks, network, budget, divisor):
    arch, rng = networks[network], np.random.default_rng(divisor)
    limits = limits_of(arch, budget)
    surface = Surface(arch, limits, divisor=divisor)
    for _ in range(11):
        wanted = drawn(surface, rng)
        place = surface.project(wanted)
        assert limits.met(surface.costs(place.widths))
        assert 0.985 <= place.use <= 1
        for family in surface.families:
            width, real = place.widths[family.name], place.shape[family.name]
            assert width % family.step == 0
            assert real / 1.15 - 2 * family.step <= width <= real * 1.15 + 2 * family.step
        free = [f.name for f in surface.families if f.least < place.shape[f.name] < f.most]
        ratios = [place.shape[name] / wanted[name] for name in free]
        assert max(ratios) == pytest.approx(min(ratios))


@pytest.mark.parametrize(("network", "budget"), [("resnet", "macs<=50%"), ("mobile", "macs<=140%")])
def test_auto_uses_the_budget_in_the_coarsest_multiples_that_can(networks, network, budget):
    arch, rng = networks[network], np.random.default_rng(3)
    limits = limits_of(arch, budget)
    surface, coarse = Surface(arch, limits, divisor="auto"), 0
    for _ in range(5):
        place = surface.project(drawn(surface, rng))
        assert limits.met(surface.costs(place.widths))
        assert place.use >= 0.97
        coarse += all(width % 8 == 0 for f in surface.families if f.size >= 16 for width in [place.widths[f.name]])
    assert coarse


def test_only_proportions_count_and_the_same_comes_again(networks):
    arch, rng = networks["resnet"], np.random.default_rng(5)
    surface = Surface(arch, limits_of(arch, "macs<=60%"))
    for _ in range(7):
        wanted = drawn(surface, rng)
        first = surface.project(wanted)
        assert surface.project({n: 7.3 * w for n, w in wanted.items()}).widths == first.widths
        assert surface.project(first.shape).use >= 0.99


def test_more_budget_never_means_less_use_of_it(networks):
    arch, rng = networks["concat"], np.random.default_rng(2)
    limits = limits_of(arch, "macs<=150%")
    surface = Surface(arch, limits)
    for _ in range(5):
        wanted = drawn(surface, rng)
        macs = [surface.counted(surface.project(wanted, share).widths)["macs"] for share in (0.2, 0.4, 0.7, 1.0)]
        assert macs == sorted(macs)
        assert all(m <= share * limits.limits["macs"] for m, share in zip(macs, (0.2, 0.4, 0.7, 1.0), strict=True))


def test_tied_groups_are_as_the_edits_make_them(networks):
    arch, rng = networks["shuffle"], np.random.default_rng(3)
    surface = Surface(arch, limits_of(arch, "macs<=60%"))
    assert any(f.tied for f in surface.families)
    for _ in range(3):
        place = surface.project(drawn(surface, rng, 1.7))
        built = arch.apply(*surface.edits(place.widths), importance="first", verify=False)
        sizes = surface.sizes(place.widths)
        assert sorted(g.size for g in built.free_groups) == sorted(sizes.values())
        assert built.profile().macs == surface.counted(place.widths)["macs"]


def test_bounds_hold_and_leave_budget_over(networks):
    arch = networks["chain"]
    surface = Surface(arch, limits_of(arch, "macs<=1000%"), least=7, most=41)
    place = surface.project({f.name: 1.0 + i for i, f in enumerate(surface.families)})
    assert set(place.widths.values()) == {41}
    assert place.use < 0.9
    with pytest.raises(BudgetError, match="smallest widths of 31 channels"):
        Surface(arch, limits_of(arch, "macs<=50%"), least=31)
