"""``headrace batch``: a file of requests in, a file of results out."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.cli import generate, machine, output
from headrace.cli.batch_progress import Reporter, summary_json, summary_text
from headrace.errors import ConfigurationError
from headrace.timeline import Origin

if TYPE_CHECKING:
    from headrace.engine.batch_input import BatchInput
    from headrace.engine.batch_run import BatchRun

WRITE_FAILED = 1
_DESCRIPTION = (
    "Complete the requests of INPUT, in the format of OpenAI's batches: a JSON object a line with "
    "custom_id, method, url and body. Results are added to OUTPUT as they are ready. A batch that "
    "was stopped, even killed, goes on when the same command is given again. A request without a "
    "seed gets one that is made from its custom_id, so results do not depend on that. The exit "
    "code is 0 when every request has a result, which may be an error; 1 when OUTPUT could not be "
    "written."
)


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "batch", help="complete a file of requests", description=_DESCRIPTION
    )
    parser.add_argument("input", metavar="INPUT.jsonl", help="the requests, one a line")
    parser.add_argument("output", metavar="OUTPUT.jsonl", help="the results, one a line")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="demo, a local directory, or a hub id"
    )
    parser.add_argument("--policy", choices=generate.POLICIES, default="auto", help="default: auto")
    parser.add_argument(
        "--overwrite", action="store_true", help="drop what OUTPUT holds, and start over"
    )
    machine.add_device(parser)
    machine.add_memory(parser)
    machine.add_max_rows(parser)
    machine.add_dtype(parser)
    output.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from headrace.engine.batch_input import BatchInput
    from headrace.engine.batch_journal import Journal, ResultWriteError
    from headrace.engine.batch_run import BatchRun

    start_s = time.perf_counter()
    _check_options(args)
    try:
        with output.Progress(args) as progress:
            progress(f"checking {args.input}")
            with BatchInput(Path(args.input)) as batch:
                _refuse_same_file(args, batch)
                with Journal(Path(args.output), overwrite=args.overwrite) as journal:
                    work = BatchRun(batch, journal, Reporter(progress))
                    work.refuse_invalid()
                    if work.needs_engine:
                        _complete(args, work, progress)
    except ResultWriteError as error:
        return _write_failed(args, error)
    seconds = time.perf_counter() - start_s
    origin = Origin.MEASURED if args.emulate is None else Origin.EMULATED
    data = summary_json(work.counts, seconds, args.output, origin)
    output.emit(args, data, summary_text(data))
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that are off before anything is read, written or loaded."""
    from headrace.hardware.catalog import machine as published

    machine.max_rows(args)
    machine.gpu_memory_bytes(args)
    machine.host_memory_bytes(args)
    if args.emulate is not None:
        published(args.emulate)


def _refuse_same_file(args: argparse.Namespace, batch: BatchInput) -> None:
    """Refuse to write over the input, by whatever name it is given."""
    if os.path.exists(args.output) and batch.is_file(os.stat(args.output)):
        raise ConfigurationError(
            f"OUTPUT is {args.output!r}, which is the INPUT, too; give another file"
        )


def _complete(args: argparse.Namespace, work: BatchRun, progress: output.Progress) -> None:
    """Load the model, and complete what is left."""
    from headrace.engine.batch_prompts import PromptReader
    from headrace.engine.llm import LLM
    from headrace.engine.prompts import max_context
    from headrace.hf.observe import text_config

    loaded = generate.load(args, progress)
    llm = LLM(
        loaded,
        policy=args.policy,
        gpu_memory=machine.gpu_memory_bytes(args),
        host_memory=machine.host_memory_bytes(args),
        profile=generate.profile_of(args, loaded, progress),
        max_rows=machine.max_rows(args),
    )
    reader = PromptReader(
        llm.tokenizer, max_context(llm.model), int(text_config(llm.model).vocab_size)
    )
    work.complete(llm, reader, loaded.name)


def _write_failed(args: argparse.Namespace, error: Exception) -> int:
    """Say that OUTPUT could not be written, which is no fault of the command's words."""
    message = " ".join(str(error).split())
    print(f"headrace: error: {message}", file=sys.stderr)
    if args.json:
        output.emit(args, {"error": {"type": type(error).__name__, "message": message}}, "")
    return WRITE_FAILED
