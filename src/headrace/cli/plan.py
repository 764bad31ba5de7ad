"""``headrace plan``: what a workload would take on a machine, and which policy is best."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from headrace.cli import machine, output
from headrace.cli.models import resolve_shape

if TYPE_CHECKING:
    from headrace.cli.parser import Subparsers

POLICIES = ("auto", "resident", "stream", "kvpr", "recompute")
OBJECTIVES = ("latency", "throughput")


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's options."""
    parser = subparsers.add_parser(
        "plan",
        help="predict what a workload takes on a machine",
        description="Choose how each part of the KV cache is best brought to bear, and predict the "
        "decode step. Needs neither the model's weights nor, with --hardware, the machine.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a directory with config.json, a hub id, demo, or a published shape, such as "
        "llama-3-8b",
    )
    work = parser.add_argument_group("workload")
    for option, metavar, meaning in (
        ("--rows", "B", "sequences in the batch"),
        ("--prompt", "S", "tokens of each prompt"),
        ("--generate", "G", "tokens to generate for each row"),
    ):
        work.add_argument(option, type=int, required=True, metavar=metavar, help=meaning)
    where = parser.add_argument_group("machine")
    machine.add_hardware(where)
    machine.add_device(where)
    machine.add_memory(where)
    machine.add_dtype(where)
    _add_policy(parser)
    parser.add_argument(
        "--timeline", metavar="FILE.html", help="write the predicted timeline as a page"
    )
    output.add_options(parser)


def _add_policy(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("policy")
    how.add_argument(
        "--policy",
        choices=POLICIES,
        default="auto",
        help="how to bring the cache to bear (default: auto, the fastest that fits)",
    )
    how.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default="latency",
        help="what auto makes best: the step's time, or tokens/s; for a given number of rows both "
        "choose the same (default: latency)",
    )
    how.add_argument(
        "--recompute-fraction",
        type=float,
        metavar="F",
        help="share of each prompt's tokens to keep as X, 0 to 1, instead of the planned one",
    )


def run(args: argparse.Namespace) -> int:
    """Plan, and show the plan; that a workload does not fit is an answer, not an error."""
    from headrace.cli.plan_answer import Question, answer
    from headrace.cli.plan_text import plan_text
    from headrace.plan.policies import Policy
    from headrace.plan.workload import Workload

    # All that can be off is looked at before anything is measured.
    shape = resolve_shape(args.model, args.dtype)
    workload = Workload(args.rows, args.prompt, args.generate)
    gpu_memory, host_memory = machine.gpu_memory_bytes(args), machine.host_memory_bytes(args)
    with output.Progress(args) as progress:
        question = Question(
            shape,
            workload,
            machine.profile(args, shape, progress),
            Policy(args.policy),
            args.objective,
            gpu_memory,
            host_memory,
            args.recompute_fraction,
        )
        found = answer(question, progress)
    if args.timeline is not None:
        from headrace.cli.plan_page import write_plan_page

        write_plan_page(args.timeline, found)
    data = {**found.to_json(), "timeline": args.timeline}
    output.emit(args, data, plan_text(found, args.timeline))
    return 0
