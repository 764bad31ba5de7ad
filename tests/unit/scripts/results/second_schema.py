"""A case as the suite writes it: with rivals, exactness and what could not run."""

import copy
from pathlib import Path

from scripts.results.quoted import RESULTS, ROOT
from scripts.results.runs import load

BASE = Path("h100-d/opt-6.7b-24gib.json")


def second_schema(date="2026-12-01T00:00:00+00:00", **changes):
    data = copy.deepcopy(load(ROOT / RESULTS)[BASE])
    data |= {"schema_version": 2, "case": "opt-6.7b-24gib", "passed": True, "adapted": ["smaller"]}
    data["environment"]["date"] = date
    data["workload"] |= {
        "gpu_memory": 24 * 2**30,
        "layers": 32,
        "weights_on_host": 0.0,
        "narrow": 1,
    }
    data["asked"] = {"layers": 32}
    agreement = {
        "compared_with": "transformers",
        "tokens_identical": True,
        "max_logit_error": 0.002,
        "tolerance": 0.01,
        "passed": True,
    }
    for one in data["policies"]:
        one |= {"host_fraction": 0.25, "agreement": agreement}
    rival = {"rival": "transformers", "step_s": 0.05, "peak_gpu_bytes": 60 * 2**30}
    data["rivals"] = [{**rival, "tokens_per_s": 1280.0, "agreement": None}]
    data["unable"] = [{"name": "transformers-static", "reason": "too large"}]
    return {**data, **changes}


def taking(auto_s, date="2026-12-01T00:00:00+00:00", **changes):
    """Return such a case in which a step of ``auto`` takes so many seconds."""
    data = second_schema(date, **changes)
    data["policies"][-1]["step_s"] = auto_s
    return data
