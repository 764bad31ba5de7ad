"""How long queries and results are on their way: measured on a GPU, and here without a link."""

import math
from dataclasses import replace

import pytest
import torch

from headrace.hf import mail_probes
from headrace.hf.machine import shape_of
from headrace.hf.mail_probes import FEW_ROWS, MANY_ROWS, MailProbes
from headrace.plan.device_time import mail_bytes

CPU = torch.device("cpu")


@pytest.fixture
def shape(demo):
    return shape_of(demo.model)


@pytest.fixture
def probes(shape, monkeypatch):
    monkeypatch.setattr(mail_probes, "_GATE_BYTES", 1 << 16)
    return MailProbes(shape, CPU, torch.float32)


def test_only_a_gpu_is_asked(shape):
    names = {
        device: set(MailProbes(shape, torch.device(device), torch.float32).by_name())
        for device in ("cpu", "cuda")
    }
    assert names == {"cpu": set(), "cuda": {"mail_bytes_per_s", "mail_call_s"}}


def test_layers_with_the_cores_are_run_and_timed(probes):
    few_s, many_s = probes.layers_s((FEW_ROWS, MANY_ROWS))
    assert 0 <= few_s < math.inf
    assert 0 <= many_s < math.inf


def test_the_rate_is_that_of_further_rows_and_what_is_left_a_call(
    probes, shape, emulated, monkeypatch
):
    call_s, rate = 2e-4, emulated.h2d_bytes_per_s / 10
    seconds = {rows: call_s + rows * mail_bytes(shape) / rate for rows in (FEW_ROWS, MANY_ROWS)}
    monkeypatch.setattr(probes, "layers_s", lambda rows: [seconds[count] for count in rows])
    assert probes.rate(emulated) == pytest.approx(rate)
    found = replace(emulated, mail_bytes_per_s=rate)
    assert probes.call_s(found) == pytest.approx(call_s)


def test_no_rate_is_above_the_links(probes, emulated, monkeypatch):
    monkeypatch.setattr(probes, "layers_s", lambda rows: [1.0] * len(rows))
    slower = min(emulated.h2d_bytes_per_s, emulated.d2h_bytes_per_s)
    assert probes.rate(emulated) == pytest.approx(slower)
