"""``headrace audit``: is the output that of the plain model, under every policy?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from headrace.cli import generate, machine, output

if TYPE_CHECKING:
    from headrace.engine.audit import AuditResult, Reference

WAYS: tuple[tuple[str, float | None], ...] = (
    ("resident", None),
    ("stream", None),
    ("kvpr", 0.37),
    ("kvpr", 1.0),
    ("recompute", 0.37),
    ("recompute", 1.0),
    ("host", None),
    ("host", 0.37),
)
"""Policies and recompute fractions that are compared, unless said otherwise."""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "audit",
        help="compare the output with the plain model's",
        description="Run the same prompts through the plain model and through every policy. "
        "Exit code 1 if any disagrees beyond the tolerance that is printed.",
    )
    generate.add_model(parser)
    generate.add_prompts(parser, required=False)
    parser.add_argument("--max-tokens", type=int, default=24, metavar="N", help="default: 24")
    parser.add_argument(
        "--policies", metavar="A,B", help="default: resident,stream,kvpr,recompute,host"
    )
    parser.add_argument("--recompute-fraction", type=float, metavar="F", help="default: 0.37 and 1")
    machine.add_device(parser)
    machine.add_dtype(parser)
    output.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from headrace.engine.audit import audit, reference
    from headrace.engine.decoding import pad_left
    from headrace.engine.prompts import encode_prompts, max_context, source_prompts

    ways = _ways(args)
    with output.Progress(args) as progress:
        loaded = generate.load(args, progress)
        tokenizer = loaded.tokenizer
        assert tokenizer is not None
        prompts = generate.read_prompts(args) or source_prompts(tokenizer, rows=3, tokens=200)
        limit = max_context(loaded.model)
        tokens = encode_prompts(tokenizer, prompts, limit)
        ids, mask = pad_left(tokens, int(tokenizer.pad_token_id or 0))
        progress("the plain model")
        expected = reference(loaded.model, ids, mask, min(args.max_tokens, limit - ids.shape[1]))
        results = []
        for policy, fraction in ways:
            progress(f"policy {policy}" + ("" if fraction is None else f", {fraction:g} rebuilt"))
            results.append(
                audit(loaded.model, ids, mask, expected, policy=policy, recompute_fraction=fraction)
            )
    passed = all(result.passed for result in results)
    data = {
        "passed": passed,
        "tolerance": output.finite(expected.tolerance),
        "tolerance_from": expected.why,
        "results": [generate.audit_json(result) for result in results],
    }
    output.emit(args, data, audit_text(results, expected))
    return 0 if passed else 1


def _ways(args: argparse.Namespace) -> list[tuple[str, float | None]]:
    """Return what to compare."""
    from headrace.errors import ConfigurationError

    known = tuple(dict.fromkeys(policy for policy, _ in WAYS))
    policies = known if args.policies is None else tuple(args.policies.split(","))
    unknown = [policy for policy in policies if policy not in known]
    if unknown:
        raise ConfigurationError(f"--policies names {unknown[0]!r}; allowed are {', '.join(known)}")
    ways = [way for way in WAYS if way[0] in policies]
    if args.recompute_fraction is None:
        return ways
    rebuilding = dict.fromkeys(policy for policy, fraction in ways if fraction is not None)
    plain = [way for way in ways if way[1] is None]
    return plain + [(policy, args.recompute_fraction) for policy in rebuilding]


def audit_text(results: list[AuditResult], expected: Reference) -> str:
    """Return the audit's table for people."""
    rows = [
        (
            result.policy,
            f"{result.recompute_fraction:.2f}",
            "identical" if result.tokens_identical else "differ",
            f"{result.max_logit_error:.1e}",
            "passed" if result.passed else "FAILED",
        )
        for result in results
    ]
    table = output.table(("policy", "rebuilt", "tokens", "logit error", "verdict"), rows)
    steps, count = expected.tokens.shape
    notes = [f"note: {note}" for note in dict.fromkeys(n for r in results for n in r.notes)]
    return "\n".join(
        [
            f"{count} prompts, {steps} tokens each, against plain transformers:",
            table,
            f"allowed: {expected.tolerance:.1e} of the logits' range; {expected.why}",
            *notes,
        ]
    )
