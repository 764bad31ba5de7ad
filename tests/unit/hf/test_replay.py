import pytest
import torch
from tests.op_graph import OpGraph
from tests.support import shared_model

from headrace.hf.machine import shape_of
from headrace.hf.replay import KEPT_ROWS, NotReplayableError, RecordedForward, Replays, replay_bytes

CPU = torch.device("cpu")


def test_what_python_decides_anew_is_noticed():
    scales = iter(range(1, 100))

    def run(ids, positions, attend):
        return ids[:, :, None] * 1.0 * next(scales)

    with pytest.raises(NotReplayableError, match="its logits differ by"):
        RecordedForward(run, 2, CPU, OpGraph).check(run)


@pytest.mark.parametrize(
    ("device", "switch", "reason"),
    [
        ("cpu", "on", "the model is not on a GPU"),
        ("cuda", "off", "HEADRACE_GRAPHS is off"),
        ("cuda", "on", None),
    ],
)
def test_why_nothing_is_recorded(device, switch, reason, monkeypatch):
    monkeypatch.setenv("HEADRACE_GRAPHS", switch)
    assert Replays(None, torch.device(device), 1).reason == reason


def test_memory_of_recorded_forwards_covers_what_they_keep():
    shape, kept = shape_of(shared_model("llama-gqa")), []

    def run(ids, positions, attend):
        hidden = torch.zeros((len(ids), 1, shape.d_model))
        for layer in range(shape.num_layers):
            parts = [
                torch.zeros((len(ids), heads, 1, shape.head_dim))
                for heads in (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
            ]
            kept.extend(parts)
            attend(layer, *parts, None)
        kept.append(torch.zeros((len(ids), 1, shape.vocab_size)))
        return kept[-1] + hidden.sum()

    RecordedForward(run, 5, CPU, OpGraph)
    kept_bytes = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    assert 0 < KEPT_ROWS * kept_bytes <= replay_bytes(shape, 5) <= 2 * KEPT_ROWS * kept_bytes
    assert replay_bytes(shape, 10) == 2 * replay_bytes(shape, 5)
