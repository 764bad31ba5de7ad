"""Random machines, models, workloads and budgets for the tests of the planner."""

from dataclasses import dataclass, field, replace

from hypothesis import strategies as st
from tests.property.strategies import log_uniform

from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import kv_bytes_per_token, model_weight_bytes
from headrace.model.shape import ModelShape
from headrace.plan.decision import Decider
from headrace.plan.options import PlanOptions
from headrace.plan.workload import Workload
from headrace.timeline import Origin

DTYPES = ("float32", "bfloat16", "float16")
LINK = ("h2d_bytes_per_s", "h2d_while_host_bytes_per_s", "mail_bytes_per_s")
HOST = ("host_attend_bytes_per_s", "host_while_h2d_bytes_per_s")
DEVICE_MEMORY = ("device_bytes_per_s", "attend_bytes_per_s", "dense_bytes_per_s")
ARITHMETIC = ("gemm_flops_per_s", "rebuild_flops_per_s")


@dataclass(frozen=True)
class Problem:
    """What a plan is made for."""

    shape: ModelShape
    workload: Workload
    profile: HardwareProfile
    options: PlanOptions = field(default_factory=PlanOptions)

    @property
    def decider(self):
        return Decider(self.shape, self.workload, self.profile, self.options)


@st.composite
def machines(draw, latencies=(0.0,)):
    """Machines whose rates are within an order of magnitude or two of real ones.

    Some have their link and cores measured together; then host memory may slow down both.
    """
    link = draw(log_uniform(5e9, 1.2e11))
    device = draw(log_uniform(2e11, 5e12))
    gemm = draw(log_uniform(1e13, 1e15))
    memory = draw(log_uniform(3e10, 6e11))
    together = {}
    if draw(st.integers(0, 3)) == 0:
        together = {
            "h2d_while_host_bytes_per_s": link * draw(st.floats(0.5, 1.0)),
            "host_while_h2d_bytes_per_s": memory * draw(st.floats(0.3, 0.9)),
        }
    measured = {}
    if draw(st.booleans()):
        measured = {
            "attend_bytes_per_s": device * draw(st.floats(0.3, 1.0)),
            "dense_bytes_per_s": device * draw(st.floats(0.3, 1.0)),
            "rebuild_flops_per_s": gemm * draw(st.floats(0.3, 1.0)),
        }
    if draw(st.booleans()):
        measured["mail_bytes_per_s"] = link * draw(st.floats(0.05, 0.5))
    latency = draw(st.sampled_from(latencies))
    return HardwareProfile(
        name="random",
        origin=Origin.PREDICTED,
        device="cuda",
        h2d_bytes_per_s=link,
        d2h_bytes_per_s=link * draw(st.sampled_from([1.0, 0.5, 0.1])),
        gemm_flops_per_s=dict.fromkeys(DTYPES, gemm),
        device_bytes_per_s=device,
        host_bytes_per_s=memory,
        device_memory_bytes=2**45,
        host_memory_bytes=2**48,
        copy_latency_s=latency,
        launch_latency_s=latency / 2,
        host_attend_bytes_per_s=memory * draw(st.floats(0.3, 1.0)),
        **together,
        **measured,
    )


@st.composite
def models(draw, layers=(1, 2, 3, 5, 12)):
    """MHA, GQA and MQA; some layers windowed, or of other widths; any dtype; tied or not."""
    num_layers = draw(st.sampled_from(layers))
    heads, kv_heads = draw(st.sampled_from([(32, 32), (8, 8), (32, 8), (16, 2), (40, 1)]))
    head_dim = draw(st.sampled_from([64, 128, 256]))
    windowed = draw(st.sampled_from([0, 0, num_layers // 2, 5 * num_layers // 6]))
    widths = ()
    if draw(st.integers(0, 3)) == 0:
        kinds = st.sampled_from([(kv_heads, head_dim), (max(1, kv_heads // 2), head_dim)])
        widths = tuple(draw(kinds) for _ in range(num_layers))
    return ModelShape(
        name="random",
        num_layers=num_layers,
        d_model=draw(st.sampled_from([heads * head_dim, 1024, 4096])),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        d_ff=draw(st.sampled_from([2048, 16384])),
        gated_ff=draw(st.booleans()),
        vocab_size=draw(st.sampled_from([1000, 128_000])),
        tied_embeddings=draw(st.booleans()),
        max_context=2**20,
        sliding_window=draw(st.sampled_from([512, 4096])) if windowed else None,
        windowed_layers=windowed,
        dtype=draw(st.sampled_from(DTYPES)),
        kv_widths=widths,
    )


@st.composite
def workloads(draw, most_rows=128, contexts=(16, 20_000)):
    rows = round(draw(log_uniform(1, most_rows)))
    return Workload(
        rows,
        round(draw(log_uniform(*contexts))),
        draw(st.sampled_from([1, 2, 32, 500])),
        min(rows, draw(st.sampled_from([1, 1, 2, 3]))),
    )


@st.composite
def problems(draw, shapes=None, work=None, profiles=None, tight=(0.05, 2.0)):
    """Problems whose budgets hold some of the weights and of the cache, or all of them.

    Prompts go through the model one by one, so that what is left does not depend on the budget.
    """
    shape = draw(models() if shapes is None else shapes)
    workload = draw(workloads() if work is None else work)
    profile = draw(machines() if profiles is None else profiles)
    needed = model_weight_bytes(shape) + cache_bytes(shape, workload)
    options = PlanOptions(
        gpu_memory_bytes=draw(st.one_of(st.none(), log_uniform(*tight))),
        host_memory_bytes=draw(st.one_of(st.none(), log_uniform(*tight))),
        stream_weights=draw(st.booleans()),
        prefill_tokens=workload.prompt_len,
    )
    budgets = {
        name: None if share is None else share * needed
        for name, share in (
            ("gpu_memory_bytes", options.gpu_memory_bytes),
            ("host_memory_bytes", options.host_memory_bytes),
        )
    }
    return Problem(shape, workload, profile, replace(options, **budgets))


def cache_bytes(shape, workload):
    """Bytes of all K/V at the end."""
    token = sum(kv_bytes_per_token(layer) for layer in shape.layers)
    return workload.rows * workload.max_context * token


def scaled(profile, names, factor):
    """A machine with some of its rates multiplied."""
    changes = {}
    for name in names:
        value = getattr(profile, name)
        if isinstance(value, float | int):
            changes[name] = value * factor
        elif value is not None:
            changes[name] = {key: rate * factor for key, rate in value.items()}
    return replace(profile, **changes)


@st.composite
def faster(draw, profile):
    """The same machine with more of something, and what that is."""
    factor = draw(st.floats(1.0, 20.0))
    what = draw(
        st.sampled_from(
            [
                ("h2d_bytes_per_s",),
                ("d2h_bytes_per_s",),
                ("h2d_while_host_bytes_per_s",),
                ("host_while_h2d_bytes_per_s",),
                ("host_bytes_per_s",),
                ("host_attend_bytes_per_s",),
                DEVICE_MEMORY,
                ARITHMETIC,
            ]
        )
    )
    return scaled(profile, what, factor)
