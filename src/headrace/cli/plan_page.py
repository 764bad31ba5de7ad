"""The page of a plan's predicted timeline."""

from __future__ import annotations

from headrace.cli.plan_answer import Answer
from headrace.cli.plan_text import policy_rows, rates_of, workload_words
from headrace.hardware.profile import HardwareProfile
from headrace.model.shape import ModelShape
from headrace.plan.outcome import Plan
from headrace.plan.plan import plan_program
from headrace.plan.policies import Policy
from headrace.plan.simulate import simulate
from headrace.report.timeline_page import write_timeline_page
from headrace.timeline import Timeline

_STEPS = 3
_MANY_OPERATIONS = 5_000
"""Of so large a program two steps are shown: the second is as good as steady."""


def write_plan_page(path: str, answer: Answer) -> None:
    """Write a page with the timelines of ``stream`` and of the chosen plan.

    Args:
        path: the file to write.
        answer: what was found.
    """
    question = answer.question
    shown = (answer.compared.get(Policy.STREAM), answer.plan)
    plans = {plan.policy: plan for plan in shown if plan is not None}
    planner = answer.planner
    columns, rows = policy_rows(answer)
    write_timeline_page(
        path,
        [predicted_timeline(plan, planner.shape, planner.profile) for plan in plans.values()],
        title=f"{answer.plan.model} on {answer.plan.hardware}: the plan",
        facts={
            "Model": f"{answer.plan.model}, {answer.plan.dtype}",
            "Machine": answer.plan.hardware,
            "Workload": workload_words(question.workload),
            "Figures": f"predicted, from {rates_of(question.profile)}",
        },
        table=[dict(zip(columns, row, strict=True)) for row in rows],
    )


def predicted_timeline(plan: Plan, shape: ModelShape, profile: HardwareProfile) -> Timeline:
    """Return some decode steps of a plan, at mean context, as the simulator sees them."""
    program = plan_program(plan, shape)
    steps = _STEPS if len(program.operations) < _MANY_OPERATIONS else 2
    return simulate(program, profile, shape.dtype, steps, label=plan.policy.value)
