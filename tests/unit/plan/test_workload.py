import pytest

from headrace.errors import ConfigurationError
from headrace.plan.workload import Workload


def test_contexts():
    workload = Workload(rows=4, prompt_len=100, generate_len=11)
    assert workload.decode_steps == 10
    assert [workload.context_at(step) for step in (0, 9)] == [100, 109]
    assert workload.mean_context == 104
    assert workload.max_context == 111


def test_one_token_needs_no_decode_step():
    workload = Workload(1, 5, 1)
    assert (workload.decode_steps, workload.mean_context) == (0, 5)


@pytest.mark.parametrize("setting", ["rows", "prompt_len", "generate_len"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_settings_are_validated(setting, value):
    settings = {"rows": 1, "prompt_len": 1, "generate_len": 1, setting: value}
    with pytest.raises(ConfigurationError, match=f"{setting} is"):
        Workload(**settings)
