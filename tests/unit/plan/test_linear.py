import math
from dataclasses import replace

import pytest

from headrace.hardware.catalog import machine
from headrace.model.shape import ModelShape
from headrace.plan.decision import Decider
from headrace.plan.linear import LinearProgram
from headrace.plan.options import PlanOptions
from headrace.plan.policies import Policy
from headrace.plan.workload import Workload


def two_routes():
    """A time that two routes share: 3 s by the one, 6 s by the other."""
    program = LinearProgram()
    program.add_column("T", cost=1.0)
    program.add_column("fast", upper=1.0)
    program.add_column("slow", upper=1.0)
    program.add_row("all", {"fast": 1.0, "slow": 1.0}, lower=1.0, upper=1.0)
    program.add_row("fast takes", {"fast": 3.0, "T": -1.0}, upper=0.0)
    program.add_row("slow takes", {"slow": 6.0, "T": -1.0}, upper=0.0)
    return program


def test_routes_are_shared_so_that_both_end_together():
    solution = two_routes().solve()
    assert solution.objective == pytest.approx(2.0)
    assert solution.values["fast"] == pytest.approx(2 / 3)
    # A second more for either would be shared in the same proportion.
    assert -solution.prices["fast takes"] == pytest.approx(2 / 3)
    assert -solution.prices["slow takes"] == pytest.approx(1 / 3)


def test_what_cannot_be_has_no_solution():
    program = two_routes()
    program.add_row("neither", {"fast": 1.0, "slow": 1.0}, upper=0.5)
    assert program.solve() is None


def test_names_are_unique_and_known():
    program = two_routes()
    with pytest.raises(ValueError, match="a column 'T' already"):
        program.add_column("T")
    with pytest.raises(ValueError, match="a row 'all' already"):
        program.add_row("all", {})
    with pytest.raises(ValueError, match=r"unknown columns \['air'\]"):
        program.add_row("other", {"air": 1.0})


def test_a_program_on_which_the_simplex_method_gives_up_is_presolved():
    shape = ModelShape(
        *("random", 5, 1024, 40, 1, 64, 2048, True, 1000, False, 2**20),
        dtype="float32",
        kv_widths=((1, 64),) * 5,
    )
    profile = replace(
        machine("a100-40gb-pcie4"),
        h2d_bytes_per_s=math.exp(24.75),
        d2h_bytes_per_s=56077471988.9338,
        gemm_flops_per_s={"float32": math.exp(30.0)},
        device_bytes_per_s=math.exp(26.0234375),
        host_bytes_per_s=math.exp(25.0),
        copy_latency_s=0.0,
        launch_latency_s=0.0,
        host_attend_bytes_per_s=72004899337.38588,
        h2d_while_host_bytes_per_s=56077471988.9338,
        host_while_h2d_bytes_per_s=36002449668.69294,
    )
    options = PlanOptions(
        gpu_memory_bytes=292702720.0, host_memory_bytes=39613005.51532694, prefill_tokens=20000
    )
    decider = Decider(shape, Workload(1, 20000, 1), profile, options)
    assert not decider.decide(Policy.RESIDENT).fits
