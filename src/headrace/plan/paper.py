"""The experiments of KVPR's paper, as settings that can be simulated, and what it reports of them.

KVPR: Efficient LLM Inference with I/O-Aware KV Cache Partial Recomputation, Findings of ACL 2025,
arXiv 2411.17089. Its latency is that of decoding and its throughput that of decoding: it leaves the
prefill as it is (section 4). Its latency-oriented workload has the weights on the device and is
compared with Hugging Face Accelerate and DeepSpeed Inference; its throughput-oriented workload has
weights, cache and activations on the host and is compared with FlexGen, column-by-column with
overlap (the settings are those of the README of github.com/chaoyij/KVPR). What is not reported for
a setting is None here, never a guess. ``reproduction.py`` simulates all this.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from headrace.plan.options import Objective
from headrace.plan.workload import Workload

CITATION = (
    "Jiang, Gao, Zarch, Annavaram: KVPR: Efficient LLM Inference with I/O-Aware KV Cache Partial "
    "Recomputation, Findings of ACL 2025, arXiv 2411.17089"
)
"""The paper; measured by its authors on an A100-40GB, PCIe 4.0 with 16 lanes (section 4)."""


class Method(StrEnum):
    """A way to bring the cache to bear, as a column of the tables."""

    SYNCHRONOUS = "synchronous"
    """Full transfer with nothing beside it: each load and each kernel waits for the one before."""
    STREAM = "stream"
    """Full transfer, overlapped with everything (for throughput: FlexGen's order)."""
    PAPER = "kvpr"
    """The paper's schedule, with the best split at every step."""
    RECOMPUTE = "recompute"
    """Ours: X and K/V interleaved, with look-ahead; the split is fixed when a row is admitted."""
    AUTO = "auto"
    """Ours: the planner's choice, the cache on the host, the host's cores not used."""
    AUTO_HOST = "auto_host"
    """Ours: the same, and the host's cores may attend."""
    AUTO_FREE = "auto_free"
    """Ours: the planner's choice of everything, the device's spare memory included."""


@dataclass(frozen=True)
class Reported:
    """A figure of the paper, measured by its authors.

    Attributes:
        share: of the latency that is saved, or by which the throughput is higher.
        is_maximum: whether it is the most of several settings, of which this is one.
        baseline: what it is compared with.
        source: where the paper has it.
    """

    share: float
    is_maximum: bool
    baseline: str
    source: str


@dataclass(frozen=True)
class Case:
    """A setting of a study: a line of its table.

    Attributes:
        model: name of a published shape.
        workload: rows, prompts and generation.
        reported: what the paper reports, or None.
    """

    model: str
    workload: Workload
    reported: Reported | None = None


@dataclass(frozen=True)
class Study:
    """Settings on one machine.

    Attributes:
        key: its name in JSON.
        title: its name in words.
        machine: name of a published machine.
        assumes: what of the machine counts.
        objective: what counts: the seconds of decoding, or tokens a second.
        cases: its settings.
        differs: why simulated and reported figures differ.
    """

    key: str
    title: str
    machine: str
    assumes: str
    objective: Objective
    cases: tuple[Case, ...]
    differs: str

    @property
    def keeps_weights(self) -> bool:
        """Whether the weights stay on the device."""
        return self.objective is Objective.LATENCY


def studies() -> tuple[Study, ...]:
    """Return all studies, in the order of the paper."""
    return (
        _latency("latency-model", "paper-a100", _MODEL_MACHINE),
        _latency("latency", "a100-40gb-pcie4", _SHEET_MACHINE),
        _throughput("throughput", "a100-40gb-pcie4", _SHEET_MACHINE),
        Study(
            "low-end-latency",
            f"Low-end GPU. {_LATENCY_TITLE}",
            "rtx4090-pcie4",
            _SHEET_MACHINE,
            Objective.LATENCY,
            tuple(_latency_case(prompt_len, 32, None) for prompt_len in _LATENCY_PROMPTS),
            _LOW_END,
        ),
        Study(
            "low-end-throughput",
            f"Low-end GPU. {_THROUGHPUT_TITLE}",
            "rtx4090-pcie4",
            _SHEET_MACHINE,
            Objective.THROUGHPUT,
            tuple(
                _throughput_case(model, prompt_len, None)
                for model, prompt_len in (("opt-6.7b", 256), ("opt-6.7b", 512), ("opt-13b", 256))
            ),
            _LOW_END,
        ),
    )


_MODEL_MACHINE = "The machine is the paper's model of it: link and arithmetic, nothing else limits."
_SHEET_MACHINE = (
    "The machine has its data sheet's memory rates, usual latencies, and a host whose cores attend."
)
_LATENCY_TITLE = "Latency: weights on the device, cache on the host, row-by-row"
_THROUGHPUT_TITLE = "Throughput: weights and cache on the host, column-by-column"

_LATENCY_PROMPTS = (128, 256, 512)
_THROUGHPUT_PROMPTS = (256, 512, 1024)

_BEST_LATENCY = Reported(
    0.358, False, "Hugging Face Accelerate", "abstract, and section 4 (p. 7 of the ACL version)"
)
_BEST_THROUGHPUT = {
    model: Reported(gain, True, "FlexGen", "section 4 (p. 7 of the ACL version)")
    for model, gain in (("opt-6.7b", 0.151), ("opt-13b", 0.462), ("opt-30b", 0.290))
}

_LATENCY_DIFFERS = (
    "The paper's figure is measured against Hugging Face Accelerate, whose transfers are not "
    "modelled here; the simulated full transfer hides everything else behind the link, so there is "
    "less to save, and in the long generation it can rebuild the prompt's tokens only."
)
_THROUGHPUT_DIFFERS = (
    "The paper's figures are measured, and by its own breakdown (Fig. 10) K/V transfers are only "
    "58 % of the time without its method; in the simulation the link runs at its nominal rate and "
    "is all that a full transfer waits for, so that fewer bytes gain more."
)
_LOW_END = (
    "The paper has a low-end GPU in its appendix A.5, whose figures are not known here, so none is "
    "shown; the machine simulated here, a GeForce RTX 4090 in a desktop, is our choice."
)


def _latency(key: str, machine: str, assumes: str) -> Study:
    cases = tuple(
        _latency_case(prompt_len, generate_len, _BEST_LATENCY)
        for prompt_len in _LATENCY_PROMPTS
        for generate_len in (32, 128)
    )
    return Study(
        key,
        _LATENCY_TITLE,
        machine,
        assumes,
        Objective.LATENCY,
        cases,
        _LATENCY_DIFFERS,
    )


def _latency_case(prompt_len: int, generate_len: int, best: Reported | None) -> Case:
    """Return a setting; the paper's figure is that of 128 and 128 tokens."""
    is_best = (prompt_len, generate_len) == (128, 128)
    workload = Workload(64, prompt_len, generate_len)
    return Case("opt-6.7b", workload, best if is_best else None)


def _throughput(key: str, machine: str, assumes: str) -> Study:
    cases = tuple(
        _throughput_case(model, prompt_len, best)
        for model, best in _BEST_THROUGHPUT.items()
        for prompt_len in _THROUGHPUT_PROMPTS
    )
    return Study(
        key,
        _THROUGHPUT_TITLE,
        machine,
        assumes,
        Objective.THROUGHPUT,
        cases,
        _THROUGHPUT_DIFFERS,
    )


def _throughput_case(model: str, prompt_len: int, best: Reported | None) -> Case:
    """Return a setting: eight batches of 32 rows, 32 tokens to generate."""
    return Case(model, Workload(256, prompt_len, 32, batches=8), best)
