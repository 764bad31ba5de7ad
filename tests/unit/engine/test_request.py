import pytest

from headrace.engine.request import SamplingParams
from headrace.errors import ConfigurationError


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_tokens", 0, "1 or more"),
        ("temperature", -0.5, "0 or more"),
        ("temperature", float("nan"), "0 or more"),
        ("top_p", 0.0, "above 0, up to 1"),
        ("top_p", 1.5, "above 0, up to 1"),
        ("top_k", -1, "0 (all) or more"),
        ("seed", -1, "0 to 2^64 - 1"),
        ("seed", 1 << 64, "0 to 2^64 - 1"),
        ("stop", ("end", ""), "not empty"),
        ("stop", "", "not empty"),
    ],
)
def test_a_message_names_the_setting_its_value_and_what_is_allowed(name, value, allowed):
    with pytest.raises(ConfigurationError) as caught:
        SamplingParams(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} is ")
    assert allowed in message
    assert "\n" not in message


def test_the_bounds_are_allowed():
    SamplingParams(max_tokens=1, temperature=0.0, top_p=1.0, top_k=0, seed=0)
    SamplingParams(seed=(1 << 64) - 1)


def test_one_stop_string_is_a_list_of_one():
    assert SamplingParams(stop="end").stop == ("end",)
