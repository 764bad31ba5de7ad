"""``headrace demo``: the whole idea in a minute, on the model that comes with the package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.cli import audit as audit_command
from headrace.cli import generate, machine, output
from headrace.cli.measured import comparison_json, comparison_table, machine_words, write_page

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from headrace.bench.measurement import PolicyMeasurement

POLICIES = ("stream", "kvpr", "recompute", "resident")
EMULATED = "a100-40gb-pcie4"
ROUNDS, STEPS_PER_ROUND = 3, 7
_SHOWN_CHARACTERS = 160


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "demo",
        help="see it work, in a minute, on the model that is included",
        description="Complete a few prompts under every policy with the cache on the host; show "
        "the texts, predicted beside measured times, the audit, and a timeline.",
    )
    parser.add_argument("--rows", type=int, default=4, help="prompts (default: 4)")
    parser.add_argument("--prompt", type=int, default=400, help="tokens a prompt (default: 400)")
    parser.add_argument(
        "--timeline",
        metavar="FILE.html",
        default="demo.timeline.html",
        help="default: demo.timeline.html",
    )
    machine.add_device(parser)
    machine.add_dtype(parser)
    output.add_options(parser)
    parser.set_defaults(model="demo")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from headrace.bench.policies import MeasureOptions, measure_policies
    from headrace.engine.audit import audit_all
    from headrace.engine.decoding import pad_left
    from headrace.engine.loading import resolve_device
    from headrace.engine.prompts import source_prompts
    from headrace.errors import ConfigurationError

    for setting in ("rows", "prompt"):
        if getattr(args, setting) < 1:
            raise ConfigurationError(f"--{setting} is {getattr(args, setting)}; allowed is 1 up")
    generate.check_files(args, "timeline")
    if resolve_device(args.device).type == "cpu":
        args.emulate = args.emulate or EMULATED
    args.dtype = args.dtype or "float32"
    options = MeasureOptions(rounds=ROUNDS, steps_per_round=STEPS_PER_ROUND)
    with output.Progress(args) as progress:
        loaded = generate.load(args, progress)
        generate.check_room(loaded, args.prompt, options.all_steps)
        profile = generate.profile_of(args, loaded, progress)
        tokenizer = loaded.tokenizer
        assert tokenizer is not None
        prompts = source_prompts(tokenizer, args.rows, args.prompt)
        tokens = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        ids, mask = pad_left(tokens, int(tokenizer.pad_token_id or 0))
        measured = measure_policies(
            loaded.model, ids, mask, profile, POLICIES, options, label="demo", progress=progress
        )
        progress("audit: the plain model and every policy")
        expected, audited = audit_all(
            loaded.model, ids, mask, options.all_steps, audit_command.WAYS
        )
    page = Path(args.timeline)
    write_page(page, measured, profile, "headrace demo: the same tokens, four ways")
    passed = all(result.passed for result in audited)
    texts = {one.policy: _texts(tokenizer, one) for one in measured}
    data = {
        "prompts": prompts,
        "outputs": texts,
        **comparison_json(measured),
        "audit": {
            "passed": passed,
            "tolerance": output.finite(expected.tolerance),
            "tokens_identical": all(result.tokens_identical for result in audited),
            "max_logit_error": output.finite(max(result.max_logit_error for result in audited)),
        },
        "timeline": str(page),
    }
    text = "\n".join(
        [
            *_completions(prompts, texts),
            f"{args.rows} prompts of up to {args.prompt} tokens, {args.dtype}, "
            f"on {machine_words(profile)}",
            "",
            comparison_table(measured),
            "",
            *_findings(measured),
            "",
            "The audit. " + audit_command.audit_text(audited, expected),
            "",
            f"What ran when, predicted over measured: open {page} in a browser.",
        ]
    )
    output.emit(args, data, text)
    return 0 if passed else 1


def _texts(tokenizer: PreTrainedTokenizerBase, one: PolicyMeasurement) -> list[str]:
    return [tokenizer.decode(row) for row in one.token_ids]


def _completions(prompts: list[str], texts: dict[str, list[str]]) -> list[str]:
    """Return the end of each prompt with its completion, and whether all policies made it."""
    first, *others = texts.values()
    lines = []
    for number, (prompt, text) in enumerate(zip(prompts, first, strict=True)):
        lines += [f"── prompt {number + 1} ──", f"…{prompt[-_SHOWN_CHARACTERS:]}⟦{text}⟧", ""]
    same = all(other == first for other in others)
    names = ", ".join(texts)
    verdict = "the same text" if same else "texts that are not all the same (see the audit)"
    return [*lines, f"In ⟦ ⟧ what the model wrote; {names} wrote {verdict}.", ""]


def _findings(measured: list[PolicyMeasurement]) -> list[str]:
    """Return in words what the table shows."""
    by_policy = {one.policy: one for one in measured}
    stream, kvpr, best = by_policy["stream"], by_policy["kvpr"], by_policy["recompute"]
    return [
        f"stream brings all keys and values through the link: it is busy {stream.link_busy:.0%} of "
        f"the time, the device {stream.device_busy:.0%}.",
        f"recompute brings {best.link_bytes / stream.link_bytes:.0%} of the bytes, as activations, "
        f"and rebuilds while the next ones are on their way: {stream.step_s / best.step_s:.2f} "
        f"times as fast as stream, {kvpr.step_s / best.step_s:.2f} times as fast as the paper's "
        "schedule (kvpr), which waits for the activations first.",
    ]
