"""Budgets: what parses, what is refused and how, and what they say of a network."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convwright.architecture import read
from convwright.cost import (
    MEASURED,
    METRICS,
    Budget,
    Limits,
    Term,
    check_feasible,
    costs_of,
    feasible_range,
    human,
    parse_budget,
    profile,
    smallest_widths,
)
from convwright.cost.runtimes import Target
from convwright.errors import BudgetError

PARSES = [
    ("macs<=50%", Term("macs", 0.5, True)),
    ("macs<=0.5x", Term("macs", 0.5, True)),
    ("macs<=2x", Term("macs", 2.0, True)),
    ("macs<=29%", Term("macs", 0.29, True)),
    ("macs<=600M", Term("macs", 600_000_000)),
    ("macs<=1.1G", Term("macs", 1_100_000_000)),
    ("macs<=2B", Term("macs", 2_000_000_000)),
    ("macs<=6e8", Term("macs", 600_000_000)),
    ("MACs <= 600m", Term("macs", 600_000_000)),
    ("macs=1_000", Term("macs", 1000)),
    ("macs==1k", Term("macs", 1000)),
    ("macs < 1.5K", Term("macs", 1500)),
    ("macs ≤ .5M", Term("macs", 500_000)),
    ("flops<=50%", Term("macs", 0.5, True)),
    ("FLOPs<0.5x", Term("macs", 0.5, True)),
    ("flops<=2G", Term("macs", 1_000_000_000)),
    ("gflops<2", Term("macs", 1_000_000_000)),
    ("params<=1500", Term("params", 1500)),
    ("parameters<=1.5M", Term("params", 1_500_000)),
    ("activations<=2MB", Term("activations", 2_000_000)),
    ("memory<=2MiB", Term("activations", 2 * 1024**2)),
    ("activations<=500B", Term("activations", 500)),
    ("activations<=2M", Term("activations", 2_000_000)),
    ("weights<=1MB", Term("weights", 1_000_000)),
    ("weights<=1 KiB", Term("weights", 1024)),
    ("model size<=1GB", Term("weights", 10**9)),
    ("latency<=3ms", Term("latency", 3_000_000)),
    ("latency<=500us", Term("latency", 500_000)),
    ("latency<=500µs", Term("latency", 500_000)),
    ("latency<=0.01s", Term("latency", 10_000_000)),
    ("latency <= 1.5 MS", Term("latency", 1_500_000)),
    ("time<=250ns", Term("latency", 250)),
    ("latency<=60%", Term("latency", 0.6, True)),
    ("latency<=0.6x", Term("latency", 0.6, True)),
    ("latency[onnxruntime]<=50%", Term("latency", 0.5, True, Target("onnxruntime"))),
    (
        "Latency [ OpenVINO, int8, threads=2 ] <= 4ms",
        Term("latency", 4_000_000, False, Target("openvino", True, threads=2)),
    ),
    (
        "time[onnxruntime,cuda,batch=8]<=2ms",
        Term("latency", 2_000_000, False, Target("onnxruntime", provider="cuda", batch=8)),
    ),
]


@pytest.mark.parametrize(("text", "term"), PARSES)
def test_parses(text, term):
    assert parse_budget(text) == Budget((term,))


@pytest.mark.parametrize(
    "text",
    [
        "macs<=50%,params<=1M",
        "macs<=50% and params<=1M",
        "MACS<=50% AND PARAMS<=1M",
        " macs<=50% ; params<=1M, ",
        ["macs<=50%", "params<=1M"],
        ("macs<=50%,params<=1M",),
    ],
)
def test_several(text):
    assert parse_budget(text) == Budget((Term("macs", 0.5, True), Term("params", 1_000_000)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ([], "empty"),
        (" , ", "empty"),
        ("macs", "does not parse"),
        ("50%", "does not parse"),
        ("macs<=", "does not parse"),
        ("macs<=lots", "does not parse"),
        ("macs<=5 0", "does not parse"),
        ("macs<=50%%", "does not parse"),
        ("params<=1,500", "'500' does not parse"),
        ("macs>=50%", "lower limit"),
        ("macs<=0", "positive"),
        ("macs<=0%", "positive"),
        ("macs<=-5M", "positive"),
        ("macs<=nan", "positive"),
        ("macs<=inf", "positive"),
        ("macs<=1e-400%", "positive"),
        ("macs<=0.3", "30% or 0.3x"),
        ("macs<=1e30", "too large"),
        ("macs<=1e999999999", "too large"),
        ("macs<=1M,mac<=2M", "macs twice"),
        ("macs<=2MB", "not measured in 'mb'"),
        ("params<=2MiB", "not measured in 'mib'"),
        ("activations<=3ms", "not measured in 'ms'"),
        ("paramz<=3", "Did you mean"),
        ("flops<=2GB", "not measured in 'gb'"),
        ("latency<=3", "needs a unit"),
        ("latency<=3e6", "needs a unit"),
        ("latency<=3m", "not measured in 'm'"),
        ("latency<=2MB", "not measured in 'mb'"),
        ("latency<=0ms", "positive"),
        ("latency<=0.1ns", "below 1"),
        ("latency<=3ms,time<=50%", "latency twice"),
        ("latensy<=3ms", "Did you mean latency"),
        ("latency[tensorflow]<=3ms", "is no runtime; there are eager, compile, onnxruntime"),
        ("latency[onnxruntim]<=3ms", "Did you mean onnxruntime"),
        ("latency[openvino,cuda]<=3ms", "openvino has no setting 'cuda'; there are int8, threads=N, batch=N"),
        ("latency[eager,threads=0]<=3ms", "no setting 'threads=0'"),
        ("latency[]<=3ms", "is no runtime"),
        ("latency[eager<=3ms", "does not parse"),
        ("macs[openvino]<=50%", "leave the brackets out"),
        ("latency[eager]<=3ms,latency[openvino]<=2ms", "latency twice"),
    ],
)
def test_refused_in_one_line(text, said):
    with pytest.raises(BudgetError) as caught:
        parse_budget(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "macs<=" in str(caught.value)  # an example of how to write it


numbers = st.one_of(
    st.tuples(st.integers(1, 2**62), st.just(False)),
    st.tuples(st.floats(1e-9, 1e9), st.just(True)),
)
budgets = st.dictionaries(st.sampled_from(METRICS + MEASURED), numbers, min_size=1).map(
    lambda d: Budget(tuple(Term(metric, *number) for metric, number in d.items()))
)


@given(budgets)
def test_written_and_read_again_is_the_same(budget):
    assert parse_budget(str(budget)) == budget


@given(st.text(max_size=30))
def test_any_text_parses_or_is_a_budget_error(text):
    try:
        parsed = parse_budget(text)
    except BudgetError:
        return
    assert parse_budget(str(parsed)) == parsed


@given(st.sampled_from(METRICS), st.integers(1, 10**9), st.integers(1, 10**9))
def test_met_and_excess_agree(metric, limit, cost):
    limits, costs = Limits({metric: limit}), {**dict.fromkeys(METRICS, 1), metric: cost}
    assert limits.met(costs) == (cost <= limit)
    assert limits.excess(costs) == ({} if cost <= limit else {metric: cost - limit})


@given(st.integers(0, 10**14))
def test_human_is_close_and_short(amount):
    text = human(amount)
    power = " KMGT".find(text[-1])
    value = float(text[: -1 if power > 0 else None]) * 1000 ** max(power, 0)
    assert abs(value - amount) <= 0.005 * amount
    assert len(text) <= 5


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1K"),
        (12345, "12.3K"),
        (100_000_000, "100M"),
        (999_999, "1M"),
        (9_999, "10K"),
        (7 * 10**15, "7000T"),
    ],
)
def test_human(amount, text):
    assert human(amount) == text
    assert human(amount, "weights") == f"{text}B"


@given(st.integers(1, 10**12))
def test_human_latency_is_close_and_has_a_unit(nanoseconds):
    text = human(nanoseconds, "latency")
    value, unit = re.fullmatch(r"([\d.]+)(ns|us|ms|s)", text).groups()
    scale = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}[unit]
    assert abs(float(value) * scale - nanoseconds) <= 0.005 * nanoseconds
    assert parse_budget(f"latency<={text}").terms[0].metric == "latency"


@given(st.decimals("0.001", "1000", places=3), st.sampled_from(["us", "ms", "s"]))
def test_units_of_time_agree(number, unit):
    step = {"us": "ns", "ms": "us", "s": "ms"}[unit]
    assert parse_budget(f"latency<={number}{unit}") == parse_budget(f"latency<={number * 1000}{step}")


def test_shares_are_exact():
    assert Term("macs", 0.29, True).resolve(100) == 29  # 0.29 * 100 is 28.999... in floats
    assert Term("macs", 0.5, True).resolve(7) == 3
    assert str(parse_budget("macs<=29%, weights<=1KiB")) == "macs<=29%, weights<=1024"


def test_describe():
    assert Limits({"latency": 2_310_000}).describe() == "latency <= 2.31ms"
    assert Limits({"macs": 20_406_592, "weights": 10**6}).describe() == "macs <= 20.4M, weights <= 1MB"


# ------------------------------------------------------------------ on a network


@pytest.fixture(scope="module")
def resnet():
    return read("zoo:resnet20")


def test_resolve(resnet):
    costs = profile(resnet)
    limits = parse_budget("macs<=50%, params<=2x, activations<=100KB, weights<=1MB").resolve(costs)
    assert limits.limits == {
        "macs": costs.macs // 2,
        "params": costs.params * 2,
        "activations": 100_000,
        "weights": 1_000_000,
    }
    assert not limits.met(costs_of(costs))
    assert set(limits.excess(costs_of(costs))) == {"macs", "activations", "weights"}


def test_resolve_latency(resnet):
    costs = profile(resnet)
    budget = parse_budget("macs<=50%, latency<=60%")
    assert budget.measures == ("latency",)
    assert budget.resolve(costs, 1_000_001).limits == {"macs": costs.macs // 2, "latency": 600_000}
    assert parse_budget("latency<=3ms").resolve(costs).limits == {"latency": 3_000_000}
    with pytest.raises(BudgetError, match="measure the network"):
        budget.resolve(costs)


def test_measured_metrics_come_from_estimates(resnet):
    model = resnet.cost_model()
    limits = Limits({"macs": 5, "latency": 5}, {"latency": lambda widths: 7 + len(widths)})
    assert limits.costs(model, {}) == {"macs": profile(resnet).macs, "latency": 7}
    assert limits == Limits({"macs": 5, "latency": 5})
    with pytest.raises(BudgetError, match="needs an estimate"):
        Limits({"latency": 5}).costs(model, {})


def test_feasible_range_of_latency(resnet):
    smallest = smallest_widths(resnet)
    estimate = {"latency": lambda widths: 2_000_000 if widths == smallest else 9_000_000}
    assert feasible_range(resnet, estimate)["latency"] == (2_000_000, 9_000_000)
    check_feasible(Limits({"latency": 2_000_000}, estimate), resnet)
    with pytest.raises(BudgetError, match=r"latency<=1ms cannot be met: .* goes from 2ms to 9ms"):
        check_feasible(Limits({"latency": 1_000_000}, estimate), resnet)

    def lost(widths):
        raise BudgetError("these widths do not fit together")

    assert "latency" not in feasible_range(resnet, {"latency": lost})
    check_feasible(Limits({"latency": 1}, {"latency": lost}), resnet)


def test_feasible_range(resnet):
    found, present = feasible_range(resnet), costs_of(profile(resnet))
    assert set(smallest_widths(resnet).values()) == {1}
    assert list(found) == list(METRICS)
    for metric, (low, high) in found.items():
        assert 0 < low < high == present[metric]


def test_check_feasible(resnet):
    costs, low = profile(resnet), feasible_range(resnet)["macs"][0]
    check_feasible(Limits({"macs": low}), resnet)
    check_feasible(parse_budget("macs<=50%,params<=2x").resolve(costs), resnet)
    with pytest.raises(BudgetError, match="cannot be met"):
        check_feasible(Limits({"macs": low - 1}), resnet)
    with pytest.raises(BudgetError) as caught:
        check_feasible(parse_budget("macs<=1K").resolve(costs), resnet)
    assert str(caught.value) == (
        f"macs<=1K cannot be met: by width alone zoo:resnet20 goes from {human(low)} to {human(costs.macs)}."
    )


def test_smallest_widths_respect_steps_and_ties():
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 12, 1)
            self.b = nn.Conv2d(12, 8, 1, groups=4)
            self.c = nn.Conv2d(8, 6, 1)
            self.d = nn.Conv2d(8, 3, 1)
            self.e = nn.Conv2d(8, 3, 1)
            self.f = nn.Conv2d(6, 4, 1)

        def forward(self, x):
            x = self.b(self.a(x))
            left, right = torch.cat([self.c(x), self.d(x), self.e(x)], 1).chunk(2, 1)
            return self.f(left * right)

    arch = read(Net(), (3, 4, 4))
    smallest = smallest_widths(arch)
    assert smallest["a"] == 4
    assert smallest["b"] == 4
    assert arch.cost_model().macs(smallest) > 0
