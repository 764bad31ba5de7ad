import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """A second thread does not pay for tiny models, least of all beside other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
