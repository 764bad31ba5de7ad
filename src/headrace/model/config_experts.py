"""A mixture's experts from its Hugging Face ``config.json``."""

from __future__ import annotations

from headrace.model.settings import Settings
from headrace.model.shape import Experts

_COUNT = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "moe_k")
_D_FF = ("moe_intermediate_size", "intermediate_size")
_D_SHARED = ("shared_expert_intermediate_size", "shared_intermediate_size")
_SHARED_COUNT = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
_FIRST_DENSE = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")

KNOWN = frozenset(
    {
        "dots1", "ernie4_5_moe", "flex_olmo", "glm4_moe", "granitemoe",
        "granitemoeshared", "hy_v3", "mellum", "minimax_m2", "mixtral", "olmoe", "phimoe",
        "qwen2_moe", "qwen3_moe", "solar_open",
    }
)  # fmt: skip
"""Model types whose weights were found to add up to what is read here."""


def experts_of(settings: Settings, num_layers: int) -> Experts | None:
    """Return the experts that a configuration describes; None where there are none.

    Args:
        settings: of the configuration.
        num_layers: decoder layers.

    Raises:
        UnsupportedModelError: the settings of such a model type are not known here, or one is
            missing or out of its range.
    """
    setting = settings.first(_COUNT)
    if setting is None or settings.get(setting) in (0, 1):
        return None
    count = settings.whole((setting,))
    if settings.type not in KNOWN:
        raise settings.error(
            f"is a mixture of experts ({setting}) of a type that cannot be planned; "
            f"allowed are {', '.join(sorted(KNOWN))}"
        )
    per_token = settings.whole(_PER_TOKEN)
    if per_token > count:
        raise settings.error(f"has {per_token} experts a token, and only {count} experts")
    d_ff = settings.whole(_D_FF)
    return Experts(
        count=count,
        per_token=per_token,
        d_ff=d_ff,
        d_shared=settings.whole(_D_SHARED, d_ff * settings.whole(_SHARED_COUNT, 0, least=0), 0),
        dense_layers=_dense_layers(settings, num_layers),
    )


def _dense_layers(settings: Settings, num_layers: int) -> int:
    """Return how many layers have a feed-forward block without experts."""
    types = settings.get("mlp_layer_types")
    if types:
        return sum(one != "sparse" for one in list(types)[:num_layers])
    first = settings.whole(_FIRST_DENSE, 0, least=0)
    named = settings.get("mlp_only_layers") or ()
    every = settings.whole(("decoder_sparse_step", "moe_layer_interval"), 1)
    return sum(
        layer < first or layer in named or (layer + 1) % every != 0 for layer in range(num_layers)
    )
