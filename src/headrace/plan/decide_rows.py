"""How many rows at once make the most tokens a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from headrace.model.cost import layer_dense_flops, prefill_attention_flops
from headrace.plan.decision import Decider
from headrace.plan.demands import Schedule
from headrace.plan.policies import Policy


def best_rows(decider: Decider, policy: Policy) -> int:
    """Return the number of rows, up to the workload's, that makes most tokens a second.

    Prefill and decoding count, both by what rates and launching allow: nothing is simulated here.
    More rows share the weights of a step, until memory makes their cache travel; so the search goes
    up in doublings, and then closes in on the best of them.

    Args:
        decider: decides for the most rows there may be.
        policy: how to choose the split.
    """
    most = decider.workload.rows
    order = decider.options.schedule or (
        Schedule.COLUMN if decider.workload.batches > 1 else Schedule.ROW
    )

    @cache
    def speed(rows: int) -> float:
        batches = min(rows, decider.workload.batches)
        fewer = replace(decider, workload=replace(decider.workload, rows=rows, batches=batches))
        decided = fewer.decide(policy, order)
        if not decided.fits:
            return -decided.lacking_bytes
        work = fewer.workload
        total_s = prefill_bound_s(fewer) + work.decode_steps * decided.least_s
        return rows * work.generate_len / total_s

    tried = [1]
    while tried[-1] * 2 < most:
        tried.append(tried[-1] * 2)
    tried += [most] if most > 1 else []
    best = max(range(len(tried)), key=lambda place: (speed(tried[place]), tried[place]))
    low = tried[max(0, best - 1)]
    high = tried[min(len(tried) - 1, best + 1)]
    return _peak(speed, low, tried[best], high)


def _peak(speed: Callable[[int], float], low: int, best: int, high: int) -> int:
    """Close in on the peak between two numbers of rows, a few at a time."""
    while high - low > 2:
        middles = {(low + best) // 2, (best + high + 1) // 2, best}
        top = max(middles, key=lambda rows: (speed(rows), rows))
        around = sorted({low, high, *middles})
        place = around.index(top)
        tighter = around[max(0, place - 1)], around[min(len(around) - 1, place + 1)]
        if tighter == (low, high) and top == best:
            break
        (low, high), best = tighter, top
    return best


def prefill_bound_s(decider: Decider) -> float:
    """Return the least time of the prompts: their arithmetic, and bringing in streamed weights."""
    shape, workload, profile = decider.shape, decider.workload, decider.profile
    tokens = workload.rows * workload.prompt_len
    flops = sum(layer_dense_flops(layer, tokens) for layer in shape.layers)
    flops += shape.num_layers * workload.rows * prefill_attention_flops(shape, workload.prompt_len)
    return flops / profile.gemm_rate(shape.dtype)
