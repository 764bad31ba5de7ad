"""``headrace bench host-attention``: the cores' attention beside what their memory gives."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.cli import output
from headrace.errors import ConfigurationError
from headrace.units import format_bytes, format_rate, parse_bytes

if TYPE_CHECKING:
    from headrace.cli.parser import Options
    from headrace.runtime.host_attention_bench import Rates, Setting

NAME = "host-attention"
ROUNDS = 8
"""Turns of each way, unless said otherwise."""

_BUFFERS = 2
"""The keys and values lie in memory twice: in pages, and as torch's ways take them."""

_COLUMNS = (
    "kv heads",
    "group",
    "tokens",
    "rows",
    "K/V",
    "memory",
    "kernel",
    "share",
    "torch sdpa",
    "two products",
)


@dataclass(frozen=True)
class _Asked:
    """What the command line asks for, checked."""

    threads: int
    rounds: int
    settings: tuple[Setting, ...]


def add_options(parser: Options) -> None:
    """Add the options that only this workload has."""
    group = parser.add_argument_group(f"only with {NAME}")
    group.add_argument("--threads", type=int, help="cores that attend (default: all)")
    group.add_argument(
        "--tokens", metavar="N,N", help="tokens of each row (default: 2048,8192); whole pages of 64"
    )
    group.add_argument(
        "--cache-size",
        metavar="SIZE",
        help="keys and values of all rows (default: 256MiB); more than the processor's caches hold",
    )
    group.add_argument(
        "--large-pages", action="store_true", help="ask the system for large pages for them"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, and show the rates."""
    from headrace.runtime.host_attention import TORCH, HostAttention
    from headrace.runtime.host_attention_bench import measure

    asked = _asked(args)
    with HostAttention(threads=asked.threads) as attention, output.Progress(args) as progress:
        if attention.variant == TORCH:
            raise ConfigurationError(
                f"{NAME} measures the native kernel, which is not had here: {attention.reason}"
            )
        found = []
        for setting in asked.settings:
            progress(f"{_words(setting)}: {setting.rows} rows of {setting.context} tokens")
            found.append(measure(attention, setting, rounds=asked.rounds))
        variant = attention.variant
    data = to_json(found, variant, asked.threads, asked.rounds)
    if args.output:
        Path(args.output).write_text(json.dumps(data, indent=2) + "\n", "utf-8")
    output.emit(args, data, text(found, data))
    return 0


def _asked(args: argparse.Namespace) -> _Asked:
    """Return what to measure.

    Raises:
        ConfigurationError: an option is not allowed, or there is not enough memory.
    """
    rounds = ROUNDS if args.rounds is None else args.rounds
    if rounds < 1:
        raise ConfigurationError(f"--rounds is {rounds}; allowed is 1 up")
    if args.device == "cuda":
        raise ConfigurationError(
            f"--device is cuda, but {NAME} measures the host's cores; leave it out"
        )
    cores = len(os.sched_getaffinity(0))
    threads = cores if args.threads is None else args.threads
    if not 1 <= threads <= cores:
        raise ConfigurationError(
            f"--threads is {threads}; allowed is 1 to {cores}, the cores of this process"
        )
    return _Asked(threads, rounds, _settings(args))


def _settings(args: argparse.Namespace) -> tuple[Setting, ...]:
    import torch

    from headrace.hardware.identity import available_host_memory_bytes
    from headrace.runtime import host_attention_bench as measured

    size = measured.CACHE_BYTES
    if args.cache_size is not None:
        size = parse_bytes(args.cache_size, setting="--cache-size")
    contexts = measured.CONTEXTS
    if args.tokens is not None:
        contexts = _contexts(args.tokens, measured.PAGE_TOKENS)
    dtype = getattr(torch, args.dtype or "bfloat16")
    settings = tuple(
        measured.Setting(context, heads, group, size, dtype, args.large_pages)
        for context in contexts
        for heads, group in measured.HEADS
    )
    needed = _BUFFERS * max(setting.kv_bytes for setting in settings)
    free = available_host_memory_bytes()
    if needed > free:
        raise ConfigurationError(
            f"keys and values need {format_bytes(needed)}, and {format_bytes(free)} of host memory "
            f"are free; lower --tokens ({max(contexts)}) or --cache-size ({format_bytes(size)})"
        )
    return settings


def _contexts(words: str, page_tokens: int) -> tuple[int, ...]:
    parts = words.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or any(
        int(part) % page_tokens for part in parts
    ):
        raise ConfigurationError(
            f"--tokens is {words!r}; allowed are multiples of {page_tokens}, such as 2048,8192"
        )
    return tuple(int(part) for part in parts)


def to_json(found: Sequence[Rates], variant: str, threads: int, rounds: int) -> dict[str, Any]:
    """Return the rates as a JSON-compatible dictionary.

    Args:
        found: what was measured, at least one.
        variant: the kernel's instruction set.
        threads: cores that attended, and that read memory.
        rounds: turns of each way.
    """
    from headrace.engine.environment import environment
    from headrace.runtime.host_attention_bench import PAGE_TOKENS, WIDTH

    setting = found[0].setting
    return {
        "schema_version": 1,
        "workload": NAME,
        "origin": "measured",
        "variant": variant,
        "threads": threads,
        "rounds": rounds,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "head_dim": WIDTH,
        "page_tokens": PAGE_TOKENS,
        "large_pages": setting.large_pages,
        "environment": environment(),
        "cases": [_case_json(one) for one in found],
    }


def _case_json(one: Rates) -> dict[str, Any]:
    return {
        "kv_heads": one.setting.heads,
        "group": one.setting.group,
        "tokens": one.setting.context,
        "rows": one.setting.rows,
        "kv_bytes": one.setting.kv_bytes,
        "memory_bytes_per_s": one.memory_bytes_per_s,
        "host_attention_bytes_per_s": one.host_attention_bytes_per_s,
        "memory_share": one.memory_share,
        "sdpa_bytes_per_s": one.sdpa_bytes_per_s,
        "products_bytes_per_s": one.products_bytes_per_s,
    }


def text(found: Sequence[Rates], data: dict[str, Any]) -> str:
    """Return the rates as a table, for a terminal."""
    pages = ", in large pages" if data["large_pages"] else ""
    return "\n".join(
        [
            f"{data['environment']['cpu']}, {data['threads']} threads, {data['variant']}, "
            f"{data['dtype']}, heads of {data['head_dim']} elements{pages}",
            "",
            output.table(_COLUMNS, [_cells(one) for one in found]),
            "",
            f"Measured in turns, medians of {data['rounds']} rounds, in bytes of keys and values a "
            "second.",
            "memory: the same cores read memory from end to end; share: the kernel's of that.",
        ]
    )


def _cells(one: Rates) -> tuple[str, ...]:
    setting = one.setting
    return (
        str(setting.heads),
        str(setting.group),
        f"{setting.context:,}",
        str(setting.rows),
        format_bytes(setting.kv_bytes),
        format_rate(one.memory_bytes_per_s),
        format_rate(one.host_attention_bytes_per_s),
        f"{one.memory_share:.0%}",
        format_rate(one.sdpa_bytes_per_s),
        format_rate(one.products_bytes_per_s),
    )


def _words(setting: Setting) -> str:
    return f"{setting.heads} key/value heads with {setting.group} query heads each"
