import math
from dataclasses import replace

import pytest
import torch
from tests.support import generate, make_batch, make_model, plain_cache, shared_model

from headrace.engine.agreement import choices_agree, logit_error
from headrace.engine.audit import (
    FLOAT32_TOLERANCE,
    HALF_FLOOR,
    HALF_SPREADS,
    Reference,
    audit,
    audit_all,
    reference,
)
from headrace.engine.loading import load_model
from headrace.engine.prompts import source_prompts
from headrace.errors import ConfigurationError
from headrace.runtime.paged import PagedCache

WAYS = [("resident", None), ("stream", None), ("recompute", 0.37), ("kvpr", 1.0)]
STEPS, LAYERS = 5, 3


def inputs(loaded):
    prompts = source_prompts(loaded.tokenizer, rows=2, tokens=60)
    batch = loaded.tokenizer(prompts, return_tensors="pt", padding=True)
    return batch["input_ids"], batch["attention_mask"]


@pytest.fixture(scope="module")
def model():
    return shared_model("llama-gqa")


@pytest.fixture(scope="module")
def batch():
    return make_batch((31, 20))


@pytest.fixture(scope="module")
def expected(model, batch):
    return reference(model, batch.input_ids, batch.attention_mask, STEPS)


def audited(model, batch, expected, policy="stream"):
    return audit(model, batch.input_ids, batch.attention_mask, expected, policy=policy)


@pytest.fixture
def disturbed(monkeypatch):
    """Let a fault change what attention gives."""
    attend = PagedCache.attend

    def disturb(change):
        monkeypatch.setattr(
            PagedCache, "attend", lambda *given, **named: change(attend(*given, **named))
        )

    return disturb


def test_the_reference_is_the_plain_model_generating_greedily(model, batch, expected):
    made = generate(model, batch, plain_cache(model), STEPS)
    columns = batch.input_ids.shape[1]
    assert torch.equal(expected.tokens.T, made.tokens[:, columns:])
    torch.testing.assert_close(torch.stack(expected.logits, 1), made.logits, rtol=1e-5, atol=1e-4)
    assert expected.tolerance == FLOAT32_TOLERANCE
    assert "float32" in expected.why


def test_every_policy_passes_on_the_demo(demo):
    expected, results = audit_all(demo.model, *inputs(demo), STEPS, WAYS)
    assert expected.tokens.shape == (STEPS, 2)
    assert [result.policy for result in results] == [policy for policy, _ in WAYS]
    assert [result.recompute_fraction for result in results] == [0.0, 0.0, 0.37, 1.0]
    for result in results:
        assert result.passed
        assert result.tokens_identical
        assert 0 <= result.max_logit_error <= result.tolerance == FLOAT32_TOLERANCE
        assert result.notes == ()


def test_a_profile_is_planned_with(model, batch, expected, emulated):
    ids, mask = batch.input_ids, batch.attention_mask
    found = audit(model, ids, mask, expected, policy="auto", profile=emulated)
    assert found.passed
    assert found.policy != "auto"


def test_a_wrong_cache_fails(model, batch, expected, disturbed):
    disturbed(lambda output: output + 0.3 * torch.randn_like(output))
    result = audited(model, batch, expected)
    assert not result.passed
    assert not result.tokens_identical
    assert result.max_logit_error > 100 * FLOAT32_TOLERANCE


def test_a_slightly_wrong_cache_fails_even_if_every_token_is_right(
    model, batch, expected, disturbed
):
    disturbed(lambda output: output * 1.003)
    result = audited(model, batch, expected)
    assert result.tokens_identical
    assert result.max_logit_error > FLOAT32_TOLERANCE
    assert not result.passed


@pytest.mark.parametrize("tolerance", [FLOAT32_TOLERANCE, 0.5, math.inf])
def test_what_is_not_a_number_never_passes(model, batch, expected, disturbed, tolerance):
    disturbed(lambda output: output * math.nan)
    result = audited(model, batch, replace(expected, tolerance=tolerance))
    assert result.max_logit_error == math.inf
    assert not result.passed


def test_nothing_passes_where_the_plain_model_itself_gives_no_numbers(batch):
    model = make_model("llama", torch.bfloat16)
    with torch.no_grad():
        model.model.embed_tokens.weight[int(batch.input_ids[0, -2])] = math.nan
    expected = reference(model, batch.input_ids, batch.attention_mask, 2)
    assert expected.tolerance == math.inf
    assert not audited(model, batch, expected).passed


def test_one_wrong_step_of_one_row_is_found(model, batch, expected, disturbed):
    calls = []

    def change(output):
        calls.append(output)
        if len(calls) != 3 * LAYERS:
            return output
        wrong = output.clone()
        wrong[1] *= 1.05
        return wrong

    disturbed(change)
    assert not audited(model, batch, expected).passed
    assert len(calls) == STEPS * LAYERS


def test_the_model_is_as_it_was_after_a_failure(model, batch, expected, disturbed):
    def fail(output):
        raise RuntimeError("a fault")

    disturbed(fail)
    with pytest.raises(RuntimeError, match="a fault"):
        audited(model, batch, expected)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("steps", [0, -1])
def test_an_audit_takes_a_step(model, batch, steps):
    with pytest.raises(ConfigurationError, match=f"{steps} tokens .* 1 or more"):
        reference(model, batch.input_ids, batch.attention_mask, steps)


@pytest.mark.parametrize(("own", "way"), [("sdpa", "eager"), ("eager", "sdpa")])
def test_half_precision_is_allowed_what_the_plain_model_differs_from_itself(own, way, batch):
    model = make_model("llama", torch.bfloat16, own)
    expected = reference(model, batch.input_ids, batch.attention_mask, 3)
    assert f"run with {way} attention" in expected.why
    assert model.config._attn_implementation == own
    model.set_attn_implementation(way)
    other = reference(model, batch.input_ids, batch.attention_mask, 1)
    spread = logit_error(expected.logits[0], other.logits[0])
    assert expected.tolerance >= max(HALF_SPREADS * spread, HALF_FLOOR)
    assert all(logits.dtype == torch.float32 for logits in expected.logits)


def test_a_model_with_one_attention_is_compared_with_itself_in_float32(batch, monkeypatch):
    model = make_model("llama", torch.bfloat16)

    def refuse(name):
        raise ValueError(f"{name} is not available")

    monkeypatch.setattr(model, "set_attn_implementation", refuse)
    expected = reference(model, batch.input_ids, batch.attention_mask, 2)
    assert "run in float32" in expected.why
    assert HALF_FLOOR <= expected.tolerance < 0.5
    assert next(model.parameters()).dtype == torch.bfloat16


def test_the_demo_passes_in_half_precision_and_a_wrong_cache_does_not(disturbed):
    loaded = load_model("demo", device="cpu")
    ids, mask = inputs(loaded)
    expected = reference(loaded.model, ids, mask, STEPS)
    assert expected.tolerance >= HALF_FLOOR
    assert audit(loaded.model, ids, mask, expected, policy="stream").passed
    disturbed(lambda output: output + 0.5 * torch.randn_like(output))
    assert not audit(loaded.model, ids, mask, expected, policy="stream").passed


@pytest.mark.parametrize(("tolerance", "passes"), [(FLOAT32_TOLERANCE, False), (1e-3, True)])
def test_a_near_tie_may_go_either_way_in_half_precision_only(
    model, batch, monkeypatch, tolerance, passes
):
    plain = (torch.tensor([[0.0, 10.0, 9.9995]]),)
    made = (torch.tensor([[0.0, 9.9995, 10.0]]),)
    monkeypatch.setattr("headrace.engine.audit._run", lambda *_: (made, torch.tensor([[2]])))
    result = audited(model, batch, Reference(torch.tensor([[1]]), plain, tolerance, "by hand"))
    assert result.max_logit_error <= FLOAT32_TOLERANCE
    assert not result.tokens_identical
    assert result.passed is passes


def test_errors_are_shares_of_each_rows_range():
    expected = torch.tensor([[0.0, 10.0, 5.0], [0.0, 100.0, 5.0]])
    assert logit_error(expected, expected) == 0.0
    made = expected + torch.tensor([0.0, 0.1, 0.0])
    assert logit_error(made, expected) == pytest.approx(0.01, rel=1e-3)
    assert logit_error(torch.full((2, 3), math.nan), expected) == math.inf
    assert logit_error(expected, torch.tensor([[0.0, 1.0, math.nan], [0.0, 1.0, 2.0]])) == math.inf


def testchoices_agree_or_nearly_do():
    expected = torch.tensor([[0.0, 10.0, 9.9], [0.0, 1.0, 10.0]])
    assert choices_agree(expected, expected, 0.0) == (True, True)
    swapped = torch.tensor([[0.0, 9.9, 10.0], [0.0, 1.0, 10.0]])
    # The plain model's own logits of the two tokens are a hundredth of the range apart.
    assert choices_agree(swapped, expected, 0.0051) == (False, True)
    assert choices_agree(swapped, expected, 0.0049) == (False, False)
    wrong = torch.tensor([[0.0, 9.9, 10.0], [0.0, 10.0, 1.0]])
    assert choices_agree(wrong, expected, 0.0051) == (False, False)
