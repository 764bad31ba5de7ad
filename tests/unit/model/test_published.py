import pytest

from headrace.errors import ConfigurationError
from headrace.model.published import PUBLISHED, published_names, published_shape


def test_every_model_has_its_name_and_source():
    for name in published_names():
        assert published_shape(name).name == name
        assert "model card" in PUBLISHED[name].source


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ConfigurationError, match=r"'opt-1b'; there are opt-6\.7b, opt-13b"):
        published_shape("opt-1b")
