"""Bytes and FLOPs of a decoder, from its shape alone.

The symbols are those of the cost model in ``docs``: p bytes an element, d = ``d_model``,
d_kv = ``num_kv_heads`` × ``head_dim``, h = ``num_heads`` × ``head_dim``. A product of an a×b with a
b×c matrix counts as 2·a·b·c FLOPs. Norms, biases, position embeddings and element-wise work are
left out: together they are under one percent.
"""

from __future__ import annotations

from headrace.model.shape import ModelShape


def kv_bytes_per_token(shape: ModelShape) -> int:
    """Return κ = 2·p·d_kv, the bytes of a cached token's keys and values in one layer."""
    return 2 * shape.dtype_bytes * shape.d_kv


def activation_bytes_per_token(shape: ModelShape) -> int:
    """Return χ = p·d, the bytes of a cached token's X in one layer (of one device's part of it)."""
    return shape.dtype_bytes * shape.d_model // shape.activation_parts


def rebuild_flops_per_token(shape: ModelShape) -> int:
    """Return ρ = 4·d·d_kv, the FLOPs that make a token's keys and values of one layer from X."""
    return 4 * shape.d_model * shape.d_kv


def activation_ratio(shape: ModelShape) -> float:
    """Return r = χ/κ = d / (2·d_kv). From 1 on, bringing X instead of K/V saves no bytes."""
    return shape.d_model / (2 * shape.d_kv)


def rebuild_weight_bytes(shape: ModelShape) -> int:
    """Return p·2·d·d_kv, the bytes of one layer's key and value projections."""
    return shape.dtype_bytes * 2 * shape.d_model * shape.d_kv


def layer_weight_count(shape: ModelShape) -> int:
    """Return the matrix elements of one layer: 2·d·h + 2·d·d_kv + m·d·d_ff.

    The terms are the query and output projections, the key and value projections, and the
    feed-forward block, with m = 3 matrices where it is gated and m = 2 where not. Of a mixture of
    experts it is the mean layer's, with all of its E experts: see ``layer_read_count``.
    """
    return _layer_count(shape, shape.experts.count if shape.experts else 0.0)


def layer_read_count(shape: ModelShape, tokens: float) -> int:
    """Return the matrix elements of one layer that so many new tokens read at once.

    Without experts that is all. With them each token takes k of E; if every expert is as likely as
    any other, n tokens take E·(1 - (1 - k/E)^n) different ones on average. One token takes k.
    """
    experts = shape.experts
    if experts is None:
        return layer_weight_count(shape)
    missed = (1 - experts.per_token / experts.count) ** tokens
    return _layer_count(shape, experts.count * (1 - missed))


def _layer_count(shape: ModelShape, taken: float) -> int:
    """Return the matrix elements of one layer, with so many of its experts."""
    width = shape.num_heads * shape.head_dim
    attention = 2 * shape.d_model * (width + shape.d_kv)
    matrices, experts = (3 if shape.gated_ff else 2) * shape.d_model, shape.experts
    if experts is None:
        return attention + matrices * shape.d_ff
    router = shape.d_model * experts.count
    mixture = matrices * (taken * experts.d_ff + experts.d_shared) + router
    dense = min(experts.dense_layers, shape.num_layers) / shape.num_layers
    return attention + round((1 - dense) * mixture + dense * matrices * shape.d_ff)


def feed_forward_width(shape: ModelShape) -> int:
    """Return the elements of a token's intermediate results in the feed-forward block.

    One for each matrix and unit of its inner width. A mixture has the token, and what comes of it,
    once for each expert that it takes.
    """
    matrices, experts = 3 if shape.gated_ff else 2, shape.experts
    if experts is None:
        return matrices * shape.d_ff
    mixture = experts.per_token * (2 * shape.d_model + matrices * experts.d_ff)
    dense = matrices * shape.d_ff if experts.dense_layers else 0
    return max(mixture + matrices * experts.d_shared, dense)


def layer_weight_bytes(shape: ModelShape) -> int:
    """Return the bytes of one layer's matrices."""
    return shape.dtype_bytes * layer_weight_count(shape)


def layer_read_bytes(shape: ModelShape, tokens: float) -> int:
    """Return the bytes of one layer's matrices that so many new tokens read at once."""
    return shape.dtype_bytes * layer_read_count(shape, tokens)


def head_weight_bytes(shape: ModelShape) -> int:
    """Return the bytes of the head, p·vocab·d_embed, all of which a step reads."""
    return shape.dtype_bytes * shape.vocab_size * shape.embedding_width


def model_weight_count(shape: ModelShape) -> int:
    """Return the matrix elements of all layers, the embedding, and the head if it is its own."""
    vocabulary = shape.vocab_size * shape.embedding_width
    layers = sum(group.layers * layer_weight_count(group.shape) for group in shape.all_groups)
    return layers + vocabulary * (1 if shape.tied_embeddings else 2)


def model_weight_bytes(shape: ModelShape) -> int:
    """Return the bytes of ``model_weight_count``."""
    return shape.dtype_bytes * model_weight_count(shape)


def embedding_bytes(shape: ModelShape) -> int:
    """Return the bytes of the embedding's table, p·vocab·d_embed, of which a step reads rows."""
    return shape.dtype_bytes * shape.vocab_size * shape.embedding_width


def host_embedding_bytes(shape: ModelShape) -> int:
    """Return the bytes of the embedding's table if it stays on the host; else 0."""
    return embedding_bytes(shape) if shape.embedding_on_host else 0


def all_layers_weight_bytes(shape: ModelShape) -> int:
    """Return the bytes of all layers' matrices, without embedding and head."""
    return sum(group.layers * layer_weight_bytes(group.shape) for group in shape.all_groups)


def layer_dense_flops(shape: ModelShape, tokens: int) -> int:
    """Return the FLOPs of a layer's matrices for ``tokens`` new tokens.

    They are 2 for each token and element that it goes through: with experts, those of the few it
    takes.
    """
    return 2 * tokens * layer_read_count(shape, 1)


def head_dense_flops(shape: ModelShape, tokens: int) -> int:
    """Return the FLOPs of the head for ``tokens`` tokens: 2·vocab·d_embed each."""
    return 2 * tokens * shape.vocab_size * shape.embedding_width


def attention_flops(shape: ModelShape, queries: int, keys: int) -> int:
    """Return the FLOPs of one layer's attention of ``queries`` to ``keys``: 4·h for each pair.

    Half are the products of queries and keys, half those of weights and values.
    """
    return 4 * shape.num_heads * shape.head_dim * queries * keys


def prefill_attention_flops(shape: ModelShape, prompt_len: int, context: int = 0) -> int:
    """Return the FLOPs of one full layer's causal attention over a prompt, for one row.

    Token i of the S in the prompt attends to the context C and to i tokens of the prompt:
    4·h·(S·C + S·(S+1)/2).

    Args:
        shape: the model.
        prompt_len: tokens of the prompt, S.
        context: tokens that were cached before, C.
    """
    pairs = prompt_len * context + prompt_len * (prompt_len + 1) // 2
    return attention_flops(shape, 1, pairs)
