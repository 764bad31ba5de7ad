"""``headrace generate``: complete prompts."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.cli import machine, output
from headrace.cli.generate_text import generate_text, result_json
from headrace.engine.param_checks import MOST_LOGPROBS
from headrace.units import format_seconds

if TYPE_CHECKING:
    from headrace.engine.audit import AuditResult
    from headrace.engine.llm import LLM
    from headrace.engine.loading import LoadedModel
    from headrace.engine.request import SamplingParams
    from headrace.hardware.profile import HardwareProfile
    from headrace.hf.planning import CacheOptions

POLICIES = ("auto", "resident", "stream", "kvpr", "recompute", "host")


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "generate",
        help="complete prompts",
        description="Complete prompts, up to --max-rows samples of them at once.",
    )
    add_model(parser)
    add_prompts(parser, required=True)
    _add_sampling(parser)
    parser.add_argument("--policy", choices=POLICIES, default="auto", help="default: auto")
    parser.add_argument("--recompute-fraction", type=float, metavar="F", help="override the plan")
    parser.add_argument("--timeline", metavar="FILE.html", help="write a page of what ran when")
    parser.add_argument("--trace", metavar="FILE.json", help="the same as a Chrome/Perfetto trace")
    parser.add_argument(
        "--audit", action="store_true", help="compare with the plain model, greedily"
    )
    machine.add_device(parser)
    machine.add_memory(parser)
    machine.add_max_rows(parser)
    machine.add_dtype(parser)
    output.add_options(parser)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the options that are fields of ``SamplingParams``."""
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)"
    )
    parser.add_argument("--top-p", type=float, default=1.0, help="default: 1")
    parser.add_argument("--top-k", type=int, default=0, help="default: 0, all tokens")
    parser.add_argument("--seed", type=int, help="of each prompt's random numbers")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before it")
    parser.add_argument(
        "--n",
        type=int,
        default=1,
        metavar="N",
        help="samples of each prompt; all alike at temperature 0 (default: 1)",
    )
    parser.add_argument(
        "--logprobs",
        type=int,
        metavar="N",
        help=f"log-probabilities of each token and of the N likeliest, 0 to {MOST_LOGPROBS} "
        "(default: none)",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the positional MODEL."""
    parser.add_argument("model", metavar="MODEL", help="demo, a local directory, or a hub id")


def add_prompts(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add ``--prompt`` and ``--prompt-file``."""
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="may be given several times"
    )
    parser.add_argument(
        "--prompt-file",
        action="append",
        default=[],
        metavar="FILE",
        help="a prompt from a file; may be given several times",
    )
    parser.set_defaults(prompts_required=required)


def read_prompts(args: argparse.Namespace) -> list[str]:
    """Return the prompts that were given.

    Raises:
        ConfigurationError: there is none, though one is required.
    """
    from headrace.errors import ConfigurationError

    prompts = [*args.prompt, *(_read_prompt(file) for file in args.prompt_file)]
    if not prompts and args.prompts_required:
        raise ConfigurationError("no prompt was given; use --prompt TEXT or --prompt-file FILE")
    return prompts


def check_files(args: argparse.Namespace, *options: str) -> None:
    """Refuse files that cannot be written before anything is computed for them.

    Args:
        args: what ``run`` was given.
        options: the options that name such files.
    """
    from headrace.errors import ConfigurationError

    for option in options:
        given = getattr(args, option)
        if given is None:
            continue
        path = Path(given).absolute()
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise ConfigurationError(
                f"--{option} is {given!r}, which cannot be written; give a file in a folder of "
                "yours that exists"
            )


def _read_prompt(file: str) -> str:
    from headrace.errors import ConfigurationError

    try:
        return Path(file).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"--prompt-file {file!r} is not text in UTF-8: {error}") from error


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from headrace.engine.llm import LLM

    params = _sampling_params(args)
    prompts = read_prompts(args)
    check_files(args, "timeline", "trace")
    with output.Progress(args) as progress:
        loaded = load(args, progress)
        profile = profile_of(args, loaded, progress)
        llm = LLM(
            loaded,
            policy=args.policy,
            gpu_memory=machine.gpu_memory_bytes(args),
            host_memory=machine.host_memory_bytes(args),
            profile=profile,
            recompute_fraction=args.recompute_fraction,
            max_rows=machine.max_rows(args),
        )
        llm.trace(bool(args.timeline or args.trace))
        progress(f"completing {len(prompts)} prompts, policy {args.policy}")
        outputs = llm.generate(prompts, params)
        write_timelines(args, llm)
        audited = _audit(args, llm, prompts, profile, progress) if args.audit else None
    assert llm.stats is not None
    data = result_json(outputs, llm.stats)
    if audited is not None:
        data["audit"] = audited
    text = generate_text(outputs, llm.stats, audited, lambda token: llm.tokenizer.decode([token]))
    output.emit(args, data, text)
    return 0 if audited is None or audited["passed"] else 1


def _sampling_params(args: argparse.Namespace) -> SamplingParams:
    """Return how tokens are to be chosen.

    Raises:
        ConfigurationError: a value is not allowed.
    """
    from headrace.engine.request import SamplingParams
    from headrace.errors import ConfigurationError

    params = SamplingParams(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
        stop=tuple(args.stop),
        n=args.n,
        logprobs=args.logprobs,
    )
    if params.n > machine.max_rows(args):
        raise ConfigurationError(
            f"--n is {params.n}, but at most {args.max_rows} rows run at once; lower --n, or raise "
            "--max-rows"
        )
    return params


def load(args: argparse.Namespace, progress: output.Progress) -> LoadedModel:
    """Load the model that the options name."""
    from headrace.engine.loading import load_model, quiet_libraries

    quiet_libraries()
    progress(f"loading {args.model}")
    return load_model(
        args.model,
        device=machine.device(args),
        dtype=args.dtype,
        options=_budgets(args),
        emulate=args.emulate,
    )


def _budgets(args: argparse.Namespace) -> CacheOptions | None:
    """Return the budgets within which a model is loaded; None where a command has no such."""
    from headrace.hf.planning import CacheOptions

    if not hasattr(args, "gpu_memory"):
        return None
    gpu, host = machine.gpu_memory_bytes(args), machine.host_memory_bytes(args)
    policy = getattr(args, "policy", None) or "auto"
    return CacheOptions.checked(policy, gpu, host, None, None, None, poison=False)


def profile_of(
    args: argparse.Namespace, loaded: LoadedModel, progress: output.Progress
) -> HardwareProfile:
    """Return the machine's profile at the model's shapes, with an emulated link if asked for."""
    from headrace.hardware.catalog import machine as published
    from headrace.hf.machine import machine_profile

    if args.emulate is not None:
        published(args.emulate)
    return machine_profile(loaded.model, emulate=args.emulate, progress=progress)


def check_room(loaded: LoadedModel, prompt_len: int, steps: int) -> None:
    """Refuse prompts of a length that leaves no room for the steps that are measured."""
    from headrace.engine.prompts import max_context
    from headrace.errors import ContextLengthError

    room = max_context(loaded.model) - steps
    if prompt_len > room:
        raise ContextLengthError(
            f"--prompt is {prompt_len}; with the {steps} steps that are measured, the context of "
            f"{loaded.name} has room for prompts of up to {room} tokens"
        )


def write_timelines(args: argparse.Namespace, llm: LLM) -> None:
    """Write the page and the trace, where they were asked for."""
    from headrace.report.timeline_page import write_timeline_page
    from headrace.timeline import chrome_trace

    if args.timeline:
        assert llm.stats is not None
        facts = {
            "policy": llm.stats.policy,
            "step": f"{format_seconds(llm.stats.step_s)} ({llm.stats.origin.value})",
        }
        write_timeline_page(
            Path(args.timeline), llm.timelines(), title=f"headrace: {args.model}", facts=facts
        )
    if args.trace:
        Path(args.trace).write_text(chrome_trace(llm.timelines()), "utf-8")


def _audit(
    args: argparse.Namespace,
    llm: LLM,
    prompts: list[str],
    profile: HardwareProfile,
    progress: output.Progress,
) -> dict[str, Any]:
    """Return how the model under the policy compares with the plain one, link not slowed down."""
    from headrace.engine.audit import audit, reference
    from headrace.engine.decoding import pad_left
    from headrace.engine.prompts import encode_prompts, max_context

    progress("audit: the plain model")
    limit = max_context(llm.model)
    tokens = encode_prompts(llm.tokenizer, prompts, limit)
    ids, mask = pad_left(tokens, int(llm.tokenizer.pad_token_id or 0))
    expected = reference(llm.model, ids, mask, min(args.max_tokens, limit - ids.shape[1]))
    assert llm.stats is not None
    progress(f"audit: policy {llm.stats.policy}")
    found = audit(
        llm.model,
        ids,
        mask,
        expected,
        policy=llm.stats.policy,
        recompute_fraction=llm.stats.recompute_fraction,
    )
    return audit_json(found)


def audit_json(result: AuditResult) -> dict[str, Any]:
    """Return an audit's result as JSON has it: an error without limit is null."""
    limits = {
        name: output.finite(getattr(result, name)) for name in ("max_logit_error", "tolerance")
    }
    return {**asdict(result), **limits, "notes": list(result.notes)}
