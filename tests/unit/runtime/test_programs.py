"""Programs and granules are made anew only where pages have changed, and costs count."""

import pytest
import torch
from tests.support import shared_model
from transformers import DynamicCache

from headrace.hf.cache import HostCache
from headrace.hf.planning import CacheOptions
from headrace.hf.rows_cache import RowsCache
from headrace.plan.workload import Workload
from headrace.runtime.pages import PageKind

ROWS = range(3)


@pytest.fixture
def cache():
    """Three rows of 40, 45 and 50 tokens, some of X; a page has 16 tokens."""
    options = CacheOptions.checked("recompute", None, None, 0.4, None, None, poison=True)
    with torch.no_grad(), RowsCache(shared_model("llama"), Workload(4, 48, 40), options) as made:
        prompt(made, (40, 45, 50))
        assert made.block_tokens == 16
        yield made


def prompt(cache, lengths):
    rows = cache.add(len(lengths))
    cache.forward(rows, [[3 + row] * length for row, length in enumerate(lengths)])


def decode(cache, steps=1):
    for _ in range(steps):
        cache.forward(ROWS, [[5]] * len(ROWS))


def decode_until_a_page_is_filled(cache):
    version = cache.paged.layout.version
    for _ in range(16):
        decode(cache)
        if cache.paged.layout.version != version:
            return
    raise AssertionError("no page was filled in so many steps as a page has tokens")


def granules(cache, kind):
    cut = cache.paged._programs.cut(ROWS, 1)
    return [granule for granule in cut.granules if granule.kind is kind]


def test_granules_of_a_pool_that_has_not_changed_are_kept(cache):
    decode(cache)
    of_x, of_kv = (granules(cache, kind) for kind in (PageKind.ACTIVATIONS, PageKind.KV))
    decode_until_a_page_is_filled(cache)
    assert of_x == granules(cache, PageKind.ACTIVATIONS)
    assert of_kv != granules(cache, PageKind.KV)
    pages = {page.number for page, _ in cache.paged.layout.pages(PageKind.KV, ROWS)}
    assert {number for one in granules(cache, PageKind.KV) for number in one.pages} == pages


def test_pages_that_other_tokens_have_come_to_are_not_taken_for_those_of_before(cache):
    """Rows of the same lengths get the same page numbers; their tokens have other positions."""
    decode(cache)
    before = granules(cache, PageKind.ACTIVATIONS)
    cache.arrange([])
    prompt(cache, (40, 45, 50))
    after = granules(cache, PageKind.ACTIVATIONS)
    assert [one.pages for one in before] == [one.pages for one in after]
    assert before != after


def test_a_program_that_does_the_same_is_made_once_unless_costs_count(cache):
    programs = cache.paged._programs
    of_before = [programs.program(ROWS, 1, costed=costed) for costed in (False, True)]
    decode_until_a_page_is_filled(cache)
    of_after = [programs.program(ROWS, 1, costed=costed) for costed in (False, True)]
    assert of_after[0].program is of_before[0].program
    assert of_after[0].granules != of_before[0].granules
    assert of_after[1].program is not of_before[1].program
    assert of_after[1].program.link_bytes > of_before[1].program.link_bytes


def test_what_a_step_is_recorded_with_has_its_own_costs(cache):
    decode_until_a_page_is_filled(cache)
    cache.follow()
    decode_until_a_page_is_filled(cache)
    decode(cache)
    noted = cache.noted_programs
    cache.follow(False)
    assert noted[-1].link_bytes == cache.paged.decode_program().link_bytes
    assert noted[-1].link_bytes > noted[0].link_bytes


def test_rows_in_another_number_have_programs_of_their_own(cache):
    programs = cache.paged._programs
    all_rows, some = (programs.program(rows, 1, costed=False).program for rows in (ROWS, range(2)))
    assert all_rows is not some


def test_a_page_that_was_cropped_and_filled_with_other_tokens_is_another():
    """With as many tokens as before: rebuilding needs the positions of those that there are."""
    model, prompt_len, steps = shared_model("llama"), 64, 3
    cache = HostCache(
        model, policy="recompute", recompute_fraction=0.5, host_fraction=0.3, poison=True
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (1, 160), generator=generator)
    with torch.no_grad(), cache:
        plain = DynamicCache()
        for one in (cache, plain):
            model(ids[:, :prompt_len], past_key_values=one)
            for step in range(prompt_len, prompt_len + steps):
                model(ids[:, step : step + 1], past_key_values=one)
            one.crop(24 - prompt_len - steps)
            model(ids[:, 80:120], past_key_values=one)
        for step in range(120, 124):
            found, expected = (
                model(ids[:, step : step + 1], past_key_values=one).logits for one in (cache, plain)
            )
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
