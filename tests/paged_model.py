"""A paged cache beside a plain model of it: every step's attention is compared.

The plain model keeps each row's tokens in the order of their columns, and attends in float64. Keys
depend on their positions, so a token that is rebuilt for the wrong position shows.
"""

import random

import torch

from headrace.model.shape import ModelShape
from headrace.plan.geometry import Geometry
from headrace.runtime.attention import Scoring
from headrace.runtime.conveyor import Rebuilt
from headrace.runtime.paged import PagedCache
from headrace.runtime.settings import CacheSettings
from headrace.runtime.store import LayerWidths

BLOCK = 16
WIDTHS = LayerWidths(num_kv_heads=2, head_dim=4, d_model=6)
HEADS = 4
WINDOW = 20
LAYERS = 3
WINDOWED = 1


def make_settings(policy, split, pages_per_granule, ring_slots, **changes):
    shape = ModelShape(
        name="tiny",
        num_layers=LAYERS,
        d_model=WIDTHS.d_model,
        num_heads=HEADS,
        num_kv_heads=WIDTHS.num_kv_heads,
        head_dim=WIDTHS.head_dim,
        d_ff=8,
        gated_ff=True,
        vocab_size=10,
        tied_embeddings=False,
        max_context=4096,
        dtype="float32",
        sliding_window=WINDOW,
        windowed_layers=1,
    )
    page_bytes = BLOCK * 2 * WIDTHS.num_kv_heads * WIDTHS.head_dim * 4
    options = {
        "shape": shape,
        "dtype": torch.float32,
        "policy": policy,
        "split": split,
        "geometry": Geometry(BLOCK, page_bytes * pages_per_granule, ring_slots),
        "widths": {layer: WIDTHS for layer in range(LAYERS) if layer != WINDOWED},
        "windows": {WINDOWED: (WIDTHS, WINDOW)},
        "poison": True,
    }
    return CacheSettings(**{**options, **changes})


class PlainRow:
    """A row's tokens in the order of their columns: keys and values ``[layers, T, H, D]``."""

    def __init__(self):
        self.column = torch.zeros(0, dtype=torch.int64)
        self.seen = torch.zeros(0, dtype=torch.bool)
        self.key = torch.zeros(LAYERS, 0, WIDTHS.num_kv_heads, WIDTHS.head_dim)
        self.value = self.key

    def copy(self):
        other = PlainRow()
        other.column, other.seen = self.column.clone(), self.seen.clone()
        other.key, other.value = self.key, self.value
        return other

    def add(self, column, key, value):
        self.column = torch.cat([self.column, column])
        self.seen = torch.cat([self.seen, torch.ones_like(column, dtype=torch.bool)])
        self.key = torch.cat([self.key, key], dim=1)
        self.value = torch.cat([self.value, value], dim=1)

    def keep(self, chosen):
        self.column, self.seen = self.column[chosen], self.seen[chosen]
        self.key, self.value = self.key[:, chosen], self.value[:, chosen]

    def attend(self, layer, query, at, scoring):
        """Return outputs ``[q, heads, D]`` in float64 of queries like them, at columns ``[q]``."""
        group = HEADS // WIDTHS.num_kv_heads
        key = self.key[layer].double().repeat_interleave(group, dim=1)
        value = self.value[layer].double().repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", query.double(), key) * scoring.scale
        if scoring.softcap is not None:
            scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
        behind = at[:, None] - self.column
        visible = self.seen & (behind >= 0)
        if scoring.window is not None:
            visible &= behind < scoring.window
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, value)


class PagedModel:
    """A paged cache and the plain model of it.

    Args:
        backend: of the cache.
        settings: of the cache.
        rows: sequences.
        seed: of all random numbers.
        prompt_len: tokens for which the cache reserves memory.
        new_tokens: tokens that follow, for which it does too.
    """

    def __init__(self, backend, settings, rows, seed, prompt_len=40, new_tokens=20):
        self.random = torch.Generator().manual_seed(seed)
        self.backend = backend
        self.windowed = bool(settings.windows)
        self.weights = {
            layer: [self.normal(WIDTHS.d_model, 8) for _ in range(2)] for layer in range(LAYERS)
        }
        self.turn = self.normal(4)
        self.cache = PagedCache(backend, settings, self.make, rows, prompt_len, new_tokens)
        self.columns = 0
        self.highest = 0
        self.rows = [PlainRow() for _ in range(rows)]
        self.softcap = None

    def normal(self, *shape):
        return torch.randn(shape, generator=self.random)

    def make(self, layer, activations, positions, *, rotated=True):
        """Return keys and values ``[N, H, T, D]`` of X ``[N, T, M]``."""
        key, value = (
            (activations @ weight).unflatten(-1, (2, 4)).transpose(1, 2)
            for weight in self.weights[layer]
        )
        angle = torch.sin(positions[:, None, :, None] * self.turn)
        return Rebuilt(key + angle, value)

    def step(self, seen):
        """Give the cache the tokens of further columns, bool ``[B, q]``, and compare."""
        seen = torch.as_tensor(seen, dtype=torch.bool)
        rows, q_len = seen.shape
        positions = torch.randint(0, 500, (rows, q_len), generator=self.random)
        new = [row.nonzero().flatten().tolist() for row in seen]
        self.cache.reserve(new)
        self.cache.begin_step(new, q_len, self.columns, positions)
        compared, keys, values = [], [], []
        for layer in range(LAYERS):
            activations = self.normal(rows, q_len, WIDTHS.d_model)
            key, value, _ = self.make(layer, activations, positions)
            query = self.normal(rows, HEADS, q_len, WIDTHS.head_dim)
            window = WINDOW if self.windowed and layer == WINDOWED else None
            scoring = Scoring(0.7, self.softcap, window)
            made = self.cache.attend(layer, activations, query, key, value, scoring)
            keys.append(key.transpose(1, 2))
            values.append(value.transpose(1, 2))
            compared.append((layer, query.transpose(1, 2), scoring, made))
        self.cache.end_step()
        for number, row in enumerate(self.rows):
            columns = torch.tensor(new[number], dtype=torch.int64)
            row.add(
                self.columns + columns,
                torch.stack([key[number, columns] for key in keys]),
                torch.stack([value[number, columns] for value in values]),
            )
            for layer, query, scoring, made in compared:
                expected = row.attend(
                    layer, query[number, columns], self.columns + columns, scoring
                )
                result = made[number, columns].double()
                torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
        self.columns += q_len
        self.highest = max(self.highest, self.columns)
        self.check()

    def select(self, sources):
        self.cache.select(sources)
        self.rows = [self.rows[source].copy() for source in sources]
        self.check()

    def crop(self, columns):
        """Forget the newest columns, but no more than windows allow."""
        kept = max(self.columns - columns, self.highest - 64, 0)
        self.cache.crop(kept)
        self.columns = kept
        for row in self.rows:
            row.keep(row.column < kept)
        self.check()

    def show(self, row, visible):
        """Hide the tokens of the columns where ``visible`` is False, for good."""
        plain = self.rows[row]
        plain.seen &= torch.tensor(visible)[plain.column]
        mask = torch.zeros(self.columns, dtype=torch.bool)
        mask[plain.column] = plain.seen
        self.cache.show(row, mask.numpy())
        self.check()

    def check(self):
        self.cache.layout.check_integrity()
        assert self.cache.layout.lengths == [row.column.numel() for row in self.rows]

    def run(self, seed, actions):
        """Do random things."""
        choose = random.Random(seed)
        for _ in range(actions):
            rows = len(self.rows)
            action = choose.choice(["prompt", "prompt", "token", "token", "token", "move"])
            if action == "prompt":
                q_len = choose.choice([1, 2, 5, 15, 16, 17, 33, 50])
                density = choose.choice([1.0, 1.0, 0.7, 0.1])
                self.step([[choose.random() < density for _ in range(q_len)] for _ in range(rows)])
            elif action == "token":
                for _ in range(choose.choice([1, 3, 17])):
                    self.step([[choose.random() < 0.9] for _ in range(rows)])
            else:
                self.move(choose, rows)
        self.backend.synchronize()

    def move(self, choose, rows):
        kind = choose.choice(["select", "crop", "show"])
        if kind == "select":
            self.select([choose.randrange(rows) for _ in range(choose.choice([1, 2, 3]))])
        elif kind == "crop":
            self.crop(choose.choice([1, 2, 16, 30]))
        elif self.columns:
            self.show(choose.randrange(rows), [choose.random() < 0.8 for _ in range(self.columns)])
