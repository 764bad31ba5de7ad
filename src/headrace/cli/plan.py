"""``headrace plan``: what a workload would take on a machine, and which policy is best."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.cli import output
from headrace.cli.plan_options import add_parser, question

if TYPE_CHECKING:
    import argparse

__all__ = ["add_parser", "run"]


def run(args: argparse.Namespace) -> int:
    """Plan, and show the plan; that a workload does not fit is an answer, not an error."""
    from headrace.cli.plan_answer import answer
    from headrace.cli.plan_text import plan_text

    with output.Progress(args) as progress:
        found = answer(question(args, progress), progress)
        if args.report is not None:
            from headrace.cli.plan_report import build_report, write_plan_report
            from headrace.cli.plan_text import cluster_facts

            progress("drawing the report")
            report = build_report(
                found.found.planner,
                found.plan,
                found.compared,
                found.improvements,
                facts=cluster_facts(found),
            )
            write_plan_report(args.report, report)
    if args.timeline is not None:
        from headrace.cli.plan_page import write_plan_page

        write_plan_page(args.timeline, found)
    pages = {"report": args.report, "timeline": args.timeline}
    output.emit(args, {**found.to_json(), **pages}, plan_text(found, pages))
    return 0
