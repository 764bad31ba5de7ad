"""Checks and measures headrace on a CUDA machine, from the source tree, in one call.

    PYTHONPATH=src python3 scripts/gpu_check.py --output DIRECTORY [PART ...]

Parts: ``exactness`` (the audit, in float32 and bfloat16, of several architectures), and one for
each workload of ``WORKLOADS``. Without names all run, in order; what does not fit the time limit is
left out and said. Each part writes ``PART.json`` at once, and at the end ``summary.md`` is written
from all JSON files in the directory, so that several short visits add up.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from headrace.cli.measured import comparison_json, comparison_table, write_page
from headrace.engine.audit import audit, audit_all, reference
from headrace.engine.decoding import pad_left
from headrace.engine.environment import environment
from headrace.engine.llm import LLM
from headrace.engine.loading import dummy_model, load_model, quiet_libraries
from headrace.engine.measure import MeasureOptions, measure_policies
from headrace.engine.request import SamplingParams
from headrace.hardware.profile import HardwareProfile
from headrace.hardware.profile_file import profile_to_json
from headrace.hf.attached_cache import open_backend
from headrace.hf.machine import machine_profile
from headrace.hf.placing import choose_placing
from headrace.hf.planning import CacheOptions
from headrace.hf.weights import PlacedWeights
from headrace.plan.workload import Workload as PlannedWork
from headrace.runtime.cuda_lanes import CudaBackend

WAYS: tuple[tuple[str, float | None], ...] = (
    ("resident", None),
    ("stream", None),
    ("kvpr", 0.37),
    ("recompute", 0.37),
    ("recompute", 1.0),
    ("host", None),
    ("host", 0.37),
)
EXACT_STEPS = 40


@dataclass(frozen=True)
class Workload:
    """A batch that is measured.

    Attributes:
        model: a published shape, with random weights.
        layers: decoder layers, or None for all.
        rows: sequences.
        prompt_len: tokens of each prompt.
        policies: what is compared.
        gpu_memory: budget of device memory, which stands for a smaller card; None: all of it.
    """

    model: str
    layers: int | None
    rows: int
    prompt_len: int
    policies: tuple[str, ...] = ("stream", "kvpr", "recompute")
    gpu_memory: str | None = None


WORKLOADS = {
    "opt-6.7b": Workload("opt-6.7b", None, 64, 1024),
    "opt-6.7b-24gib": Workload(
        "opt-6.7b", None, 64, 1024, ("stream", "kvpr", "recompute", "host", "auto"), "24GiB"
    ),
    "llama-3-8b-21gib": Workload("llama-3-8b", None, 16, 2048, ("stream", "host", "auto"), "21GiB"),
    "opt-6.7b-paper": Workload("opt-6.7b", None, 64, 128),
    "opt-13b-16gib": Workload("opt-13b", None, 64, 1024, ("stream", "auto"), "16GiB"),
    "opt-30b-slice": Workload("opt-30b", 12, 64, 1024),
    "llama-3-8b": Workload("llama-3-8b", None, 32, 2048, ("stream", "host", "resident")),
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 8},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 64},
    "opt": {"ffn_dim": 1024, "word_embed_proj_dim": 512},
    "gemma2": {"num_key_value_heads": 4, "head_dim": 64, "sliding_window": 64},
    "phi3": {"num_key_value_heads": 8, "pad_token_id": 0},
    "gpt_neox": {},
}


def tiny_model(kind: str, dtype: torch.dtype) -> torch.nn.Module:
    """Return a small model of an architecture, with weights large enough that errors show."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        num_hidden_layers=4,
        hidden_size=512,
        intermediate_size=1024,
        num_attention_heads=8,
        vocab_size=1000,
        max_position_embeddings=1024,
        initializer_range=0.08,
        **ARCHITECTURES[kind],
    )
    if kind == "gemma2":
        config._attn_implementation = "eager"
    return AutoModelForCausalLM.from_config(config, dtype=dtype).cuda().eval()


def vocab_size_of(model: torch.nn.Module) -> int:
    """Return how many tokens a model knows."""
    config: Any = model.config
    return int(config.vocab_size)


def ragged_batch(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and mask of rows of different lengths, padded on the left."""
    generator = torch.Generator().manual_seed(1)
    rows = [
        torch.randint(3, vocab_size, (length,), generator=generator).tolist()
        for length in (401, 288, 530, 77)
    ]
    return pad_left(rows, 0)


def check_exactness(directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Audit the demo model and small models of several architectures in both precisions."""
    del directory
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for kind in ("demo", *ARCHITECTURES):
            model = (
                load_model("demo", dtype=name).model if kind == "demo" else tiny_model(kind, dtype)
            )
            ids, mask = ragged_batch(vocab_size_of(model))
            expected, found = audit_all(model, ids, mask, EXACT_STEPS, WAYS)
            passed = all(one.passed for one in found)
            worst = max(one.max_logit_error for one in found)
            say(
                f"  {name:8s} {kind:9s} {'passed' if passed else 'FAILED'} worst logit error "
                f"{worst:.1e} of {expected.tolerance:.1e} allowed, tokens identical: "
                f"{[one.tokens_identical for one in found]}"
            )
            results.append(
                {
                    "model": kind,
                    "dtype": name,
                    "passed": passed,
                    "tolerance": expected.tolerance,
                    "tolerance_from": expected.why,
                    "results": [asdict(one) for one in found],
                }
            )
    return {"passed": all(one["passed"] for one in results), "audits": results}


def place(
    model: torch.nn.Module, workload: Workload, profile: HardwareProfile, say: Callable[[str], None]
) -> None:
    """Bring to the host what of a model's weights a budget has no room for."""
    options = CacheOptions.checked(
        "auto", workload.gpu_memory, None, None, None, profile, poison=False
    )
    work = PlannedWork(workload.rows, workload.prompt_len, 16)
    device = torch.device("cuda", 0)
    placing = choose_placing(model.config, torch.bfloat16, device, options, work)
    if placing.share > 0:
        placed = PlacedWeights(model, open_backend(device, profile), placing.share)
        torch.cuda.empty_cache()
        say(
            f"  {placed.share:.1%} of the layers' weights ({placing.share:.1%} planned) are on the "
            f"host: {placed.streamed.host_bytes / 1e9:.1f} GB"
        )


def measure(name: str) -> Callable[[Path, Callable[[str], None]], dict[str, Any]]:
    """Return a part that measures a workload."""

    def part(directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
        workload = WORKLOADS[name]
        loaded = dummy_model(workload.model, layers=workload.layers, device="cuda")
        profile = machine_profile(loaded.model, progress=lambda line: say(f"  {line}"))
        place(loaded.model, workload, profile, say)
        vocab = vocab_size_of(loaded.model)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, vocab, (workload.rows, workload.prompt_len), generator=generator)
        measured = measure_policies(
            loaded.model,
            ids,
            torch.ones_like(ids),
            profile,
            workload.policies,
            MeasureOptions(
                rounds=2, steps_per_round=4, one_at_a_time=True, gpu_memory=workload.gpu_memory
            ),
            label=loaded.name,
            progress=lambda line: say(f"  {line}"),
        )
        say(comparison_table(measured))
        rate = profile.h2d_bytes_per_s
        say(f"link: {[f'{one.link_bytes_per_s / rate:.1%}' for one in measured]} of the profile's")
        say(f"peak of device memory: {[one.peak_gpu_bytes for one in measured]} bytes")
        say(f"reserved further while decoding: {[one.grown_bytes for one in measured]} bytes")
        write_page(directory / f"{name}.timeline.html", measured, profile, f"headrace: {name}")
        return {
            "workload": asdict(workload),
            "profile": profile_to_json(profile),
            **comparison_json(measured),
        }

    return part


def check_weights(directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Audit small models some or all of whose weights are streamed, in float32."""
    del directory
    results = []
    for kind in ("llama", "opt", "gemma2", "gpt_neox"):
        whole = tiny_model(kind, torch.float32)
        ids, mask = ragged_batch(vocab_size_of(whole))
        expected = reference(whole, ids, mask, EXACT_STEPS)
        for share in (0.5, 1.0):
            model = tiny_model(kind, torch.float32)
            placed = PlacedWeights(model, CudaBackend(torch.device("cuda", 0)), share, poison=True)
            found = [
                audit(model, ids, mask, expected, policy=policy, recompute_fraction=fraction)
                for policy, fraction in WAYS
            ]
            placed.release()
            placed.backend.close()
            passed = all(one.passed for one in found)
            worst = max(one.max_logit_error for one in found)
            say(f"  {kind:9s} {placed.share:.0%} streamed: {passed=}, worst {worst:.1e}")
            results.append(
                {
                    "model": f"{kind}, {placed.share:.0%} of weights streamed",
                    "dtype": "float32",
                    "passed": passed,
                    "tolerance": expected.tolerance,
                    "tolerance_from": expected.why,
                    "results": [asdict(one) for one in found],
                }
            )
    return {"passed": all(one["passed"] for one in results), "audits": results}


def check_rows(directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Compare requests that come and go together with the same ones alone, in float32."""
    del directory
    loaded = load_model("demo", dtype="float32")
    generator = random.Random(0)
    text = Path(__file__).read_text("utf-8")
    prompts = [text[start : start + generator.randrange(20, 900)] for start in range(0, 9000, 400)]
    params = [
        SamplingParams(max_tokens=generator.randrange(1, 60), temperature=0.0, n=1 + place % 3 // 2)
        for place in range(len(prompts))
    ]
    ways = (("resident", None), ("stream", None), ("recompute", 0.5), ("host", None))
    plain = LLM(loaded, policy="resident", max_rows=2)
    alone = [
        plain.generate([prompt], one)[0].token_ids
        for prompt, one in zip(prompts, params, strict=True)
    ]
    same = {}
    for policy, fraction in ways:
        llm = LLM(loaded, policy=policy, recompute_fraction=fraction, max_rows=7)
        made = llm.generate(prompts, params)
        same[policy] = all(
            sample.token_ids == tokens
            for output, tokens in zip(made, alone, strict=True)
            for sample in output.outputs
        )
        say(
            f"  {policy}: tokens of {len(prompts)} requests are those of each alone: {same[policy]}"
        )
    return {"passed": all(same.values()), "rows": same}


PARTS: dict[str, Callable[[Path, Callable[[str], None]], dict[str, Any]]] = {
    "exactness": check_exactness,
    "weights": check_weights,
    "rows": check_rows,
    **{name: measure(name) for name in WORKLOADS},
}


def summary(directory: Path) -> str:
    """Return a table of everything that has been measured into a directory."""
    lines = ["# Measured on a CUDA machine", ""]
    for file in sorted(directory.glob("*.json")):
        data = json.loads(file.read_text("utf-8"))
        where = data["environment"]
        lines += [
            f"## {file.stem}",
            "",
            f"{where['gpu']}, {where['cpu']} ({where['cpu_cores']} cores), CUDA {where['cuda']}, "
            f"torch {where['torch']}, transformers {where['transformers']}, commit "
            f"{where['commit']}, {where['date']}",
            "",
            *_lines(data),
            "",
        ]
    return "\n".join(lines)


def _lines(data: dict[str, Any]) -> list[str]:
    if "rows" in data:
        return [
            f"- {policy}: {'identical' if same else 'DIFFERENT'} alone and in company"
            for policy, same in data["rows"].items()
        ]
    return _audit_lines(data) if "audits" in data else _policy_lines(data)


def _audit_lines(data: dict[str, Any]) -> list[str]:
    lines = ["| model | dtype | verdict | worst logit error | allowed |", "|---|---|---|---|---|"]
    for one in data["audits"]:
        worst = max(result["max_logit_error"] for result in one["results"])
        verdict = "passed" if one["passed"] else "FAILED"
        lines.append(
            f"| {one['model']} | {one['dtype']} | {verdict} | {worst:.1e} | "
            f"{one['tolerance']:.1e} |"
        )
    return lines


def _policy_lines(data: dict[str, Any]) -> list[str]:
    work = data["workload"]
    budget = f", within {work['gpu_memory']}" if work.get("gpu_memory") else ""
    rate = data["profile"]["h2d_bytes_per_s"]
    lines = [
        f"{work['model']}, {work['layers'] or 'all'} layers, {work['rows']} rows × "
        f"{work['prompt_len']} tokens{budget}; link {rate / 1e9:.1f} GB/s",
        "",
        "| policy | resident | rebuilt | step | predicted | bound | link rate | link busy | "
        "GPU busy | over stream |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in data["policies"]:
        speed = one["speedup_over_stream"]
        lines.append(
            f"| {one['policy']} | {one.get('resident_fraction', 0.0):.0%} | "
            f"{one['recompute_fraction']:.0%} | {one['step_s'] * 1e3:.1f} ms | "
            f"{one['predicted_step_s'] * 1e3:.1f} ms | {one['bound_s'] * 1e3:.1f} ms | "
            f"{one['link_bytes_per_s'] / rate:.1%} | {one['link_busy']:.1%} | "
            f"{one['device_busy']:.1%} | {'' if speed is None else f'{speed:.2f} ×'} |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, required=True, metavar="DIRECTORY")
    parser.add_argument("--commit", help="of this tree, where git cannot tell")
    parser.add_argument("--limit-s", type=float, default=500.0, help="start no part after this")
    args = parser.parse_args(argv)
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; allowed are {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    quiet_libraries()
    args.output.mkdir(parents=True, exist_ok=True)
    start_s, failed = time.perf_counter(), []

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - start_s:6.1f}] {line}", flush=True)

    for name in args.parts or PARTS:
        if time.perf_counter() - start_s > args.limit_s:
            say(f"{name}: left out, the time is up")
            continue
        say(name)
        try:
            data = PARTS[name](args.output, say)
        except Exception:  # a part that fails must not take the others along
            traceback.print_exc()
            failed.append(name)
            continue
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        where = environment()
        where["commit"] = args.commit or where["commit"]
        data = {"schema_version": 1, "environment": where, **data}
        (args.output / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
        if data.get("passed") is False:
            failed.append(name)
    (args.output / "summary.md").write_text(summary(args.output), "utf-8")
    say(f"failed: {', '.join(failed)}" if failed else "all parts passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
