"""Checks and measures headrace on a CUDA machine, from the source tree, in one call.

    PYTHONPATH=src python3 scripts/gpu_check.py --output DIRECTORY [PART ...]

Parts: ``exactness`` (the audit, in float32 and bfloat16, of several architectures), ``experts`` (of
mixtures), ``weights``, ``rows``, the workloads of the benchmark's catalogue (``paper-latency``,
``batch-gqa``, ``fits``, ``rivals`` …), and single cases of them (``opt-6.7b-24gib`` …). Without
names the checks and all workloads run, in order; what does not fit the time limit is left out and
said. Each check and each case writes ``NAME.json`` at once, and at the end ``summary.md`` is
written from all JSON files in the directory, so that several short visits add up.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from headrace.bench.catalogue import CASES, WORKLOADS
from headrace.bench.figures import SCHEMA_VERSION, case_json
from headrace.bench.suite import SuiteOptions, run_case
from headrace.cli.bench_text import case_text
from headrace.cli.measured import write_page
from headrace.engine.audit import audit, audit_all, reference
from headrace.engine.decoding import pad_left
from headrace.engine.environment import environment
from headrace.engine.llm import LLM
from headrace.engine.loading import load_model, quiet_libraries
from headrace.engine.request import SamplingParams
from headrace.hardware.spare_memory import release_spare_memory
from headrace.hf.embedding import HostEmbedding, has_own_table, host_embedding
from headrace.hf.weights import PlacedWeights
from headrace.runtime.cuda_lanes import CudaBackend
from headrace.units import format_bytes

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


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 8},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 64},
    "opt": {"ffn_dim": 1024, "word_embed_proj_dim": 512},
    "gemma2": {"num_key_value_heads": 4, "head_dim": 64, "sliding_window": 64},
    "phi3": {"num_key_value_heads": 8, "pad_token_id": 0},
    "gpt_neox": {},
}
_OF_EXPERTS = {"num_experts_per_tok": 2, "num_key_value_heads": 4}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {**_OF_EXPERTS, "num_local_experts": 8},
    "qwen3_moe": {
        **_OF_EXPERTS,
        "num_experts": 8,
        "moe_intermediate_size": 512,
        "head_dim": 64,
        "mlp_only_layers": [0],
    },
    "glm4_moe": {
        **_OF_EXPERTS,
        "n_routed_experts": 8,
        "moe_intermediate_size": 512,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "head_dim": 64,
    },
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
        **{**ARCHITECTURES, **MIXTURES}[kind],
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
    dtypes = (torch.float32, torch.bfloat16)
    return _audits([(kind, dtype) for dtype in dtypes for kind in ("demo", *ARCHITECTURES)], say)


def check_experts(directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Audit small mixtures of experts, in float32: in bfloat16 near ties choose other experts."""
    del directory
    return _audits([(kind, torch.float32) for kind in MIXTURES], say)


def _audits(
    models: Sequence[tuple[str, torch.dtype]], say: Callable[[str], None]
) -> dict[str, Any]:
    """Audit models in a precision each."""
    results = []
    for kind, dtype in models:
        name = str(dtype).removeprefix("torch.")
        model = load_model("demo", dtype=name).model if kind == "demo" else tiny_model(kind, dtype)
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


def measure(name: str) -> Callable[[Path, Callable[[str], None]], dict[str, Any]]:
    """Return a part that measures a case of the catalogue."""

    def part(directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
        result = run_case(CASES[name], SuiteOptions(device="cuda"), say)
        say(case_text(result))
        write_page(
            directory / f"{name}.timeline.html",
            list(result.policies),
            result.profile,
            f"headrace: {name}",
        )
        return case_json(result)

    return part


def check_weights(directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Audit small models whose weights are on the host: embedding, some layers', all of them."""
    del directory
    results = []
    for kind in ("llama", "opt", "gemma2", "gpt_neox"):
        whole = tiny_model(kind, torch.float32)
        ids, mask = ragged_batch(vocab_size_of(whole))
        expected = reference(whole, ids, mask, EXACT_STEPS)
        for share in (0.0, 0.5, 1.0):
            model, backend = tiny_model(kind, torch.float32), CudaBackend(torch.device("cuda", 0))
            own = has_own_table(model)
            if own:
                HostEmbedding(model, backend)
            placed = PlacedWeights(model, backend, share, poison=True) if share else None
            found = [
                audit(model, ids, mask, expected, policy=policy, recompute_fraction=fraction)
                for policy, fraction in WAYS
            ]
            for one in (placed, host_embedding(model)):
                if one is not None:
                    one.release()
            backend.close()
            passed = all(one.passed for one in found)
            worst = max(one.max_logit_error for one in found)
            where = f"{share:.0%} of weights streamed{', embedding on host' if own else ''}"
            say(f"  {kind:9s} {where}: {passed=}, worst {worst:.1e}")
            results.append(
                {
                    "model": f"{kind}, {where}",
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
    "experts": check_experts,
    "weights": check_weights,
    "rows": check_rows,
    **{name: measure(name) for name in CASES},
}
CHECKS = ("exactness", "experts", "weights", "rows")


def expanded(names: Sequence[str]) -> list[str]:
    """Return the parts that names stand for: a workload is all of its cases."""
    found: dict[str, None] = {}
    for name in names:
        parts = [case.name for case in WORKLOADS[name].cases] if name in WORKLOADS else [name]
        found |= dict.fromkeys(parts)
    return list(found)


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
    """Return a case's tables; files of the first schema have no rivals."""
    work = data["workload"]
    budget = work.get("gpu_memory")
    budget = format_bytes(budget) if isinstance(budget, int) else budget
    rate = data["profile"]["h2d_bytes_per_s"]
    lines = [
        f"{work['model']}, {work['layers'] or 'all'} layers, {work['rows']} rows × "
        f"{work['prompt_len']} tokens{f', within {budget}' if budget else ''}; link "
        f"{rate / 1e9:.1f} GB/s",
        "",
        *(f"- {words}" for words in data.get("adapted", [])),
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
    for one in data.get("rivals", []):
        speed = one["speedup_over_stream"]
        lines.append(
            f"| {one['rival']} | | | {one['step_s'] * 1e3:.1f} ms | | | | | | "
            f"{'' if speed is None else f'{speed:.2f} ×'} |"
        )
    unable = [f"- {one['name']} cannot run: {one['reason']}" for one in data.get("unable", [])]
    return [*lines, "", *unable, *_agreement_lines(data)]


def _agreement_lines(data: dict[str, Any]) -> list[str]:
    runs = [*data["policies"], *data.get("rivals", [])]
    found = [(one.get("policy") or one["rival"], one.get("agreement")) for one in runs]
    return [
        f"- {name}: {'agrees' if one['passed'] else 'DIFFERS'}, tokens "
        f"{'identical to' if one['tokens_identical'] else 'not all those of'} "
        f"{one['compared_with']}, logit error {one['max_logit_error']} of {one['tolerance']:.1e}"
        for name, one in found
        if one
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join([*CHECKS, *WORKLOADS])}; or a case"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIRECTORY")
    parser.add_argument("--commit", help="of this tree, where git cannot tell")
    parser.add_argument("--limit-s", type=float, default=500.0, help="start no part after this")
    args = parser.parse_args(argv)
    allowed = [*PARTS, *WORKLOADS]
    unknown = [part for part in args.parts if part not in allowed]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; allowed are {', '.join(allowed)}")
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    quiet_libraries()
    args.output.mkdir(parents=True, exist_ok=True)
    start_s, failed = time.perf_counter(), []

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - start_s:6.1f}] {line}", flush=True)

    for name in expanded(args.parts) or PARTS:
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
            release_spare_memory()
        where = environment()
        where["commit"] = args.commit or where["commit"]
        data = {"schema_version": SCHEMA_VERSION, "environment": where, **data}
        (args.output / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
        if data.get("passed") is False:
            failed.append(name)
    (args.output / "summary.md").write_text(summary(args.output), "utf-8")
    say(f"failed: {', '.join(failed)}" if failed else "all parts passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
