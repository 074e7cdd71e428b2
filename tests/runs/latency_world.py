"""A made-up machine: every network takes a known time on it, so each run of a test decides alike."""

from convwright.architecture import read
from convwright.architecture.capture.pytrees import Inputs
from convwright.cost import Comparison, Latency, LatencyTable, Spread, layer_latencies
from convwright.cost.latency import spread
from convwright.cost.latency_operators import operator_calls

PER_ELEMENT, PER_NETWORK = 1e-6, 2e-4


def operator_time(call):
    """What an operator takes: in proportion to what it reads and writes."""
    seconds = PER_ELEMENT * (call.outputs + sum(spec.storage_size() for spec in call.tensors))
    return Spread(seconds, seconds, seconds, 6)


def operator_times(calls):
    return {call.key: operator_time(call) for call in calls}


class World:
    """A machine on which everything takes a known time.

    Attributes:
        table: how operators are measured there.
        speed: what all times are multiplied by.
        overhead: what a whole network takes beyond its operators; a sum of operators does not know of it.
        per_call: what each call of an operator takes beyond what it takes alone, likewise; no width changes it.
        asked: the operators measured.
        turns: how often networks were compared.
    """

    def __init__(self, folder):
        self.folder, self.speed, self.overhead, self.per_call = folder, 1.0, PER_NETWORK, 0.0
        self.asked, self.turns = [], 0
        self.sums = {}

    def operators(self, calls):
        self.asked += [call.key for call in calls]
        return operator_times(calls)

    def table(self, device="cpu", **arguments):
        return LatencyTable(device, **{"folder": self.folder, "measure": self.operators, **arguments})

    def seconds(self, model, example):
        model = getattr(model, "model", model)  # of a program
        key = (*(p.shape for p in model.parameters()), Inputs.of(example).tensors[0].shape)
        if key not in self.sums:
            table = LatencyTable(folder=self.folder / "truth", measure=operator_times)
            nothing = Latency(1.0, 1.0, 1.0, 6, 1, "cpu", "float32")
            arch = read(model, example)
            self.sums[key] = layer_latencies(arch, table, nothing).sum, len(operator_calls(arch))
        seconds, calls = self.sums[key]
        return self.speed * (1.2 * seconds + self.overhead + self.per_call * calls)

    def measure(self, model, example, backend=None):
        seconds = self.seconds(model, example)
        return Latency(seconds, seconds * 0.99, seconds * 1.01, 6, 1, "cpu", "float32")

    def compare(self, models, backend=None):
        self.turns += 1
        found = {name: self.measure(*of) for name, of in models.items()}
        first = next(iter(found.values())).median
        return Comparison(found, {name: spread([one.median / first] * 6) for name, one in found.items()})
