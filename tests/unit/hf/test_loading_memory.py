"""A saved model's weights go to their place layer by layer: there is no second whole copy of them.

Weights of the dtype in which they are saved are mapped from their file, whose pages the system
drops where memory is short. What counts is memory of the process's own.
"""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

LAYERS = 10
SPARE_BYTES = 24 << 20
"""For what Python and the libraries take meanwhile."""

SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
from headrace.hf.weights import PlacedWeights
from headrace.runtime import weights
from headrace.runtime.cpu_lanes import CpuBackend

def own_bytes():
    with open("/proc/self/status") as status:
        fields = dict(line.split(":") for line in status)
    return int(fields["RssAnon"].split()[0]) << 10

class Watched(weights._LayerWeights):
    def __init__(self, backend, units):
        super().__init__(backend, units)
        placing.append(own_bytes() - start)

torch.set_num_threads(1)
directory, dtype, share = sys.argv[1:]
torch.empty(8, 8) @ torch.empty(8, 8)
weights._LayerWeights, placing, start = Watched, [], own_bytes()
model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
loaded = own_bytes() - start
placed = PlacedWeights(model, CpuBackend(), float(share))
placing.append(own_bytes() - start)
print(json.dumps({"loaded": loaded, "placing": placing}))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Directories of the same model in one file and in several, and its layers' bytes."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    directories = {}
    for name, shard in (("whole", "1GB"), ("sharded", "30MB")):
        directories[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(directories[name], max_shard_size=shard)
    return directories, sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize(
    ("name", "dtype"), [("whole", "float32"), ("sharded", "float32"), ("whole", "bfloat16")]
)
def test_there_is_one_copy_of_the_weights(saved, name, dtype, share):
    directories, float32_bytes = saved
    command = [sys.executable, "-c", SCRIPT, str(directories[name]), dtype, str(share)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(answer.stdout)
    whole = float32_bytes if dtype == "float32" else float32_bytes // 2
    layer = whole // LAYERS
    # Two slots of what is streamed; and the layer that is on its way.
    assert max(found["placing"]) <= whole + 3 * layer + SPARE_BYTES
    if dtype == "float32":
        assert found["loaded"] <= SPARE_BYTES
        assert max(found["placing"]) <= share * whole + 3 * layer + SPARE_BYTES
