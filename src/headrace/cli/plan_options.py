"""The options of ``headrace plan``, and the question that they make."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from headrace.cli import machine, output
from headrace.cli.models import resolve_shape
from headrace.errors import ConfigurationError

if TYPE_CHECKING:
    from headrace.cli.output import Progress
    from headrace.cli.parser import Subparsers
    from headrace.cli.plan_answer import Question
    from headrace.model.shape import ModelShape
    from headrace.plan.workload import Workload

POLICIES = ("auto", "resident", "stream", "kvpr", "recompute", "host")
OBJECTIVES = ("latency", "throughput")
SCHEDULES = ("row", "column")
PARALLEL = ("data", "tensor")
PATHS = ("resident", "stream", "recompute", "host")


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's options."""
    parser = subparsers.add_parser(
        "plan",
        help="predict what a workload takes on a machine",
        description="Choose how each part of the KV cache is best brought to bear, and predict the "
        "generation. Needs neither the model's weights nor, with --hardware, the machine.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a directory with config.json, a hub id, demo, or a published shape, such as "
        "llama-3-8b",
    )
    _add_workload(parser)
    where = parser.add_argument_group("machine")
    machine.add_hardware(where)
    machine.add_device(where)
    machine.add_memory(where)
    machine.add_dtype(where)
    where.add_argument("--gpus", type=int, default=1, metavar="N", help="GPUs (default: 1)")
    where.add_argument(
        "--parallel",
        choices=PARALLEL,
        default="data",
        help="how several GPUs share the work: each has its rows, or a part of every layer; "
        "memory options are then each GPU's, and the host's as a whole (default: data)",
    )
    _add_policy(parser)
    pages = parser.add_argument_group("pages")
    pages.add_argument(
        "--report", metavar="FILE.html", help="write the plan with its pictures as a page"
    )
    pages.add_argument(
        "--timeline", metavar="FILE.html", help="write the predicted timeline as a page"
    )
    output.add_options(parser)


def _add_workload(parser: argparse.ArgumentParser) -> None:
    work = parser.add_argument_group("workload")
    for option, metavar, meaning in (
        ("--rows", "B", "sequences; with --objective throughput the most there may be at once"),
        ("--prompt", "S", "tokens of each prompt"),
        ("--generate", "G", "tokens to generate for each row"),
    ):
        work.add_argument(option, type=int, required=True, metavar=metavar, help=meaning)
    work.add_argument(
        "--batches",
        type=int,
        default=1,
        metavar="N",
        help="groups in which the rows are worked on (default: 1)",
    )


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
        help="what to make best: the step's time for the given rows, or tokens/s over numbers of "
        "rows up to the given one (default: latency)",
    )
    how.add_argument(
        "--schedule",
        choices=SCHEDULES,
        help="row by row, or column by column: all batches through a layer before the next "
        "(default: the faster one, where there are batches)",
    )
    how.add_argument(
        "--without",
        metavar="PATH[,PATH]",
        help=f"paths that may not be taken, of {', '.join(PATHS)}",
    )
    how.add_argument(
        "--keep-weights",
        action="store_true",
        help="keep all weights on the device, even where streaming some would be faster",
    )
    how.add_argument(
        "--recompute-fraction",
        type=float,
        metavar="F",
        help="share of each prompt's tokens to keep as X, 0 to 1, instead of the planned one",
    )


def question(args: argparse.Namespace, progress: Progress) -> Question:
    """Return the question that the options ask; all that can be off is looked at first.

    Raises:
        ConfigurationError: an option is not allowed, or two do not go together.
        ProfileError: there is no such machine, or it has no rate for the element type.
    """
    from headrace.cli.plan_answer import Question
    from headrace.plan.options import PlanOptions
    from headrace.plan.parallel import Cluster, Parallel
    from headrace.plan.workload import Workload

    shape = resolve_shape(args.model, args.dtype)
    workload = Workload(args.rows, args.prompt, args.generate, args.batches)
    _check_context(shape, workload)
    cluster = Cluster(args.gpus, Parallel(args.parallel))
    options = PlanOptions.checked(
        policy=args.policy,
        objective=args.objective,
        gpu_memory_bytes=machine.gpu_memory_bytes(args),
        host_memory_bytes=machine.host_memory_bytes(args),
        recompute_fraction=args.recompute_fraction,
        paths=_paths(args.without),
        stream_weights=not args.keep_weights,
        schedule=args.schedule,
    )
    return Question(shape, workload, machine.profile(args, shape, progress), options, cluster)


def _paths(without: str | None) -> tuple[str, ...]:
    excluded = [path.strip() for path in without.split(",")] if without else []
    unknown = [path for path in excluded if path not in PATHS]
    if unknown:
        raise ConfigurationError(
            f"--without is {without!r}; allowed are some of {', '.join(PATHS)}, with commas between"
        )
    left = tuple(path for path in PATHS if path not in excluded)
    if not left:
        raise ConfigurationError(
            f"--without is {without!r}, which leaves no path; leave at least one of them out"
        )
    return left


def _check_context(shape: ModelShape, workload: Workload) -> None:
    """Refuse a prompt that no memory helps: the model has no positions for it."""
    room = shape.max_context
    if workload.max_context <= room:
        return
    mend = (
        f"use --prompt {room - workload.generate_len} at most"
        if room > workload.generate_len
        else f"use --generate {room - 1} at most, with --prompt 1"
    )
    raise ConfigurationError(
        f"--prompt {workload.prompt_len} and --generate {workload.generate_len} make "
        f"{workload.max_context} tokens, and {shape.name} has positions for {room}; {mend}"
    )
