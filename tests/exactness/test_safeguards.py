"""Each safeguard bites: a fault in the engine makes the comparison with the plain model fail."""

import itertools

import pytest
import torch
from tests.support import (
    LOGIT_TOLERANCE,
    generate,
    host_cache,
    logit_error,
    make_batch,
    plain_cache,
    shared_model,
)

from headrace.hf.attachment import Attachment
from headrace.model.kv_weights import KvSource
from headrace.model.projection import KeyNorm, LayerProjection
from headrace.model.rotary import Rotary
from headrace.runtime import layer_attention, paged, writer
from headrace.runtime.attention import Scoring
from headrace.runtime.conveyor import Conveyor
from headrace.runtime.cpu_lanes import CpuBackend
from headrace.runtime.moves import FillBatch
from headrace.runtime.staging import POISON
from headrace.timeline import D2H_LANES, H2D_LANES, Lane

CLEAR_ERROR = 1e-3
NAME = "llama-gqa"


def audit(name=NAME, policy="recompute", fraction=0.5, poison=True, change=None):
    """Return whether tokens are identical, and the error of the logits of the step they part at."""
    model, batch = shared_model(name), make_batch()
    expected = generate(model, batch, plain_cache(model))
    with host_cache(model, policy, fraction, poison=poison) as cache:
        if change is not None:
            change(cache)
        made = generate(model, batch, cache)
    columns = batch.input_ids.shape[1]
    differ = (made.tokens[:, columns:] != expected.tokens[:, columns:]).any(dim=0)
    comparable = int(differ.int().argmax()) + 1 if differ.any() else differ.numel()
    error = logit_error(expected.logits[:, :comparable], made.logits[:, :comparable])
    return not differ.any(), error


def assert_fails(**options):
    identical, error = audit(**options)
    assert not identical or error > CLEAR_ERROR
    assert not error <= LOGIT_TOLERANCE


@pytest.fixture(autouse=True, scope="module")
def the_audit_passes_without_the_fault():
    for policy, fraction in (("recompute", 0.5), ("stream", None)):
        identical, error = audit(policy=policy, fraction=fraction)
        assert identical
        assert error <= LOGIT_TOLERANCE


@pytest.fixture(autouse=True)
def host_memory_holds_nothing_of_use(monkeypatch):
    """Fresh memory may be that of the cache before, with the very same content."""
    fresh = CpuBackend.host_buffer
    monkeypatch.setattr(
        CpuBackend,
        "host_buffer",
        lambda self, shape, dtype: fresh(self, shape, dtype).fill_(POISON),
    )


def skip_transfers(monkeypatch, lanes, numbers):
    """Let the transfers of these numbers on these lanes copy nothing."""
    count, whole = itertools.count(), CpuBackend.transfer

    def transfer(self, lane, copies, after, timed=False):
        skipped = lane in lanes and next(count) in numbers
        return whole(self, lane, () if skipped else copies, after)

    monkeypatch.setattr(CpuBackend, "transfer", transfer)


@pytest.mark.parametrize("lane", [Lane.LOAD_KV, Lane.LOAD_ACTIVATIONS])
@pytest.mark.parametrize("number", [0, 9, 31])
def test_one_load_that_is_skipped_shows_as_poison(monkeypatch, lane, number):
    skip_transfers(monkeypatch, [lane], {number})
    assert_fails()


def test_loads_that_are_skipped_show_without_poison_too(monkeypatch):
    skip_transfers(monkeypatch, H2D_LANES, set(range(20, 40)))
    assert_fails(poison=False)


@pytest.mark.parametrize("lane", D2H_LANES)
def test_one_store_that_is_skipped(monkeypatch, lane):
    skip_transfers(monkeypatch, [lane], {1})
    assert_fails()


def test_a_load_that_brings_another_granule(monkeypatch):
    whole, last = CpuBackend.transfer, {}

    def transfer(self, lane, copies, after, timed=False):
        wrong = last.get(lane)
        last[lane] = copies
        if lane in H2D_LANES and wrong is not None and len(wrong) == len(copies):
            copies = [
                type(copy)(copy.destination, other.source)
                if copy.source.shape == other.source.shape
                else copy
                for copy, other in zip(copies, wrong, strict=True)
            ]
        return whole(self, lane, copies, after)

    monkeypatch.setattr(CpuBackend, "transfer", transfer)
    assert_fails()


def test_a_slot_that_is_given_back_before_it_has_been_read(monkeypatch):
    run = Conveyor._run

    def early(self, operation, work, attention):
        if operation.load_number >= 0:
            loader = self._loader
            slot = (loader._current.base + operation.load_number) % loader._slots
            loader._ring.release(slot)
        run(self, operation, work, attention)

    monkeypatch.setattr(Conveyor, "_run", early)
    assert_fails()


def test_x_taken_before_the_norm(monkeypatch):
    model = shared_model(NAME)
    before_norm = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args: before_norm.__setitem__(module.self_attn, args[0])
        )
        for layer in model.model.layers
    ]

    def note(self, module, args, kwargs):
        if self._cache is not None:
            self._inputs[module] = before_norm[module]

    try:
        with monkeypatch.context() as patch:
            patch.setattr(Attachment, "_note_input", note)
            assert_fails()
    finally:
        for hook in hooks:
            hook.remove()


def projections(cache):
    return [
        projection
        for projection in cache._attachment.projections
        if isinstance(projection, LayerProjection)
    ]


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3", "gpt-neox", "phi3", "gemma2"])
def test_a_missing_rotary_embedding(name):
    def change(cache):
        assert projections(cache)
        for projection in projections(cache):
            projection.rotary = None

    assert_fails(name=name, change=change)


@pytest.mark.parametrize("name", ["qwen3", "olmo2"])
def test_a_missing_norm_of_the_keys(name):
    def change(cache):
        for projection in projections(cache):
            assert projection.key_norm[1] is not None
            projection.key_norm = (KeyNorm.NONE, None)

    assert_fails(name=name, change=change)


class WithoutBias(KvSource):
    def __init__(self, source):
        self.source = source

    def __call__(self, activations):
        return self.source(activations) - self.source(torch.zeros_like(activations))

    def restore(self):
        self.source.restore()


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2"])
def test_a_missing_bias(name):
    def change(cache):
        for projection in projections(cache):
            object.__setattr__(projection, "source", WithoutBias(projection.source))

    assert_fails(name=name, change=change)


def test_a_position_that_is_off_by_one(monkeypatch):
    turn = Rotary.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Rotary, "__call__", lambda self, key, places: turn(self, key, places + 1))
        with pytest.warns(UserWarning, match="replaced by 'stream'"):
            identical, error = audit()
        assert identical
        assert error <= LOGIT_TOLERANCE

    def change(cache):
        monkeypatch.setattr(Rotary, "__call__", lambda self, key, at: turn(self, key, at + 1))

    assert_fails(change=change)


def test_the_last_token_of_the_tail_is_lost(monkeypatch):
    monkeypatch.setattr(layer_attention, "put_newest", lambda *args: None)
    assert_fails(policy="stream", fraction=None)


def test_partial_results_that_are_merged_without_their_maxima(monkeypatch):
    whole = layer_attention.concatenate

    def concatenate(parts, dim=0):
        part = whole(parts, dim)
        return type(part)(part.output, torch.zeros_like(part.maximum), part.total)

    monkeypatch.setattr(layer_attention, "concatenate", concatenate)
    assert_fails()


def test_padding_that_is_cached():
    def change(cache):
        read = cache._read_mask

        def read_mask(mask, rows, q_len):
            seen = read(mask, rows, q_len)
            seen[:] = True
            return seen

        cache._read_mask = read_mask

    assert_fails(policy="stream", fraction=None, change=change)


def test_a_page_that_is_gathered_from_the_wrong_row(monkeypatch):
    gather = writer.Writer._gather

    def wrong(self, batch, source):
        rows = batch.rows_NT.roll(1, dims=0)
        fields = {**batch.__dict__, "rows_NT": rows}
        return gather(self, FillBatch(**fields), source)

    monkeypatch.setattr(writer.Writer, "_gather", wrong)
    assert_fails()


def test_a_missing_soft_cap(monkeypatch):
    attend = paged.PagedCache.attend

    def without(self, layer, activations, query, key, value, scoring):
        plain = Scoring(scoring.scale, None, scoring.window)
        return attend(self, layer, activations, query, key, value, plain)

    monkeypatch.setattr(paged.PagedCache, "attend", without)
    assert_fails(name="gemma2")
