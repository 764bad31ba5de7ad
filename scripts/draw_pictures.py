"""Draw the pictures of the documentation from the simulator: ``docs/img/how-it-works.svg``.

Three layers of OPT-6.7B with 64 rows of 256 cached tokens, on the machine of KVPR's analysis (32e9
bytes/s, 312e12 FLOP/s), to which the A100-40GB's memory rate is added, so that attending is seen.
It is a step in steady state: between two others, whose loads look ahead over its ends.
With ``--page FILE`` also writes them as a timeline page, and with ``--plan-report`` also takes the
pictures of a plan's page, ``docs/img/plan-report-*.png``, for which it needs a Chromium.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from plan_pictures import draw_plan_report

from headrace.hardware.catalog import machine
from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import (
    activation_bytes_per_token,
    kv_bytes_per_token,
    rebuild_flops_per_token,
)
from headrace.model.shape import ModelShape
from headrace.plan.granules import GranuleKind, GranuleSpec, order_granules
from headrace.plan.policies import LayerTimes, Policy, best_fraction
from headrace.plan.schedule import build_program
from headrace.plan.simulate import simulate
from headrace.report.panels import steps_of
from headrace.report.svg import timeline_svg
from headrace.report.timeline_page import write_timeline_page
from headrace.timeline import Timeline

TARGET = Path(__file__).parent.parent / "docs" / "img" / "how-it-works.svg"
A100_MEMORY_BYTES_PER_S = 1555e9
ROWS, CONTEXT = 64, 256
GRANULES = 4
POLICIES = {
    "stream": (
        Policy.STREAM,
        "All K/V travel. The link is full, the GPU waits for it.",
    ),
    "kvpr": (
        Policy.KVPR,
        "X of a part travels first, and nothing hides it; then the GPU rebuilds K/V from X while "
        "the rest of the K/V travels.",
    ),
    "recompute": (
        Policy.RECOMPUTE,
        "Only X travels, half the bytes, and the link never waits: the next X comes while the GPU "
        "rebuilds from this one.",
    ),
}
OPT_6_7B = ModelShape(
    name="opt-6.7b",
    num_layers=32,
    d_model=4096,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    d_ff=16384,
    gated_ff=False,
    vocab_size=50272,
    tied_embeddings=True,
    max_context=2048,
    dtype="float16",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="also write a timeline page to this file")
    parser.add_argument(
        "--plan-report", action="store_true", help="also take pictures of a plan's page"
    )
    arguments = parser.parse_args()
    profile = replace(machine("paper-a100"), device_bytes_per_s=A100_MEMORY_BYTES_PER_S)
    shape = replace(OPT_6_7B, num_layers=3)
    timelines = [
        policy_timeline(policy, label, shape, profile) for label, (policy, _) in POLICIES.items()
    ]
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    picture = timeline_svg(
        timelines,
        width=1000,
        title="Three layers of a decode step: stream, kvpr and recompute on one time axis",
        captions={label: caption for label, (_, caption) in POLICIES.items()},
    )
    TARGET.write_text(picture + "\n", "utf-8")
    if arguments.page:
        facts = {
            "Model": "OPT-6.7B, three of its layers, float16",
            "Workload": f"{ROWS} rows of {CONTEXT} cached tokens",
            "Machine": "KVPR’s A100: link 32 GB/s, 312 TFLOP/s; memory 1555 GB/s",
        }
        write_timeline_page(arguments.page, timelines, title="How it works", facts=facts)
    if arguments.plan_report:
        draw_plan_report(TARGET.parent)


def policy_timeline(
    policy: Policy, label: str, shape: ModelShape, profile: HardwareProfile
) -> Timeline:
    """Return the predicted timeline of the layers, without the head, under one policy."""
    times = LayerTimes.from_rates(
        kv_bytes_per_token(shape),
        activation_bytes_per_token(shape),
        rebuild_flops_per_token(shape),
        profile.h2d_bytes_per_s,
        profile.gemm_flops_per_s[shape.dtype],
    )
    tokens = ROWS * CONTEXT
    rebuilt = round(best_fraction(policy, times) * tokens)
    specs = [
        *_granules("activations", rebuilt, tokens, activation_bytes_per_token(shape)),
        *_granules("kv", tokens - rebuilt, tokens, kv_bytes_per_token(shape)),
    ]
    layers = [order_granules(specs, policy)] * shape.num_layers
    program = build_program(shape, layers, ROWS, 1, 2 * GRANULES, policy)
    without_head = tuple(op for op in program.operations if op.layer < shape.num_layers)
    program = replace(program, operations=without_head)
    return _middle_step(simulate(program, profile, shape.dtype, steps=3, label=label))


def _middle_step(timeline: Timeline) -> Timeline:
    """Return what happens between the end of the first step's computing and the second's."""
    step = steps_of(timeline)[1]
    spans = [
        replace(
            span,
            step=0,
            start_s=max(span.start_s, step.start_s),
            finish_s=min(span.finish_s, step.finish_s),
        )
        for span in timeline.spans
        if span.start_s < step.finish_s and span.finish_s > step.start_s
    ]
    return replace(timeline, spans=tuple(spans))


def _granules(
    kind: GranuleKind, tokens: int, all_tokens: int, bytes_per_token: int
) -> list[GranuleSpec]:
    """Cut tokens into even granules of about a quarter of all tokens."""
    count = round(GRANULES * tokens / all_tokens) or min(tokens, 1)
    cuts = [tokens * n // max(count, 1) for n in range(count + 1)]
    sizes = [high - low for low, high in pairwise(cuts)]
    return [GranuleSpec(kind, 1, size, size * bytes_per_token) for size in sizes]


if __name__ == "__main__":
    main()
