"""Fixtures of several packages of tests: a ``conftest.py`` imports what holds for its own."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """A second thread does not pay for tiny tensors, least of all beside other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="package")
def quiet():
    """Loading draws no bars; what other tests hear of `transformers` stays as it was."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
