"""Kills a batch of many requests again and again, and compares what comes of it in the end.

    PYTHONPATH=src python3 scripts/batch_endurance.py [--requests N] [--kills N] [--seed N]

Runs ``headrace batch`` on the demo model undisturbed; then again, killed with SIGKILL at random
moments and restarted each time. At the end every request must have exactly one result, that of the
undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

OPTIONS = ("--model", "demo", "--dtype", "float32", "--policy", "resident", "--quiet")
TEXT = "the river holds water high above the mill and sends it down a narrow wooden race"


def main() -> int:
    """Run it; return 1 if any result is missing, there twice, or another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    choose = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jsonl"
        source.write_text("\n".join(request(n, choose) for n in range(arguments.requests)) + "\n")
        undisturbed, killed = Path(folder) / "whole.jsonl", Path(folder) / "killed.jsonl"
        start_s = time.perf_counter()
        subprocess.run(command(source, undisturbed), check=True)
        whole_s = time.perf_counter() - start_s
        print(f"undisturbed: {arguments.requests} requests in {whole_s:.0f} s")
        interrupt(source, killed, arguments.kills, whole_s, choose)
        subprocess.run(command(source, killed), check=True)
        return compare(undisturbed, killed, arguments.requests)


def request(number: int, choose: random.Random) -> str:
    """Return a line of the input: a prompt and sampling of random sizes, with a seed."""
    body = {
        "model": "demo",
        "prompt": " ".join(choose.choices(TEXT.split(), k=choose.randrange(1, 24))),
        "max_tokens": choose.randrange(1, 24),
        "temperature": choose.choice([0.0, 0.0, 0.8]),
        "seed": number,
    }
    line = {"custom_id": f"{number}", "method": "POST", "url": "/v1/completions", "body": body}
    return json.dumps(line)


def command(source: Path, output: Path) -> list[str]:
    """Return the command line of a batch."""
    return [sys.executable, "-m", "headrace", "batch", str(source), str(output), *OPTIONS]


def interrupt(
    source: Path, output: Path, kills: int, whole_s: float, choose: random.Random
) -> None:
    """Start a batch so often, and kill it at a random moment."""
    for number in range(kills):
        process = subprocess.Popen(command(source, output))
        # Starting takes some seconds; the moments are spread over the whole of the work.
        wait_s = choose.uniform(1.0, 8.0 + whole_s / kills)
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print(f"kill {number + 1}: after {wait_s:.1f} s, {lines(output)} results", flush=True)


def lines(output: Path) -> int:
    """Return the lines of a file, complete or not."""
    return len(output.read_bytes().splitlines()) if output.exists() else 0


def compare(undisturbed: Path, killed: Path, requests: int) -> int:
    """Compare two outputs; return 0 if each has every request once, and both the same results."""
    whole, disturbed = results(undisturbed), results(killed)
    once = all(
        Counter(key for key, _ in found).most_common(1)[0][1] == 1 for found in (whole, disturbed)
    )
    complete = len(whole) == len(disturbed) == requests
    same = dict(whole) == dict(disturbed)
    print(
        f"{len(disturbed)} results of {requests}; each once: {once}; equal to the undisturbed "
        f"run's: {same}"
    )
    return 0 if once and complete and same else 1


def results(output: Path) -> list[tuple[str, Any]]:
    """Return each result's request and what it says, without when and under which number."""
    found = []
    for text in output.read_text().splitlines():
        line = json.loads(text)
        body = line["response"]["body"]
        found.append((line["custom_id"], [body["choices"], body["usage"], line["error"]]))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
