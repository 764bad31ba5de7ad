import pytest

from headrace.cli import main
from headrace.cli.models import resolve_shape
from headrace.cli.plan import POLICIES
from headrace.cli.plan_answer import COMPARED, Question, answer, most_rows
from headrace.cli.plan_text import plan_text, split_bar
from headrace.hardware.catalog import machine
from headrace.plan.policies import Policy, Split
from headrace.plan.workload import Workload

GIB = 2**30
SCARCE = 14 * 2**20
"""Some 3 MiB more than the demo model's weights."""


def found(policy="auto", *, rows=8, prompt=512, gpu=24 * GIB, fraction=None, model="opt-6.7b"):
    question = Question(
        resolve_shape(model),
        Workload(rows, prompt, 32),
        machine("a100-40gb-pcie4"),
        Policy(policy),
        "latency",
        gpu,
        None,
        fraction,
    )
    return answer(question, lambda _: None)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 8, 62, 63])
def test_most_rows_is_the_largest_number_that_fits(limit):
    assert most_rows(lambda rows: rows <= limit, 64) == limit


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_most_rows_asks_for_few(rows):
    asked = []

    def fits(number):
        asked.append(number)
        return False

    assert most_rows(fits, rows) == 0
    assert asked in ([], [1])


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


def test_every_policy_that_is_compared_can_be_asked_for():
    assert list(POLICIES) == ["auto", *COMPARED]


def test_the_chosen_plan_is_the_fastest_that_fits():
    given = found(rows=64)
    fitting = [plan.step_s for plan in given.compared.values() if plan.feasible]
    assert given.plan.step_s == min(fitting)
    assert given.to_json()["policies"][given.plan.policy]["step_s"] == given.plan.step_s


def test_a_fraction_is_for_the_policies_that_rebuild():
    given = found(fraction=0.5)
    rebuilt = {policy: plan.admission.recompute for policy, plan in given.compared.items()}
    assert rebuilt == {"resident": 0, "stream": 0, "kvpr": 0.5, "recompute": 0.5}
    assert given.plan == given.compared[Policy.RECOMPUTE]


def test_link_bytes_are_those_of_the_paths():
    given = found(rows=64)
    stream = given.compared[Policy.STREAM]
    context = stream.geometry.paged_tokens(stream.workload.mean_context)
    assert given.link_bytes(stream) == 64 * context * 2 * 2 * 4096 * 32


@pytest.mark.parametrize("policy", ["stream", "kvpr", "recompute"])
def test_what_is_said_to_fit_fits(policy):
    given = found(policy, rows=60, gpu=SCARCE, model="demo")
    assert not given.plan.feasible
    assert f"--rows {given.most_rows} " in plan_text(given, None)
    assert found(policy, rows=given.most_rows, gpu=SCARCE, model="demo").plan.feasible
    assert not found(policy, rows=given.most_rows + 1, gpu=SCARCE, model="demo").plan.feasible


def test_the_memory_that_is_said_to_do_does():
    given = found("stream", rows=60, gpu=SCARCE, model="demo")
    enough_mib = -(-given.plan.gpu_bytes // 2**20)
    assert not given.plan.feasible
    assert f"--gpu-memory {enough_mib}MiB" in plan_text(given, None)
    assert found("stream", rows=60, gpu=enough_mib * 2**20, model="demo").plan.feasible


def test_a_context_that_the_model_lacks_is_not_mended_with_memory():
    given = found(prompt=4096)
    text = plan_text(given, None)
    assert given.most_rows == 0
    assert "positions for 2048" in text
    assert "would fit" not in text


def test_other_policies_that_fit_are_named():
    assert "--policy stream or kvpr or recompute" in plan_text(found("resident", rows=64), None)


def test_reasons_are_said_once():
    text = plan_text(found("resident", rows=64), None)
    assert text.count("It does not fit the device") == 1


def test_notes_are_in_the_head(capsys):
    work = ["--rows", "4", "--prompt", "128", "--generate", "16", "--hardware", "t4-pcie3"]
    notable = ["--gpu-memory", "1TiB", "--objective", "throughput"]
    assert main(["plan", "opt-6.7b", *work, *notable]) == 0
    text = capsys.readouterr().out
    assert "more than the machine has; 16.0 GiB count" in text
    assert "other numbers of rows are not tried" in text
