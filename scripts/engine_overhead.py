"""What the engine costs where all of the cache is resident, beside transformers' own ``generate``.

    PYTHONPATH=src python3 scripts/engine_overhead.py [--rounds N] [--output FILE]

The demo model on this CPU, float32. One row, and 32 rows of mixed lengths, which ``generate`` takes
as a padded batch that lasts as long as its longest row. Both take turns; ratios are of medians. The
tokens of both must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

# As the command line sets it: idle threads look for work so often before they sleep.
os.environ.setdefault("GOMP_SPINCOUNT", "50000")

import torch

from headrace.engine.environment import environment
from headrace.engine.llm import LLM
from headrace.engine.loading import quiet_libraries
from headrace.engine.request import SamplingParams

PROMPT, STEPS, ROWS = 128, 128, 32


def main() -> int:
    """Measure, print and keep the figures; return 1 where tokens differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    quiet_libraries()
    llm = LLM("demo", policy="resident", device="cpu", dtype="float32")
    one = measure(llm, [(PROMPT, STEPS)], arguments.rounds)
    choose = random.Random(0)
    many = [(choose.randrange(16, 192), choose.randrange(16, 192)) for _ in range(ROWS)]
    mixed = measure(llm, many, arguments.rounds)
    found = {"one row": one, f"{ROWS} mixed rows": mixed}
    for name, figures in found.items():
        print(
            f"{name}: headrace {figures['headrace_s']:.3f} s, transformers "
            f"{figures['transformers_s']:.3f} s: {figures['speed']:.2f} x as fast; tokens "
            f"{'identical' if figures['identical'] else 'DIFFER'}"
        )
    if arguments.output:
        text = json.dumps({"environment": environment(), "engine": found}, indent=2)
        arguments.output.write_text(text + "\n")
    return 0 if all(figures["identical"] for figures in found.values()) else 1


def measure(llm: LLM, sizes: list[tuple[int, int]], rounds: int) -> dict[str, Any]:
    """Let both take turns on prompts and numbers of tokens of given sizes."""
    choose = random.Random(1)
    vocab = llm.tokenizer.vocab_size
    prompts = [[choose.randrange(5, vocab) for _ in range(length)] for length, _ in sizes]
    params = [
        SamplingParams(max_tokens=steps, temperature=0.0, ignore_eos=True) for _, steps in sizes
    ]
    ours: list[float] = []
    theirs: list[float] = []
    identical = True
    for turn in range(rounds + 1):
        start_s = time.perf_counter()
        outputs = llm.generate(prompts, params)
        between_s = time.perf_counter()
        plain = padded(llm, prompts, max(steps for _, steps in sizes))
        end_s = time.perf_counter()
        if turn:
            ours.append(between_s - start_s)
            theirs.append(end_s - between_s)
        made = [list(output.outputs[0].token_ids) for output in outputs]
        identical = identical and all(
            some == row[: len(some)] and len(some) == steps
            for some, row, (_, steps) in zip(made, plain, sizes, strict=True)
        )
    headrace_s, transformers_s = statistics.median(ours), statistics.median(theirs)
    return {
        "rows": len(sizes),
        "headrace_s": headrace_s,
        "transformers_s": transformers_s,
        "speed": transformers_s / headrace_s,
        "rounds": rounds,
        "identical": identical,
    }


def padded(llm: LLM, prompts: list[list[int]], steps: int) -> list[list[int]]:
    """Return what ``generate`` makes of a batch that is padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
    with torch.inference_mode():
        made = llm.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            min_new_tokens=steps,
            max_new_tokens=steps,
            pad_token_id=0,
        )
    tokens: list[list[int]] = made[:, longest:].tolist()
    return tokens


if __name__ == "__main__":
    raise SystemExit(main())
