"""Host attention with each of its variants."""

import pytest
from tests.host_attention_support import VARIANTS

from headrace.runtime.host_attention import HostAttention


@pytest.fixture(scope="module")
def attentions():
    """One of each variant, with two threads."""
    made = {variant: HostAttention(threads=2, variant=variant) for variant in VARIANTS}
    yield made
    for attention in made.values():
        attention.close()


@pytest.fixture(params=VARIANTS)
def attention(request, attentions):
    return attentions[request.param]
