import pytest
from transformers.utils import logging


@pytest.fixture(autouse=True, scope="package")
def quiet():
    """Loading draws no bars; what other tests hear of `transformers` stays as it was."""
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
