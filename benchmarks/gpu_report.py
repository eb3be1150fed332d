"""What the GPU benchmark has found so far: on disk after every measurement, and in tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from benchmarks.gpu_cases import VARIANTS, Case
from benchmarks.gpu_meters import operations_per_image, peak_of
from benchmarks.gpu_worker import Answer
from benchmarks.report import Spread, table, write
from bllpipe.config import load_config

Result = dict[str, Any]
TITLE = "Images per second of backpropagation and of BLL on one GPU"
ONE_GRAPH, BLOCKS = ("bll one graph", "bll one graph compiled"), ("bll blocks", "bll blocks compiled")


@dataclass
class Ledger:
    """All that was measured, that failed and that was left out. Every change is written to ``path`` at once, whole."""

    path: str | None
    settings: Mapping[str, Any]
    surroundings: Mapping[str, Any] = field(default_factory=dict)
    found: dict[Case, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    without_kernel: dict[Case, float | None] = field(default_factory=dict)
    operations: dict[tuple[str, str], float] = field(default_factory=dict)  # an image, by network and side
    failed: list[dict[str, Any]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def add(self, case: Case, answer: Answer) -> None:
        """Another repetition of a case, or why there is none."""
        if answer.error is None:
            self.found[case].append({**answer.value, "seconds": answer.seconds})
        else:
            self.add_failure(case.name, answer)
        self.flush()

    def add_failure(self, name: str, answer: Answer) -> None:
        seconds = round(answer.seconds, 2)
        self.failed.append({"case": name, "error": answer.error, "details": answer.details, "seconds": seconds})

    def count_operations(self) -> None:
        """Once a network and side: they are the same in every batch. A CPU is enough for it."""
        for case in self.found:
            key = (case.model, case.side)
            if key not in self.operations:
                self.operations[key] = operations_per_image(load_config(None, [*case.settings, "device=cpu"]))
                self.flush()

    @property
    def failures(self) -> set[str]:
        """The names of the cases that have failed."""
        return {each["case"] for each in self.failed}

    def flush(self) -> None:
        settings = {**self.settings, "failed": self.failed, "left_out": self.left, "one_graph": self.one_graph()}
        write(self.path, TITLE, settings, self.results(), self.surroundings)

    def results(self) -> list[Result]:
        """One a case, in the order of their first measurement."""
        return [self._result(case, own) for case, own in self.found.items() if own]

    def fastest_bp(self, case: Case) -> Case | None:
        """The variant of backpropagation that is fastest on the network and batch of ``case``."""
        baselines = [replace(case, variant=name) for name in VARIANTS if name.startswith("bp")]
        measured = [baseline for baseline in baselines if self.found.get(baseline)]
        return max(measured, key=lambda baseline: median(_rates(self.found[baseline])), default=None)

    def one_graph(self) -> list[Result]:
        """By network and batch: the rate of the whole wavefront as one graph over that of a graph a block and piece."""
        pairs = [(case, replace(case, variant=other)) for case in self.found for other in BLOCKS]
        return [
            {"case": case.name, "against": other.name, "ratio": ratio}
            for case, other in pairs
            if case.variant in ONE_GRAPH and case.is_compiled == other.is_compiled
            if (ratio := self._ratio(case, other)) is not None
        ]

    def _ratio(self, case: Case, other: Case) -> float | None:
        """The median over the repetitions that both have."""
        pairs = zip(_rates(self.found.get(case, [])), _rates(self.found.get(other, [])), strict=False)
        ratios = [own / its for own, its in pairs]
        return median(ratios) if ratios else None

    def _result(self, case: Case, own: Sequence[Mapping[str, Any]]) -> Result:
        rate, baseline = median(_rates(own)), self.fastest_bp(case)
        operations = self.operations.get((case.model, case.side))
        gpus = self.surroundings.get("gpus") or [""]
        peak = peak_of(gpus[0])
        watts = [each["watts"] for each in own if each["watts"] is not None]
        return {
            "case": case.name,
            **{name: getattr(case, name) for name in ("variant", "model", "batch", "settings", "lap_steps", "laps")},
            "repetitions": len(own),
            "images_per_second": Spread.of([rate for each in own for rate in each["rates"]]),
            "fastest_bp": baseline.variant if baseline else None,
            "over_fastest_bp": self._ratio(case, baseline) if baseline else None,
            "operations_per_image": operations,
            "of_bf16_peak": rate * operations / peak if peak and operations else None,
            **{name: max(each[name] or 0 for each in own) for name in BYTES},
            "joules_per_image": median(watts) / rate if watts else None,
            "time_without_kernel": self.without_kernel.get(case),
            "loss": own[-1]["loss"],
            "seconds": [round(each["seconds"], 2) for each in own],
        }

    def tables(self) -> str:
        """Every case beside the fastest of backpropagation, then one graph beside many, then what is missing."""
        parts = [table(HEADS, [_row(each) for each in self.results()])]
        if graphs := self.one_graph():
            rows = [[each["case"], each["against"].split(" ", 2)[2], f"{each['ratio']:.3f}"] for each in graphs]
            parts.append(table(["capture=true against capture=blocks", "", "ratio"], rows))
        parts += [f"failed: {each['case']}: {each['error']}" for each in self.failed]
        if self.left:
            parts.append(f"left out, as the time was spent: {', '.join(self.left)}")
        return "\n\n".join(parts)


BYTES = ("peak_memory_bytes", "reserved_bytes", "left_bytes")
HEADS = [
    "case",
    "images/s",
    "n",
    "/ fastest BP",
    "which is",
    "of bf16 peak",
    "GiB",
    "reserved",
    "mJ/image",
    "no kernel",
]


def _rates(own: Sequence[Mapping[str, Any]]) -> list[float]:
    return [median(each["rates"]) for each in own]


def _row(result: Mapping[str, Any]) -> list[object]:
    ratio, share, joules, idle = (
        result[key] for key in ("over_fastest_bp", "of_bf16_peak", "joules_per_image", "time_without_kernel")
    )
    return [
        result["case"],
        result["images_per_second"],
        result["repetitions"],
        f"{ratio:.3f}" if ratio else "-",
        result["fastest_bp"] or "-",
        f"{100 * share:.1f} %" if share else "-",
        f"{result['peak_memory_bytes'] / 2**30:.2f}",
        f"{result['reserved_bytes'] / 2**30:.2f}" if result["reserved_bytes"] else "-",
        f"{1e3 * joules:.2f}" if joules else "-",
        f"{100 * idle:.1f} %" if idle is not None else "-",
    ]
