"""The results that there are.

A file is what ``scripts/gpu_check.py`` or ``headrace bench`` wrote. Those of the first schema have
neither rivals nor exactness in the same run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.units import parse_bytes

MEASURED, EMULATED = "measured", "emulated"
_FIRST_SCHEMA = 1

Files = dict[Path, dict[str, Any]]
"""What the files below ``benchmarks/results`` hold, by their place there."""


@dataclass(frozen=True)
class Run:
    """A batch that ran under several policies.

    Attributes:
        name: of the case.
        file: below ``benchmarks/results``.
        place: among the cases of a file that holds several, else None.
        data: of the case.
        environment: hardware, versions, commit, date.
        schema: version of the file.
        command: that ran it; empty where the file does not tell.
    """

    name: str
    file: Path
    place: int | None
    data: dict[str, Any]
    environment: dict[str, Any]
    schema: int
    command: str

    @property
    def origin(self) -> str:
        """Measured, or emulated."""
        first: str = self.data["policies"][0].get("origin", MEASURED)
        return first

    @property
    def machine(self) -> str:
        """What it ran on, or what was emulated."""
        name = self.data.get("machine") if self.origin == EMULATED else self.environment["gpu"]
        return str(name or self.environment["cpu"])

    @property
    def holds(self) -> bool:
        """Whether no policy of ours disagrees with the plain model; rivals may."""
        if self.data.get("passed") is not False:
            return True
        ours = [one["agreement"] for one in self.data.get("policies", ()) if one.get("agreement")]
        return bool(ours) and all(one["passed"] for one in ours)

    @property
    def of_first_schema(self) -> bool:
        """Whether it has neither rivals nor exactness in the same run."""
        return self.schema <= _FIRST_SCHEMA

    @property
    def is_whole(self) -> bool:
        """Whether it ran at the sizes that were asked for, and within the memory."""
        return not self.data.get("adapted")

    @property
    def date(self) -> str:
        """When it ran."""
        return str(self.environment["date"])

    @property
    def path(self) -> str:
        """Where its figures are: the file, and the case in it."""
        return self.file.as_posix() + ("" if self.place is None else f" cases[{self.place}]")

    @property
    def visit(self) -> str:
        """The folder of its file: one visit to one machine."""
        return self.file.parent.as_posix()

    @property
    def page(self) -> str:
        """The page that tells all of it: one of each visit, and of what each machine emulated."""
        return self.visit if self.place is None else f"{self.visit}-{self.machine}"

    @property
    def steps(self) -> dict[str, float]:
        """Seconds of a step of each policy and each rival."""
        return {name_of(one): one["step_s"] for one in self.every}

    @property
    def every(self) -> list[dict[str, Any]]:
        """The policies, then the rivals."""
        return [*self.data["policies"], *self.data.get("rivals", [])]

    @property
    def gpu_memory(self) -> int | None:
        """Budget of device memory."""
        given = self.data["workload"].get("gpu_memory")
        return None if given is None else parse_bytes(given)

    @property
    def model(self) -> str:
        """Whose decoding it is."""
        return str(self.data["workload"].get("model") or self.data["model"])

    @property
    def work(self) -> tuple[object, ...]:
        """What distinguishes it from other work."""
        work = self.data["workload"]
        layers = work.get("layers")
        if layers is not None and layers == self.data.get("asked", {}).get("layers"):
            layers = None
        narrow = work.get("narrow", 1)
        return self.model, layers, narrow, work["rows"], work["prompt_len"], self.gpu_memory


def name_of(one: dict[str, Any]) -> str:
    """Return the name of a policy or a rival, with its batches if there are several."""
    batches = one.get("batches", 1)
    name = str(one.get("policy") or one["rival"])
    return name if batches == 1 else f"{name}, {batches} batches"


def load(folder: Path) -> Files:
    """Return what all files below a folder hold, by their place below it."""
    return {
        path.relative_to(folder): json.loads(path.read_text("utf-8"))
        for path in sorted(folder.glob("*/*.json"))
    }


def runs_of(files: Files) -> Iterator[Run]:
    """Yield the runs of policies that files hold."""
    for file, data in files.items():
        if "text" in data:  # a command's output, kept to be quoted
            continue
        schema = data.get("schema_version", _FIRST_SCHEMA)
        if "workloads" in data:
            command = data.get("command") or f"headrace bench {' '.join(data['workloads'])}"
            for place, case in enumerate(data["cases"]):
                if case["policies"]:
                    where = data["environment"]
                    yield Run(case["case"], file, place, case, where, schema, command)
        elif data.get("policies") and "workload" in data and "environment" in data:
            name = data.get("case", file.stem)
            command = data.get("command", "")
            if not command and data["environment"]["gpu"]:
                command = f"PYTHONPATH=src python3 scripts/gpu_check.py --output DIRECTORY {name}"
            yield Run(name, file, None, data, data["environment"], schema, command)


def is_check(data: dict[str, Any]) -> bool:
    """Return whether a file holds a check of a machine: audits, or rows in company and alone."""
    return "text" not in data and ("audits" in data or "rows" in data)


def checks_of(files: Files) -> dict[tuple[str, str], tuple[Path, Any]]:
    """Return of each check on each GPU the newest: where it is, and what it holds."""
    found: dict[tuple[str, str], tuple[Path, Any]] = {}
    for file, data in files.items():
        if not is_check(data):
            continue
        key = data["environment"]["gpu"] or data["environment"]["cpu"], file.stem
        if key not in found or data["environment"]["date"] > found[key][1]["environment"]["date"]:
            found[key] = file, data
    return found
