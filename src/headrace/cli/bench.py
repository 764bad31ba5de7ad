"""``headrace bench``: policies measured side by side, with bound and prediction.

Named workloads are those of the suite (``bench_suite.py``). With ``--simulate`` nothing is
measured: a study is simulated instead (``bench_simulate.py``). The workload ``host-attention`` is
measured by itself, without a model (``bench_host_attention.py``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.bench.catalogue import WORKLOADS
from headrace.cli import bench_host_attention, bench_suite, generate, machine, output
from headrace.cli.measured import (
    comparison_json,
    comparison_table,
    comparison_words,
    machine_words,
    write_page,
)
from headrace.cli.parser import Parser
from headrace.errors import ConfigurationError

if TYPE_CHECKING:
    from headrace.cli.parser import Options
    from headrace.engine.loading import LoadedModel
    from headrace.hardware.profile import HardwareProfile
    from headrace.hf.weights import PlacedWeights

EMULATED = "a100-40gb-pcie4"
POLICIES = ("stream", "kvpr", "recompute")
MODEL = "opt-6.7b"
ROWS, PROMPT, ROUNDS, STEPS = 8, 2048, 3, 3
"""What a model is measured with, unless said otherwise."""

_OF_HOST_ATTENTION = ("names", "rounds", "device", "dtype")
"""Options of measuring that the workload ``host-attention`` follows, too."""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure policies side by side",
        description="Measure decode steps of several policies in one run, alternating, with the "
        "bound and the prediction beside: of a model (by default a slice of OPT-6.7B with random "
        "weights), or of named workloads, with transformers' own caches as rivals. With "
        "--simulate, nothing is measured: the experiments of KVPR's paper are simulated. "
        f"{bench_host_attention.NAME} measures, without a model, how fast the host's cores attend "
        "beside the rate at which they read memory at all.",
    )
    _add_measuring(parser)
    bench_suite.add_options(parser)
    bench_host_attention.add_options(parser)
    parser.add_argument(
        "--simulate",
        metavar="STUDY",
        help="simulate a study instead of measuring: paper (the experiments of KVPR, beside what "
        "the paper reports)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE.json",
        help="write the figures (with --simulate also FILE.md, a page)",
    )
    output.add_options(parser)


def _add_measuring(parser: Options) -> None:
    """Add what says what is measured, and how."""
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        default=[],
        help="a model: a published shape (with random weights), demo, a directory or a hub id "
        f"(default: {MODEL}); or workloads: suite for all, or {', '.join(WORKLOADS)}; or "
        f"{bench_host_attention.NAME}",
    )
    parser.add_argument(
        "--dummy-weights",
        action="store_true",
        help="random weights (always so for a published shape)",
    )
    parser.add_argument("--layers", type=int, help="only so many layers (CPU default: 2)")
    parser.add_argument(
        "--rows", type=int, help=f"sequences (default: {ROWS}; of named workloads: the most)"
    )
    parser.add_argument(
        "--prompt",
        type=int,
        help=f"tokens a row (default: {PROMPT}; of named workloads: the most)",
    )
    parser.add_argument(
        "--policies",
        metavar="A,B",
        help=f"default: {','.join(POLICIES)}; of named workloads: as they say",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"turns of each policy (default: {ROUNDS}; of {bench_host_attention.NAME}: "
        f"{bench_host_attention.ROUNDS})",
    )
    parser.add_argument("--steps", type=int, help=f"steps of a turn (default: {STEPS})")
    parser.add_argument(
        "--batches",
        metavar="A,B",
        default="1",
        help="batches in which the rows are worked on: 1 (column-by-column), or several that go "
        "through the model one after the other (row-by-row); several numbers to compare "
        "(default: 1)",
    )
    parser.add_argument(
        "--weights-on-host",
        metavar="SHARE",
        type=float,
        help="share of the layers' weights, 0 to 1, that stays on the host and is streamed "
        "(default: what does not fit --gpu-memory)",
    )
    parser.add_argument("--timeline", metavar="FILE.html", help="write a page of what ran when")
    machine.add_device(parser)
    machine.add_memory(parser)
    machine.add_dtype(parser)


def _batches(args: argparse.Namespace) -> tuple[int, ...]:
    """Return the numbers of batches that are compared."""
    words = args.batches.split(",")
    numbers = [int(word) if word.isdecimal() else 0 for word in words]
    if not all(1 <= number <= args.rows for number in numbers):
        raise ConfigurationError(
            f"--batches is {args.batches!r}; allowed are numbers from 1 to --rows ({args.rows}), "
            "with commas between them"
        )
    return tuple(numbers)


def _place(
    args: argparse.Namespace, loaded: LoadedModel, profile: HardwareProfile
) -> PlacedWeights | None:
    """Bring the share of a model's weights to the host that is asked for, or does not fit."""
    from headrace.hf.placing import Placing, choose_placing, place
    from headrace.hf.planning import CacheOptions
    from headrace.hf.weights import placed_weights
    from headrace.plan.workload import Workload

    placed = placed_weights(loaded.model)
    if placed is not None:
        return placed
    placing = Placing(args.weights_on_host or 0.0, None, profile)
    parameter = next(loaded.model.parameters())
    if args.weights_on_host is None:
        gpu, host = machine.gpu_memory_bytes(args), machine.host_memory_bytes(args)
        options = CacheOptions.checked("auto", gpu, host, None, None, profile, poison=False)
        work = Workload(args.rows, args.prompt, 16)
        config: Any = loaded.model.config
        placing = choose_placing(config, parameter.dtype, parameter.device, options, work)
    place(loaded.model, placing, parameter.device, profile)
    return placed_weights(loaded.model)


def _refuse(args: argparse.Namespace, options: Parser, reason: str, *kept: str) -> None:
    """Refuse options that would not be followed.

    Args:
        args: what was given.
        options: has the options that are refused.
        reason: why.
        kept: names of those that are allowed all the same.

    Raises:
        ConfigurationError: one was given.
    """
    for name, default in vars(options.parse_args([])).items():
        given = getattr(args, name)
        if name not in kept and given != default:
            option = "NAME" if name == "names" else f"--{name.replace('_', '-')}"
            given = " ".join(given) if name == "names" else given
            raise ConfigurationError(f"{option} is {given!r}, and {reason}")


def _measuring() -> Parser:
    parser = Parser()
    _add_measuring(parser)
    return parser


def _of_host_attention() -> Parser:
    parser = Parser()
    bench_host_attention.add_options(parser)
    return parser


def _of_suite() -> Parser:
    parser = Parser()
    bench_suite.add_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    name = bench_host_attention.NAME
    if args.simulate is not None:
        from headrace.cli import bench_simulate

        reason = (
            f"--simulate {args.simulate} was given too, which measures nothing and has its own "
            "settings; leave one of them out"
        )
        _refuse(args, _measuring(), reason)
        _refuse(args, _of_host_attention(), reason)
        _refuse(args, _of_suite(), reason)
        generate.check_files(args, "output")
        return bench_simulate.run(args)
    if args.names == [name]:
        _refuse(args, _measuring(), f"{name} has no such setting", *_OF_HOST_ATTENTION)
        _refuse(args, _of_suite(), f"{name} has no such setting")
        generate.check_files(args, "output")
        return bench_host_attention.run(args)
    _refuse(args, _of_host_attention(), f"only `headrace bench {name}` has such a setting")
    if bench_suite.are_named(args.names):
        _refuse(args, _measuring(), "named workloads have no such setting", *bench_suite.KEPT)
        generate.check_files(args, "output", "page")
        return bench_suite.run(args)
    _refuse(args, _of_suite(), "only named workloads have such a setting")
    return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    """Measure policies side by side."""
    import torch

    from headrace.bench.policies import MeasureOptions, measure_policies
    from headrace.engine.environment import environment
    from headrace.engine.loading import dummy_model, resolve_device
    from headrace.model.published import published_names

    args.model = args.names[0] if args.names else MODEL
    usual = {"rows": ROWS, "prompt": PROMPT, "rounds": ROUNDS, "steps": STEPS}
    for setting, value in usual.items():
        if getattr(args, setting) is None:
            setattr(args, setting, value)
    policies = (args.policies or ",".join(POLICIES)).split(",")
    for setting in ("rows", "prompt", "rounds", "steps"):
        if getattr(args, setting) < 1:
            raise ConfigurationError(f"--{setting} is {getattr(args, setting)}; allowed is 1 up")
    generate.check_files(args, "timeline", "output")
    on_cpu = resolve_device(machine.device(args)).type == "cpu"
    args.emulate = args.emulate or (EMULATED if on_cpu else None)
    options = MeasureOptions(
        args.rounds,
        args.steps,
        gpu_memory=machine.gpu_memory_bytes(args),
        host_memory=machine.host_memory_bytes(args),
        batches=_batches(args),
    )
    with output.Progress(args) as progress:
        if args.model in published_names():
            progress(f"making {args.model} with random weights")
            layers = args.layers if args.layers is not None or not on_cpu else 2
            loaded = dummy_model(
                args.model,
                layers=layers,
                device=machine.device(args),
                dtype=args.dtype or "bfloat16",
            )
        elif args.dummy_weights or args.layers is not None:
            raise ConfigurationError(
                f"--dummy-weights and --layers are for published shapes, not for {args.model!r}; "
                f"published are {', '.join(published_names())}"
            )
        else:
            loaded = generate.load(args, progress)
        generate.check_room(loaded, args.prompt, options.all_steps)
        profile = generate.profile_of(args, loaded, progress)
        placed = _place(args, loaded, profile)
        vocab = int(loaded.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, vocab, (args.rows, args.prompt), generator=generator)
        measured = measure_policies(
            loaded.model,
            ids,
            torch.ones_like(ids),
            profile,
            policies,
            options,
            label=loaded.name,
            progress=progress,
        )
    data = {
        "schema_version": 1,
        "model": loaded.name,
        "workload": {
            "rows": args.rows,
            "prompt_len": args.prompt,
            "weights_on_host": 0.0 if placed is None else placed.share,
        },
        "machine": machine_words(profile),
        "environment": environment(),
        **comparison_json(measured),
    }
    if args.output:
        Path(args.output).write_text(json.dumps(data, indent=2) + "\n", "utf-8")
    if args.timeline:
        write_page(Path(args.timeline), measured, profile, f"headrace bench: {loaded.name}")
    dtype = str(next(loaded.model.parameters()).dtype).removeprefix("torch.")
    text = "\n".join(
        [
            f"{loaded.name}, {dtype}, {args.rows} rows × {args.prompt} tokens, "
            f"on {machine_words(profile)}",
            "",
            comparison_table(measured),
            "",
            *comparison_words(measured),
        ]
    )
    output.emit(args, data, text)
    return 0
