"""The GPU's kernels against plain attention: on a GPU, or by Triton's interpreter on any machine.

    TRITON_INTERPRET=1 python -m pytest tests/unit/runtime/test_page_kernels.py

Triton is not among the packages for development, being large; ``make test-kernels`` installs it.
"""

from __future__ import annotations

import os

import pytest
import torch

from headrace.runtime.attention import (
    EntryTable,
    Partial,
    Rotation,
    Scoring,
    attend,
    concatenate,
    empty_partial,
    merge_entries,
    normalised,
)

pytest.importorskip("triton", reason="Triton is not installed")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from tests.support import assert_same, generate, host_cache, make_batch, plain_cache, shared_model

from headrace.model.rotary import rotate_halves
from headrace.runtime import layer_attention, page_kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROWS, HEADS, PAGES, ENTRIES = 5, 2, 7, 9
ERROR = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def partial(*shape: int) -> Partial:
    return Partial(random(*shape), random(*shape[:3]), random(*shape[:3]).abs() + 0.5)


def exact(query, key, value, scoring: Scoring, visible=None) -> Partial:
    """Return what plain attention makes of it in float64."""
    return attend(*(part.cpu().double() for part in (query, key, value)), scoring, visible)


def log_sum_exp(part: Partial) -> torch.Tensor:
    return part.maximum + part.total.log()


def check_same(found: Partial, expected: Partial, error: float) -> None:
    """Compare results that may have different maxima."""
    output = normalised(expected, torch.float64)
    assert (
        normalised(found, torch.float64).cpu() - output
    ).abs().max() <= error * output.abs().max()
    sums, exact_sums = log_sum_exp(found).cpu(), log_sum_exp(expected)
    seen = torch.isfinite(exact_sums)
    assert torch.equal(torch.isneginf(sums), ~seen)
    assert (sums[seen] - exact_sums[seen]).abs().max() <= 1e-4


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("grouped", [1, 4, 20])
@pytest.mark.parametrize(("tokens", "width"), [(16, 64), (64, 128), (80, 80)])
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("hidden", [False, True])
def test_entries_attend_to_their_pages(dtype, grouped, tokens, width, softcap, hidden):
    if DEVICE.type == "cpu" and dtype is torch.bfloat16 and grouped > 1:
        pytest.skip("Triton's interpreter multiplies matrices of bfloat16 wrongly")
    query = random(ROWS, HEADS, grouped, width, dtype=dtype)
    # As rebuilding leaves them: keys and values side by side, heads inside tokens.
    both = random(PAGES, tokens, 2, HEADS, width, dtype=dtype)
    key, value = both[:, :, 0].transpose(1, 2), both[:, :, 1].transpose(1, 2)
    entry_row = torch.randint(ROWS, (ENTRIES,), device=DEVICE)
    entry_page = torch.randint(PAGES, (ENTRIES,), device=DEVICE)
    visible = None
    if hidden:
        visible = torch.rand(ENTRIES, tokens, device=DEVICE) > 0.4
        visible[3] = False
    scoring = Scoring(0.3, softcap)
    result = empty_partial((ENTRIES, HEADS, grouped, width), DEVICE)

    page_kernels.attend_pages(query, key, value, scoring, result, entry_row, entry_page, visible)

    expected = exact(
        query[entry_row],
        key[entry_page],
        value[entry_page],
        scoring,
        None if visible is None else visible[:, None, None].cpu(),
    )
    check_same(result, expected, ERROR[dtype])


def test_without_entries_each_row_attends_to_its_own():
    query, key, value = random(3, 2, 1, 64), random(3, 2, 32, 64), random(3, 2, 32, 64)
    result = empty_partial(query.shape, DEVICE)

    page_kernels.attend_pages(query, key, value, Scoring(0.125), result)

    check_same(result, exact(query, key, value, Scoring(0.125)), 1e-5)


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("grouped", [1, 3])
@pytest.mark.parametrize(
    ("tokens", "width", "rotated"), [(16, 64, 64), (64, 128, 128), (80, 80, 20)]
)
@pytest.mark.parametrize("hidden", [False, True])
def test_keys_are_rotated_on_the_way(dtype, grouped, tokens, width, rotated, hidden):
    if DEVICE.type == "cpu" and dtype is torch.bfloat16 and grouped > 1:
        pytest.skip("Triton's interpreter multiplies matrices of bfloat16 wrongly")
    query = random(ROWS, HEADS, grouped, width, dtype=dtype)
    both = random(PAGES, tokens, 2, HEADS, width, dtype=dtype)
    key, value = both.permute(2, 0, 3, 1, 4).unbind()
    angles = random(1000, rotated // 2).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    positions = torch.randint(1000, (PAGES, tokens), device=DEVICE)
    entry_row = torch.randint(ROWS, (ENTRIES,), device=DEVICE)
    entry_page = torch.randint(PAGES, (ENTRIES,), device=DEVICE)
    visible = torch.rand(ENTRIES, tokens, device=DEVICE) > 0.4 if hidden else None
    result = empty_partial((ENTRIES, HEADS, grouped, width), DEVICE)

    page_kernels.attend_pages(
        query,
        key,
        value,
        Scoring(0.3),
        result,
        entry_row,
        entry_page,
        visible,
        rotation=Rotation(cos, sin, positions),
    )

    turned = rotate_halves(
        key[..., :rotated].double(),
        cos[positions][:, None].double(),
        sin[positions][:, None].double(),
    )
    if grouped > 1:
        # As the tensor cores take them.
        turned = turned.to(dtype).double()
    whole = torch.cat([turned, key[..., rotated:].double()], dim=-1)
    expected = exact(
        query[entry_row],
        whole[entry_page],
        value[entry_page],
        Scoring(0.3),
        None if visible is None else visible[:, None, None].cpu(),
    )
    check_same(result, expected, ERROR[dtype])


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("grouped", [1, 3])
@pytest.mark.parametrize("tokens", [16, 80])
def test_a_fresh_token_is_put_into_its_page_and_seen(dtype, grouped, tokens):
    if DEVICE.type == "cpu" and dtype is torch.bfloat16 and grouped > 1:
        pytest.skip("Triton's interpreter multiplies matrices of bfloat16 wrongly")
    rows, width = 3, 64
    query = random(rows, HEADS, grouped, width, dtype=dtype)
    # Tails lie among those of other rows; new tokens are as a model's layer leaves them.
    tails = [random(rows + 2, HEADS, tokens, width, dtype=dtype) for _ in range(2)]
    before = [tail.clone() for tail in tails]
    key, value = (random(rows, 1, HEADS, width, dtype=dtype).transpose(1, 2) for _ in range(2))
    place = torch.tensor([0, tokens - 1, 5], device=DEVICE).view(-1, 1, 1, 1)
    visible = torch.arange(tokens, device=DEVICE) <= place.view(-1, 1)
    visible[2] = False
    key_BHTD, value_BHTD = (tail[1 : rows + 1] for tail in tails)
    room = empty_partial((rows + 4, HEADS, grouped, width), DEVICE)
    for part in (room.output, room.maximum, room.total):
        part.fill_(7.0)

    page_kernels.attend_pages(
        query,
        key_BHTD,
        value_BHTD,
        Scoring(0.3),
        room,
        visible_ET=visible,
        entries=rows,
        first=2,
        fresh=(key, value, place),
    )

    for tail, old, new in zip(tails, before, (key, value), strict=True):
        for row, at in enumerate(place.flatten().tolist()):
            old[row + 1, :, at] = new[row, :, 0]
        assert torch.equal(tail, old)
    expected = exact(query, key_BHTD, value_BHTD, Scoring(0.3), visible[:, None, None].cpu())
    found = Partial(room.output[2:-2], room.maximum[2:-2], room.total[2:-2])
    check_same(found, expected, ERROR[dtype])
    for part in (room.output, room.maximum, room.total):
        assert (part[:2] == 7).all()
        assert (part[-2:] == 7).all()


@pytest.mark.parametrize("grouped", [1, 3])
@pytest.mark.parametrize("with_new", [False, True])
@pytest.mark.parametrize("with_host", [False, True])
@pytest.mark.parametrize("width", [80, 128])
@pytest.mark.parametrize("most", [40, 150])
def test_parts_of_ragged_rows_are_merged(grouped, with_new, with_host, width, most):
    counts = [3, 0, most, 1, 17]
    entries = sum(counts)
    order = torch.randperm(entries).tolist()
    own = [[order.pop() for _ in range(count)] for count in counts]
    parts = partial(entries, HEADS, grouped, width)
    of_rows = [partial(ROWS, HEADS, grouped, width) for wanted in (with_new, with_host) if wanted]
    table = EntryTable.of(
        [
            [*row_entries, *(entries + number * ROWS + row for number in range(len(of_rows)))]
            for row, row_entries in enumerate(own)
        ],
        DEVICE,
    )
    new = of_rows[0] if with_new else None
    host = of_rows[-1] if with_host else None
    merged = torch.empty(ROWS, HEADS, grouped, width, device=DEVICE)

    page_kernels.merge_parts(parts, table, new, host, merged)

    expected = normalised(merge_entries(concatenate([parts, *of_rows]), table), torch.float32)
    assert (merged - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_results_past_the_entries_are_passed_over():
    parts = partial(6, HEADS, 1, 64)
    table = EntryTable.of([[0, 2, 4], [1, 3, 5]], DEVICE)
    merged = torch.empty(2, HEADS, 1, 64, device=DEVICE)

    page_kernels.merge_parts(parts, table, None, None, merged, entries=4)

    first = EntryTable.of([[0, 2], [1, 3]], DEVICE)
    expected = normalised(merge_entries(parts, first), torch.float32)
    assert (merged - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_newest_alone_are_normalised():
    new = partial(ROWS, HEADS, 1, 64)
    merged = torch.empty(ROWS, HEADS, 1, 64, device=DEVICE)
    table = EntryTable.of([[row] for row in range(ROWS)], DEVICE)

    page_kernels.merge_parts(None, table, new, None, merged)

    expected = normalised(new, torch.float32)
    assert (merged - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_row_that_sees_nothing_has_no_output():
    nothing = Partial(
        torch.zeros(1, 1, 1, 64, device=DEVICE),
        torch.full((1, 1, 1), float("-inf"), device=DEVICE),
        torch.zeros(1, 1, 1, device=DEVICE),
    )
    merged = torch.full((1, 1, 1, 64), float("nan"), device=DEVICE)

    page_kernels.merge_parts(nothing, EntryTable.of([[0, 1]], DEVICE), nothing, None, merged)

    assert torch.equal(merged, torch.zeros_like(merged))


@pytest.mark.parametrize("name", ["llama-gqa", "gemma2", "opt", "mistral-window"])
@pytest.mark.parametrize(
    ("policy", "recompute", "host"), [("recompute", 0.4, None), ("auto", 0.3, 0.4)]
)
def test_whole_caches_go_through_them(name, policy, recompute, host, monkeypatch):
    if DEVICE.type == "cuda":
        pytest.skip("scripts/gpu_check.py audits whole models on a GPU")
    monkeypatch.setattr(layer_attention, "kernels_for", lambda query: page_kernels)
    model = shared_model(name)
    batch = make_batch((37, 21, 50))
    expected = generate(model, batch, plain_cache(model), new_tokens=3)
    with host_cache(model, policy, recompute, host_fraction=host) as cache:
        assert_same(expected, generate(model, batch, cache, new_tokens=3))
