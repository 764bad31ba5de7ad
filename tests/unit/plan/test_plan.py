import json
from dataclasses import replace

import pytest

from headrace.errors import ConfigurationError, ProfileError
from headrace.hardware.catalog import machine
from headrace.model.cost import model_weight_bytes
from headrace.model.published import published_names, published_shape
from headrace.plan.plan import make_plan
from headrace.plan.policies import Policy
from headrace.plan.workload import Workload

OPT = published_shape("opt-6.7b")
A100 = machine("a100-40gb-pcie4")
PAPER = machine("paper-a100")
LONG = Workload(64, 1024, 32)
PROMISED = [
    "feasible",
    "policy",
    "schedule",
    "split",
    "step_s",
    "bound_s",
    "tokens_per_s",
    "binding",
    "gpu_bytes",
    "host_bytes",
    "speedup_over_stream",
]


def test_the_paper_on_its_machine():
    plan = make_plan(OPT, LONG, PAPER, policy="kvpr")
    assert plan.split.recompute == pytest.approx(0.704, abs=0.002)
    assert plan.speedup_over_stream == pytest.approx(1 / (1 - 0.352), rel=0.02)


def test_recompute_reaches_twice_the_speed_of_stream():
    plan = make_plan(OPT, LONG, PAPER, policy="recompute")
    assert plan.split.recompute == 1.0
    assert plan.speedup_over_stream == pytest.approx(2.0, rel=0.02)
    assert plan.binding == "link"


def test_auto_takes_the_fastest_that_fits():
    mixed = make_plan(OPT, LONG, A100)
    singles = [make_plan(OPT, LONG, A100, policy=one) for one in ("stream", "recompute", "host")]
    assert mixed.policy is Policy.AUTO
    assert mixed.step_s < min(plan.step_s for plan in singles)
    assert make_plan(OPT, Workload(1, 1024, 32), A100).policy is Policy.RESIDENT
    llama = published_shape("llama-3-8b")
    without = make_plan(llama, Workload(64, 4096, 32), A100, paths=("stream", "recompute"))
    assert without.policy is Policy.STREAM
    assert without.feasible


def test_what_does_not_fit_is_said():
    kept = {"stream_weights": False}
    plan = make_plan(published_shape("llama-3-70b"), LONG, A100, **kept)
    assert not plan.feasible
    assert "It does not fit the device" in plan.reasons[0]
    assert "131.4 GiB weights" in plan.reasons[0]
    small = make_plan(OPT, LONG, A100, policy="stream", host_memory_bytes=2**30)
    assert not small.feasible
    assert "It does not fit the host" in small.reasons[0]
    too_long = make_plan(OPT, Workload(1, 2048, 1), A100)
    assert not too_long.feasible
    assert "positions for 2048" in too_long.reasons[0]


def test_weights_that_do_not_fit_are_streamed():
    plan = make_plan(published_shape("llama-3-70b"), LONG, A100)
    assert plan.feasible
    assert 0.7 < plan.weights_streamed < 1
    assert plan.gpu_items["weight_slots"] > 0
    assert plan.host_items["weights"] > 90 * 2**30


def test_a_budget_is_kept():
    budget = 29 * 2**29
    kept = {"policy": "recompute", "stream_weights": False}
    plan = make_plan(OPT, LONG, A100, **kept, gpu_memory_bytes=budget)
    free = make_plan(OPT, LONG, A100, **kept)
    assert plan.feasible
    assert plan.gpu_bytes <= budget < free.gpu_bytes
    beyond = make_plan(
        OPT, LONG, A100, policy="resident", stream_weights=False, gpu_memory_bytes=2**40
    )
    assert not beyond.feasible


def test_memory_items():
    plan = make_plan(OPT, LONG, A100, policy="recompute", recompute_fraction=0.5)
    assert plan.gpu_items["weights"] == model_weight_bytes(OPT)
    assert plan.gpu_items["staging"] == plan.geometry.ring_bytes
    assert plan.gpu_items["resident_kv"] == plan.gpu_items["windowed_kv"] == 0
    assert plan.gpu_bytes == sum(plan.gpu_items.values())
    assert plan.host_items["activations"] == 512 * 64 * 32 * 8192
    assert plan.host_items["kv"] == 576 * 64 * 32 * 16384
    resident = make_plan(OPT, LONG, A100, policy="resident", stream_weights=False)
    assert resident.gpu_items["resident_kv"] == 1056 * 64 * 32 * 16384
    assert resident.gpu_items["tail"] == resident.gpu_items["staging"] == resident.host_bytes == 0


def test_a_given_fraction_is_that_of_the_prompt():
    plan = make_plan(OPT, LONG, A100, recompute_fraction=0.5)
    assert plan.policy is Policy.RECOMPUTE
    assert plan.admission.recompute == 0.5
    assert plan.split.recompute == pytest.approx(0.5, rel=0.05)
    assert make_plan(OPT, LONG, A100, policy="stream", recompute_fraction=0.0).split.stream == 1


def test_the_prompt_makes_up_for_new_tokens():
    plan = make_plan(OPT, Workload(64, 1024, 512), PAPER, policy="kvpr")
    assert plan.split.recompute == pytest.approx(0.704, abs=0.002)
    assert plan.admission.recompute > 0.8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "fast"}, "policy is 'fast'; allowed are resident, stream"),
        ({"paths": ("air",)}, "paths is air; allowed are some of resident"),
        ({"policy": "host", "paths": ("stream",)}, "policy 'host' needs the paths host"),
        ({"recompute_fraction": 1.2}, "recompute_fraction is 1.2"),
        ({"policy": "stream", "recompute_fraction": 0.5}, "rebuilds nothing"),
    ],
)
def test_settings_are_validated(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        make_plan(OPT, LONG, A100, **settings)


def test_a_dtype_that_the_machine_lacks():
    with pytest.raises(ProfileError, match="bfloat16"):
        make_plan(published_shape("qwen3-8b"), LONG, machine("t4-pcie3"))


@pytest.mark.parametrize("name", published_names())
@pytest.mark.parametrize("policy", ["resident", "stream", "kvpr", "recompute"])
def test_every_published_model_can_be_planned(name, policy):
    plan = make_plan(published_shape(name), Workload(4, 500, 20), A100, policy=policy)
    assert 0 < plan.bound_s <= plan.step_s * (1 + 1e-9)
    assert plan.tokens_per_s == pytest.approx(4 / plan.step_s)
    assert plan.reasons


def test_json():
    data = json.loads(json.dumps(make_plan(OPT, LONG, A100).to_json()))
    assert set(PROMISED) <= set(data)
    assert data["schedule"] == "row"
    assert sum(data["split"].values()) == pytest.approx(1)
    assert set(data["split"]) == {"resident", "stream", "recompute", "host"}
    assert data["origin"] == "predicted, from data-sheet rates of a100-40gb-pcie4"


def test_windowed_layers_stay_on_the_device():
    gemma = published_shape("gemma-2-9b")
    plan = make_plan(gemma, Workload(4, 7000, 20), A100, policy="stream")
    assert plan.gpu_items["windowed_kv"] == 4 * 4096 * 21 * 8192
    assert any("21 of 42 layers" in reason for reason in plan.reasons)
    all_windowed = replace(gemma, windowed_layers=42)
    assert make_plan(all_windowed, Workload(4, 7000, 20), A100, policy="recompute").step_s > 0


def test_an_embedding_of_its_own_stays_on_the_host_where_not_everything_fits():
    shape, workload = published_shape("llama-3-8b"), Workload(16, 1024, 32)
    table = shape.vocab_size * shape.d_model * 2
    roomy = make_plan(shape, workload, A100, gpu_memory_bytes=22 * 2**30)
    assert not roomy.embedding_on_host
    assert roomy.host_items["embedding"] == 0
    tight = make_plan(shape, workload, A100, gpu_memory_bytes=17 * 2**30)
    assert tight.embedding_on_host
    assert tight.host_items["embedding"] == table
    assert roomy.gpu_items["weights"] - tight.gpu_items["weights"] == table
    assert any("input embedding (1002.0 MiB) stays on the host" in one for one in tight.reasons)
    kept = make_plan(shape, workload, A100, gpu_memory_bytes=17 * 2**30, stream_weights=False)
    assert not kept.embedding_on_host
    assert kept.split.resident < tight.split.resident


def test_an_embedding_stays_where_a_shape_has_it_or_where_it_is_asked_to():
    shape, workload = published_shape("llama-3-8b"), Workload(1, 1024, 32)
    assert not make_plan(shape, workload, A100).embedding_on_host
    on_host = replace(shape, embedding_on_host=True)
    assert make_plan(on_host, workload, A100).embedding_on_host
    assert not make_plan(on_host, workload, A100, embedding_on_host=False).embedding_on_host
    assert make_plan(shape, workload, A100, embedding_on_host=True).embedding_on_host


def test_a_table_that_the_head_reads_cannot_stay_on_the_host():
    with pytest.raises(ConfigurationError, match=r"the head of opt-6\.7b reads"):
        make_plan(OPT, LONG, A100, embedding_on_host=True)
    assert not make_plan(OPT, LONG, A100, gpu_memory_bytes=14 * 2**30).embedding_on_host


def test_a_small_host_keeps_the_table_out():
    shape, workload = published_shape("llama-3-8b"), Workload(16, 1024, 32)
    plan = make_plan(
        *(shape, workload, A100), gpu_memory_bytes=17.5 * 2**30, host_memory_bytes=0.95 * 2**30
    )
    assert plan.feasible
    assert not plan.embedding_on_host
