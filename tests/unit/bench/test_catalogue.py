import subprocess
import sys

import pytest

from headrace.bench.catalogue import CASES, SUITE, WORKLOADS, named_cases
from headrace.bench.rivals import RIVALS
from headrace.errors import ConfigurationError
from headrace.model.published import published_shape
from headrace.plan.policies import Policy
from headrace.units import parse_bytes


@pytest.mark.parametrize("name", CASES)
def test_cases_are_of_published_shapes_and_known_ways(name):
    case = CASES[name]
    shape = published_shape(case.model)
    assert case.layers is None or 1 <= case.layers <= shape.num_layers
    assert set(case.policies) <= set(Policy)
    assert set(case.rivals) <= set(RIVALS)
    assert min(case.rows, case.prompt_len, case.rounds, case.steps) >= 1
    assert case.gpu_memory is None or parse_bytes(case.gpu_memory, setting="") > 1 << 30


def test_names_of_cases_workloads_and_models_differ():
    cases = [case.name for workload in WORKLOADS.values() for case in workload.cases]
    assert len(cases) == len(set(cases))
    assert not set(cases) & {SUITE, *WORKLOADS}
    assert "opt-6.7b" not in (*cases, *WORKLOADS)


def test_a_workload_stands_for_its_cases_and_the_suite_for_all():
    assert named_cases(["fits"]) == list(WORKLOADS["fits"].cases)
    assert named_cases(["fits-8", "fits"])[0] is CASES["fits-8"]
    assert len(named_cases(["fits-8", "fits"])) == 3
    assert named_cases([SUITE]) == list(CASES.values())


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(
        ConfigurationError, match=r"'fit'; there are paper-latency, .*suite.*fits-8"
    ):
        named_cases(["fits", "fit"])


def test_the_catalogue_needs_no_torch():
    code = "import sys, headrace.bench.catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
