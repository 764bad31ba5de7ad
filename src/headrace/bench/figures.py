"""What is measured, as JSON has it (``docs/usage.md`` describes the fields).

``SCHEMA_VERSION`` grows when a field goes or means something else; new fields alone do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from headrace.bench.measurement import Agreement, PolicyMeasurement, RivalMeasurement, Unable
from headrace.bench.rivals import RIVALS
from headrace.bench.suite import CaseResult
from headrace.hardware.profile import HardwareProfile
from headrace.hardware.profile_file import profile_to_json

SCHEMA_VERSION = 2


def stream_step_s(measured: Sequence[PolicyMeasurement]) -> float | None:
    """Return the step of ``stream``, or None where it was not measured."""
    return next((one.step_s for one in measured if one.policy == "stream"), None)


def policy_json(one: PolicyMeasurement, stream_s: float | None) -> dict[str, Any]:
    """Return a policy's figures.

    Args:
        one: what was measured.
        stream_s: the step of ``stream`` in the same run, or None.
    """
    return {
        "policy": one.policy,
        "batches": one.batches,
        "origin": one.origin.value,
        "recompute_fraction": one.recompute_fraction,
        "resident_fraction": one.resident_fraction,
        "stream_fraction": one.stream_fraction,
        "host_fraction": one.host_fraction,
        "prefill_s": one.prefill_s,
        "step_s": one.step_s,
        "step_s_min": one.step_s_range[0],
        "step_s_max": one.step_s_range[1],
        "tokens_per_s": one.tokens_per_s,
        "predicted_step_s": one.predicted_step_s,
        "prediction_error": one.prediction_error,
        "bound_s": one.bound_s,
        "bound_share": one.bound_share,
        "link_bytes_per_step": one.link_bytes,
        "link_bytes_per_s": one.link_bytes_per_s,
        "link_busy": one.link_busy,
        "device_busy": one.device_busy,
        "lanes_busy": {lane.value: share for lane, share in one.lanes.busy.items()},
        "host_attend_bytes_per_s": one.lanes.host_attend_bytes_per_s,
        "dram_bytes_per_s": one.lanes.dram_bytes_per_s,
        "rebuild_flops_per_s": one.lanes.rebuild_flops_per_s,
        "peak_gpu_bytes": one.peak_gpu_bytes,
        "host_bytes": one.host_bytes,
        "gpu_bytes_grown_while_decoding": one.grown_bytes,
        "energy_j_per_step": one.energy_j,
        "speedup_over_stream": None if stream_s is None else stream_s / one.step_s,
        "notes": list(one.notes),
    }


def rates_json(
    one: PolicyMeasurement, profile: HardwareProfile, dtype: str
) -> dict[str, float | None]:
    """Return what was reached of the profile's rates, as shares; None for what was not used."""
    lanes = one.lanes
    pairs = {
        "link": (lanes.link_bytes_per_s, profile.h2d_bytes_per_s),
        "host_attention": (lanes.host_attend_bytes_per_s, profile.host_attend_rate),
        "dram": (lanes.dram_bytes_per_s, profile.dram_rate),
        "rebuild": (lanes.rebuild_flops_per_s, profile.rebuild_rate(dtype)),
    }
    return {name: reached / rate if reached else None for name, (reached, rate) in pairs.items()}


def rival_json(one: RivalMeasurement, stream_s: float | None) -> dict[str, Any]:
    """Return a rival's figures."""
    steps = one.steps
    return {
        "rival": one.rival,
        "words": RIVALS[one.rival].words,
        "origin": one.origin.value,
        "prefill_s": steps.prefill_s,
        "step_s": steps.step_s,
        "step_s_min": steps.step_s_range[0],
        "step_s_max": steps.step_s_range[1],
        "tokens_per_s": steps.tokens_per_s,
        "peak_gpu_bytes": steps.peak_gpu_bytes,
        "energy_j_per_step": steps.energy_j,
        "speedup_over_stream": None if stream_s is None else stream_s / steps.step_s,
    }


def case_json(result: CaseResult) -> dict[str, Any]:
    """Return everything that came out of a case."""
    stream_s = stream_step_s(result.policies)
    sizes, case, budget = result.fitted.sizes, result.case, result.budget
    dtype = sizes.dtype
    return {
        "case": case.name,
        "machine": result.profile.emulates or result.profile.name,
        "model": result.label,
        "workload": {
            "model": sizes.model,
            "dtype": dtype,
            "layers": sizes.layers,
            "narrow": sizes.narrow,
            "rows": sizes.rows,
            "prompt_len": sizes.prompt_len,
            "gpu_memory": budget.gpu_bytes,
            "weights_on_host": budget.weights_on_host,
        },
        "asked": {
            "layers": result.fitted.asked.layers,
            "rows": case.rows,
            "prompt_len": case.prompt_len,
            "gpu_memory": case.gpu_memory,
            "weights_on_host": case.weights_on_host,
        },
        "adapted": [*result.fitted.reasons, *([budget.words] if budget.words else [])],
        "alternating": result.alternating,
        "foreseen": [asdict(one) for one in result.foreseen],
        "policies": [
            {
                **policy_json(one, stream_s),
                "of_profile": rates_json(one, result.profile, dtype),
                "agreement": _agreement_json(result.agreements.get(one.name)),
            }
            for one in result.policies
        ],
        "rivals": [
            {
                **rival_json(one, stream_s),
                "within_budget": budget.gpu_bytes is None
                or one.steps.peak_gpu_bytes <= budget.gpu_bytes,
                "agreement": _agreement_json(result.agreements.get(one.rival)),
            }
            for one in result.rivals
        ],
        "unable": [unable_json(one) for one in result.unable],
        "passed": result.passed,
        "profile": profile_to_json(result.profile),
        "seconds": result.seconds,
    }


def unable_json(one: Unable) -> dict[str, Any]:
    """Return what could not run, and why."""
    return {"name": one.name, "reason": one.reason}


def _agreement_json(agreement: Agreement | None) -> dict[str, Any] | None:
    if agreement is None:
        return None
    found = asdict(agreement)
    error = agreement.max_logit_error
    return {**found, "max_logit_error": error if error < float("inf") else None}
