from dataclasses import replace

import pytest

from headrace.bench.catalogue import CASES, Case
from headrace.bench.sizes import Limits, Most, Sizes, fit, weights_share
from headrace.model.cost import model_weight_bytes
from headrace.model.published import published_shape

GIB = 1 << 30
ROOMY = Limits(host_bytes=4096 * GIB, device_bytes=2048 * GIB)
BATCH = CASES["opt-6.7b-24gib"]


@pytest.mark.parametrize("name", CASES)
def test_with_room_for_everything_a_case_is_run_as_it_asks(name):
    case = CASES[name]
    fitted = fit(case, "bfloat16", ROOMY, 20)
    assert fitted.sizes == fitted.asked
    assert fitted.reasons == ()
    assert (fitted.sizes.rows, fitted.sizes.prompt_len) == (case.rows, case.prompt_len)
    assert str(fitted) == str(fitted.sizes)
    assert fitted.sizes.shape == replace(published_shape(case.model), dtype="bfloat16")


def test_what_host_memory_has_no_room_for_is_made_smaller_and_said():
    limits = replace(ROOMY, host_bytes=40 * GIB)
    fitted = fit(BATCH, "bfloat16", limits, 20)
    assert fitted.sizes.rows < BATCH.rows
    assert fitted.sizes.layers == 32
    assert limits.exceeded(fitted.sizes, BATCH, 20) is None
    # Not smaller than it must be.
    assert limits.exceeded(replace(fitted.sizes, rows=2 * fitted.sizes.rows), BATCH, 20)
    words = str(fitted)
    assert "64 rows × 1,024 tokens, all 32 layers asked" in words
    assert f"{fitted.sizes.rows} rows × 1,024 tokens, all 32 layers measured" in words
    assert "host memory" in words
    assert "40.0 GiB free" in words


def test_a_model_that_the_device_cannot_hold_while_it_is_made_loses_layers():
    limits = replace(ROOMY, device_bytes=80 * GIB)
    fitted = fit(CASES["weights-llama-3-70b"], "bfloat16", limits, 20)
    assert fitted.sizes.layers == 40
    assert model_weight_bytes(fitted.sizes.shape) < 80 * GIB
    assert fitted.sizes.rows == 32
    assert "weights of" in fitted.reasons[0]


def test_on_a_slow_link_layers_become_narrower_first_and_rows_fewer_then():
    limits = Limits(64 * GIB, None, link_bytes_per_s=35e6, gemm_flops_per_s=4e11, runs=6)
    fitted = fit(BATCH, "bfloat16", limits, 17, Most(layers=2))
    sizes = fitted.sizes
    assert (sizes.layers, sizes.narrow) == (2, 4)
    assert sizes.rows < 64
    assert sizes.kv_bytes(17) / 35e6 <= limits.step_s
    assert fitted.reasons[0] == "a slice"
    assert "a step of full transfer would take" in fitted.reasons[1]
    assert "1/4 as wide" in str(fitted)


def test_a_case_without_a_budget_does_not_wait_for_the_link():
    limits = Limits(64 * GIB, None, link_bytes_per_s=1.0, gemm_flops_per_s=1e18)
    case = CASES["fits-64"]
    assert fit(case, "bfloat16", limits, 20, Most(layers=2)).sizes.rows == case.rows


def test_rows_stay_where_it_is_the_weights_that_take_long():
    limits = Limits(64 * GIB, None, link_bytes_per_s=1e6, gemm_flops_per_s=1e18)
    fitted = fit(CASES["weights-llama-3-70b"], "bfloat16", limits, 17, Most(layers=2))
    assert fitted.sizes.narrow == 8
    # Each part of many rows' prompts waits for the weights, too; four are as few as it takes.
    assert (fitted.sizes.rows, fitted.sizes.prompt_len) == (4, 256)


def test_limits_that_nothing_can_keep_end_at_the_least():
    limits = Limits(64 * GIB, None, link_bytes_per_s=1e-3, gemm_flops_per_s=1.0)
    sizes = fit(BATCH, "bfloat16", limits, 17, Most(layers=2)).sizes
    assert (sizes.rows, sizes.layers, sizes.narrow) == (1, 2, 4)


def test_no_more_is_run_than_is_asked_for():
    fitted = fit(BATCH, "float32", ROOMY, 20, Most(3, 2, 100))
    assert fitted.sizes == Sizes("opt-6.7b", "float32", 3, 1, 2, 100)
    assert fitted.reasons == ("a slice", "at most so much was asked for")
    small = Case("small", "opt-6.7b", 1, 50)
    assert fit(small, "float32", ROOMY, 20, Most(64, 2, 100)).reasons == ()
    narrow = fit(small, "float32", ROOMY, 20, Most(narrow=8))
    assert (narrow.sizes.narrow, narrow.sizes.layers, narrow.reasons) == (8, 32, ("a slice",))


def test_a_slice_keeps_the_proportions_of_its_model():
    whole = published_shape("llama-3-8b")
    shape = Sizes("llama-3-8b", "bfloat16", 2, 4, 1, 1).shape
    assert shape.d_model / shape.d_kv == whole.d_model / whole.d_kv
    assert (shape.num_layers, shape.head_dim) == (2, whole.head_dim)
    with pytest.raises(ValueError, match="3 times as narrow"):
        whole.narrowed(3)


def test_weights_are_streamed_as_the_case_says_or_as_the_budget_lacks_room():
    assert weights_share(CASES["paper-throughput-opt-13b"], "bfloat16") == 1.0
    assert weights_share(CASES["fits-8"], "bfloat16") == 0.0
    assert weights_share(BATCH, "bfloat16") == 0.0
    assert 0.3 < weights_share(CASES["opt-13b-16gib"], "bfloat16") < 0.6
