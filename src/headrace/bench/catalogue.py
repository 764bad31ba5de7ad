"""The named workloads of the benchmark suite: what is run, at the sizes that are asked for.

A machine that is smaller runs less of it (``sizes.py``), and says so. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import ConfigurationError

PLAIN, OFFLOADED, STATIC = "transformers", "transformers-offloaded", "transformers-static"
"""The rivals: transformers' cache on the device, and its two that offload it (``rivals.py``)."""

_ALL = ("stream", "kvpr", "recompute", "host", "auto")
_GROUPED = ("stream", "recompute", "host", "auto")
_PLAIN = (PLAIN,)
RIVAL_NAMES = (PLAIN, OFFLOADED, STATIC)
"""All rivals."""

SUITE = "suite"
"""The name that stands for all workloads."""


@dataclass(frozen=True)
class Case:
    """A batch that is measured.

    Attributes:
        name: what it is called; its results are kept under it.
        model: a published shape, with random weights.
        rows: sequences.
        prompt_len: tokens of each prompt.
        policies: what of ours is compared.
        rivals: what else is compared.
        gpu_memory: budget of device memory, which stands for a smaller card; None: all of it.
        weights_on_host: share of the layers' weights that is streamed; None: what does not fit.
        layers: decoder layers, or None for all.
        rounds: turns of each.
        steps: steps of a turn that are timed.
    """

    name: str
    model: str
    rows: int
    prompt_len: int
    policies: tuple[str, ...] = _ALL
    rivals: tuple[str, ...] = _PLAIN
    gpu_memory: str | None = None
    weights_on_host: float | None = None
    layers: int | None = None
    rounds: int = 2
    steps: int = 4


@dataclass(frozen=True)
class NamedWorkload:
    """Some cases that show one thing.

    Attributes:
        name: what it is called.
        words: what it shows.
        cases: what is measured.
    """

    name: str
    words: str
    cases: tuple[Case, ...]


def _paper_latency(prompt_len: int, gpu_gib: int = 16) -> Case:
    budget = "" if gpu_gib == 16 else f"-{gpu_gib}gib"
    return Case(
        f"paper-latency-{prompt_len}{budget}",
        "opt-6.7b",
        64,
        prompt_len,
        rivals=RIVAL_NAMES if gpu_gib == 16 else _PLAIN,
        gpu_memory=f"{gpu_gib}GiB",
    )


def _paper_throughput(model: str, prompt_len: int) -> Case:
    return Case(
        f"paper-throughput-{model}",
        model,
        256,
        prompt_len,
        rivals=(),
        gpu_memory="24GiB",
        weights_on_host=1.0,
        rounds=1,
    )


def _fits(rows: int) -> Case:
    return Case(f"fits-{rows}", "llama-3-8b", rows, 512, ("resident", "auto"), rounds=4, steps=10)


def _weights(model: str) -> Case:
    # A step takes long, and differs little from the next one.
    policies = ("stream", "auto")
    return Case(f"weights-{model}", model, 32, 1024, policies, (), "24GiB", rounds=1)


_WORKLOADS = (
    NamedWorkload(
        "paper-latency",
        "the setting of KVPR's latency study: OPT-6.7B, 64 rows, weights on the device",
        (_paper_latency(128), _paper_latency(512), _paper_latency(512, 24)),
    ),
    NamedWorkload(
        "paper-throughput",
        "the setting of KVPR's throughput study: weights and cache on the host, 256 rows",
        (_paper_throughput("opt-6.7b", 512), _paper_throughput("opt-13b", 256)),
    ),
    NamedWorkload(
        "batch-mha",
        "batches of models whose every head has its own keys and values",
        (
            Case("opt-6.7b-24gib", "opt-6.7b", 64, 1024, gpu_memory="24GiB"),
            Case("batch-mha-llama-2-7b", "llama-2-7b", 32, 2048, gpu_memory="24GiB"),
            Case("opt-13b-16gib", "opt-13b", 64, 1024, ("stream", "auto"), (), "16GiB"),
            Case("opt-13b-24gib", "opt-13b", 64, 1024, ("stream", "auto"), (), "24GiB"),
        ),
    ),
    NamedWorkload(
        "batch-gqa",
        "batches of models whose heads share keys and values",
        (
            Case("llama-3-8b-21gib", "llama-3-8b", 16, 2048, _GROUPED, gpu_memory="21GiB"),
            Case("batch-gqa-llama-3-8b", "llama-3-8b", 64, 4096, _GROUPED, gpu_memory="24GiB"),
            Case("batch-gqa-qwen3-8b", "qwen3-8b", 32, 8192, _GROUPED, gpu_memory="24GiB"),
        ),
    ),
    NamedWorkload(
        "long-context",
        "few rows that are long",
        (
            Case("long-context-24gib", "llama-3-8b", 4, 32768, _GROUPED, gpu_memory="24GiB"),
            Case("long-context-qwen3-8b", "qwen3-8b", 1, 131072, _GROUPED, (), gpu_memory="32GiB"),
        ),
    ),
    NamedWorkload(
        "weights-on-host",
        "models that do not fit the device",
        (
            _weights("opt-30b"),
            _weights("llama-3-70b"),
        ),
    ),
    NamedWorkload(
        "fits", "everything fits the device: what do we cost?", (_fits(1), _fits(8), _fits(64))
    ),
    NamedWorkload(
        "rivals",
        "all of transformers' own caches beside ours, at sizes at which they can run",
        (Case("rivals-llama-3-8b", "llama-3-8b", 16, 2048, _GROUPED, RIVAL_NAMES, "18GiB"),),
    ),
)

WORKLOADS = {workload.name: workload for workload in _WORKLOADS}
"""The workloads by name."""

CASES = {case.name: case for workload in _WORKLOADS for case in workload.cases}
"""All cases by name."""


def named_cases(names: list[str]) -> list[Case]:
    """Return the cases of some workloads, or single ones by their names, each once.

    Raises:
        ConfigurationError: there is no such name; the message lists those there are.
    """
    found: dict[str, Case] = {}
    for name in names:
        if name == SUITE:
            cases = tuple(CASES.values())
        elif name in WORKLOADS:
            cases = WORKLOADS[name].cases
        elif name in CASES:
            cases = (CASES[name],)
        else:
            raise ConfigurationError(
                f"no workload is called {name!r}; there are {', '.join(WORKLOADS)}, {SUITE} for "
                f"all of them, and single cases: {', '.join(CASES)}"
            )
        found |= {case.name: case for case in cases}
    return list(found.values())
