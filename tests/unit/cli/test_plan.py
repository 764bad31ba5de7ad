import pytest

from headrace.cli import main
from headrace.cli.models import resolve_shape
from headrace.cli.plan_answer import Question, answer
from headrace.cli.plan_options import OBJECTIVES, PARALLEL, PATHS, POLICIES, SCHEDULES
from headrace.cli.plan_text import plan_text, split_bar
from headrace.errors import ConfigurationError
from headrace.hardware.catalog import machine
from headrace.plan import demands
from headrace.plan.options import Objective, PlanOptions
from headrace.plan.parallel import Cluster, Parallel
from headrace.plan.policies import Policy, Split
from headrace.plan.workload import Workload

GIB = 2**30
SCARCE = 20 * 2**20
"""Some 9 MiB more than the demo model's weights."""


def found(policy="auto", *, rows=8, prompt=512, gpu=24 * GIB, model="opt-6.7b", gpus=1, **options):
    question = Question(
        resolve_shape(model),
        Workload(rows, prompt, 32),
        machine("a100-40gb-pcie4"),
        PlanOptions.checked(policy=policy, gpu_memory_bytes=gpu, **options),
        Cluster(gpus),
    )
    return answer(question, lambda _: None)


def text_of(answer):
    return plan_text(answer, {})


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (POLICIES, Policy),
        (OBJECTIVES, Objective),
        (SCHEDULES, demands.Schedule),
        (PARALLEL, Parallel),
        (PATHS, demands.PATHS),
    ],
)
def test_the_options_offer_what_can_be_planned(words, names):
    assert sorted(words) == sorted(names)


@pytest.mark.parametrize(
    ("split", "bar"),
    [
        (Split(stream=1), "▒" * 40),
        (Split(recompute=0.75, stream=0.25), "▓" * 30 + "▒" * 10),
        (Split(recompute=0.999, stream=0.001), "▓" * 39 + "▒"),
        (Split(0.25, 0.25, 0.25, 0.25), "█" * 10 + "▓" * 10 + "▒" * 10 + "░" * 10),
    ],
)
def test_a_split_is_a_bar(split, bar):
    assert split_bar(split) == bar


def test_the_chosen_plan_is_the_fastest_that_fits():
    given = found(rows=64)
    fitting = [plan.step_s for plan in given.compared.values() if plan.feasible]
    assert given.plan.step_s == min(fitting)
    assert given.to_json()["policies"]["auto"]["step_s"] == given.plan.step_s


def test_a_fraction_is_for_the_policies_that_rebuild():
    given = found(recompute_fraction=0.5)
    rebuilt = {policy: given.compared[policy].admission.recompute for policy in given.compared}
    assert (rebuilt["kvpr"], rebuilt["recompute"]) == (0.5, 0.5)
    assert (rebuilt["resident"], rebuilt["stream"], rebuilt["host"]) == (0, 0, 0)
    assert given.plan.step_s == given.compared[Policy.RECOMPUTE].step_s


def test_link_bytes_are_those_of_the_paths():
    given = found(rows=64)
    stream = given.compared[Policy.STREAM]
    context = stream.geometry.paged_tokens(stream.workload.mean_context)
    assert given.link_bytes(stream) == 64 * context * 2 * 2 * 4096 * 32


KEPT = {"stream_weights": False}


@pytest.mark.parametrize("policy", ["stream", "kvpr", "recompute"])
def test_what_is_said_to_fit_fits(policy):
    tight = {"gpu": SCARCE, "model": "demo", **KEPT}
    given = found(policy, rows=60, **tight)
    most = given.limits.most_rows
    assert not given.plan.feasible
    assert f"--rows {most} " in text_of(given)
    assert found(policy, rows=most, **tight).plan.feasible
    assert not found(policy, rows=most + 1, **tight).plan.feasible
    prompt = given.limits.longest_prompt
    if prompt:
        assert found(policy, rows=60, prompt=prompt, **tight).plan.feasible
        assert not found(policy, rows=60, prompt=prompt + 1, **tight).plan.feasible


def test_the_memory_that_is_said_to_do_does():
    given = found("stream", rows=60, gpu=SCARCE, model="demo", **KEPT)
    enough = given.limits.least_gpu_bytes
    assert not given.plan.feasible
    assert f"--gpu-memory {enough // 2**20}MiB" in text_of(given)
    assert found("stream", rows=60, gpu=enough, model="demo", **KEPT).plan.feasible
    less = enough - 2 * 2**20
    assert not found("stream", rows=60, gpu=less, model="demo", **KEPT).plan.feasible


def test_less_than_a_layer_is_refused_with_what_would_do():
    with pytest.raises(ConfigurationError, match=r"one layer of opt-6.7b has .*; this workload"):
        found(gpu=100 * 2**20)


def test_other_policies_that_fit_are_named():
    text = text_of(found("resident", rows=64, **KEPT))
    assert "--policy stream or recompute or kvpr or host or auto" in text


def test_reasons_are_said_once():
    text = text_of(found("resident", rows=64, **KEPT))
    assert text.count("It does not fit the device") == 1


def test_what_helps_is_ranked():
    gains = [one.gain for one in found(rows=64).improvements]
    assert gains
    assert gains == sorted(gains, reverse=True)
    assert "What would help" in text_of(found(rows=64))


def test_several_gpus_share_rows():
    one, four = found(rows=62), found(rows=62, gpus=4)
    assert four.plan.workload.rows == 16
    assert four.found.tokens_per_s == pytest.approx(62 / four.plan.step_s)
    assert four.found.tokens_per_s > one.found.tokens_per_s
    assert "4 GPUs, data-parallel" in text_of(four)
    assert four.to_json()["tokens_per_s"] == four.found.tokens_per_s


def test_notes_are_in_the_head(capsys):
    work = ["--rows", "4", "--prompt", "128", "--generate", "16", "--hardware", "t4-pcie3"]
    notable = ["--gpu-memory", "1TiB", "--objective", "throughput"]
    assert main(["plan", "opt-6.7b", *work, *notable]) == 0
    text = capsys.readouterr().out
    assert "more than the machine has; 16.0 GiB count" in text
    assert "Objective throughput: of up to 4 rows at once" in text


def test_a_mixture_says_what_a_step_reads():
    text = text_of(found(model="mixtral-8x7b", rows=1, gpu=None))
    assert "A mixture: a token takes 2 of 8 experts. If all are as likely, a step reads " in text
    assert "A mixture: a token" not in text_of(found())
