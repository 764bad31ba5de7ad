"""The layout, whatever is done to a batch: no token is lost, doubled or moved twice."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.plan.policies import Split
from headrace.runtime.layout import Layout
from headrace.runtime.pages import PageKind
from headrace.runtime.placer import Placer

BLOCK = 16


@st.composite
def splits(draw):
    shares = [draw(st.integers(0, 4)) for _ in range(3)]
    total = sum(shares) or 1
    resident, recompute = shares[0] / total, shares[2] / total
    return Split(resident, max(0.0, 1 - resident - recompute), recompute)


def grow(layout, pages):
    for kind, needed in pages.items():
        pool = layout.pools[kind]
        pool.grow(pool.capacity + max(0, needed - pool.free))


class Contents:
    """What is in each place, kept by following the moves; tokens are (sequence, column)."""

    def __init__(self, layout):
        self.layout = layout
        self.placer = Placer(layout)
        self.names = [[] for _ in layout.rows]
        self.tails = [[] for _ in layout.rows]
        self.pages = {}
        self.columns = 0
        self.sequences = 0

    def append(self, new, q_len):
        layout = self.layout
        grow(layout, self.placer.pages_needed(new))
        capacity = {kind: pool.capacity for kind, pool in layout.pools.items()}
        moves = self.placer.append(new, self.columns)
        assert capacity == {kind: pool.capacity for kind, pool in layout.pools.items()}
        self.sequences += 1
        given = [
            [(self.sequences, row, index) for index in range(q_len)] for row in range(len(new))
        ]
        for row, indices in enumerate(new):
            assert moves.first_token[row] == len(self.names[row])
            assert moves.tail_before[row] == len(self.tails[row])
            self.names[row] += [given[row][index] for index in indices]
            if moves.generated:
                self.tails[row] += [given[row][index] for index in indices]
        before = [list(tail) for tail in self.tails]
        placed = [[] for _ in new]
        for fill in moves.fills:
            content = [before[fill.row][slot] for slot in fill.tail_slots]
            content += [given[fill.row][index] for index in fill.new]
            assert 0 < fill.count == len(content) <= BLOCK - fill.offset
            page = self.pages.setdefault((fill.page.kind, fill.page.number), [])
            if fill.offset == 0:
                page.clear()
            assert len(page) >= fill.offset
            page[fill.offset :] = content
            placed[fill.row] += content
        for tail in moves.tails:
            content = [before[tail.row][slot] for slot in tail.tail_slots]
            content += [given[tail.row][index] for index in tail.new]
            self.tails[tail.row] = content
            placed[tail.row] += content
        for row, indices in enumerate(new):
            if moves.generated:
                if placed[row]:
                    assert placed[row] == before[row]
                    self.tails[row] = []
            elif indices:
                assert sorted(placed[row]) == sorted(
                    before[row] + [given[row][index] for index in indices]
                )
        self.columns += q_len

    def check(self):
        layout = self.layout
        layout.check_integrity()
        for row, names, tail in zip(layout.rows, self.names, self.tails, strict=True):
            assert row.length == len(names)
            assert [names[token] for token in row.tail] == tail[: len(row.tail)]
            for page in row.pages:
                content = self.pages[page.kind, page.number][: len(page.tokens)]
                assert content == [names[token] for token in page.tokens]
                assert list(page.tokens) == sorted(page.tokens)


def random_columns(choose, rows):
    q_len = choose.choice([1, 1, 1, 2, 7, 16, 40, 90])
    density = choose.choice([1.0, 1.0, 0.8, 0.2])
    return q_len, [
        [index for index in range(q_len) if choose.random() < density] for _ in range(rows)
    ]


@settings(max_examples=150, deadline=None)
@given(split=splits(), rows=st.integers(1, 4), seed=st.integers(0, 2**20))
def test_every_token_is_in_one_place_after_anything(split, rows, seed):
    choose = random.Random(seed)
    layout = Layout(BLOCK, split)
    layout.start(rows)
    contents = Contents(layout)
    for _ in range(15):
        action = choose.choice(["append", "append", "append", "select", "crop", "show", "clear"])
        version = layout.version
        if action == "append":
            q_len, new = random_columns(choose, len(layout.rows))
            contents.append(new, q_len)
        elif action == "select":
            sources = [choose.randrange(len(layout.rows)) for _ in range(choose.randint(1, 4))]
            layout.select(sources)
            contents.names = [list(contents.names[source]) for source in sources]
            contents.tails = [list(contents.tails[source]) for source in sources]
            assert layout.version > version
        elif action == "crop":
            columns = choose.randint(0, contents.columns)
            kept = [sum(c < columns for c in row.columns) for row in layout.rows]
            layout.crop(columns)
            contents.names = [n[:k] for n, k in zip(contents.names, kept, strict=True)]
            contents.tails = [
                tail[: len(row.tail)] for tail, row in zip(contents.tails, layout.rows, strict=True)
            ]
            contents.columns = columns
        elif action == "show":
            row = choose.randrange(len(layout.rows))
            visible = np.array([choose.random() < 0.7 for _ in range(contents.columns)], dtype=bool)
            before = set(layout.rows[row].hidden)
            layout.show(row, visible)
            hidden = {t for t, c in enumerate(layout.rows[row].columns) if not visible[c]}
            assert layout.rows[row].hidden == hidden
            assert (layout.version > version) == (hidden != before)
        elif choose.random() < 0.2:
            layout.clear()
            assert all(pool.free == pool.capacity for pool in layout.pools.values())
            layout.start(rows)
            contents = Contents(layout)
        contents.check()


@settings(max_examples=100, deadline=None)
@given(
    split=splits(),
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=4),
    chunk=st.sampled_from([1000, 512, 128, 33]),
)
def test_a_prompt_is_divided_as_the_split_says(split, lengths, chunk):
    """Up to half a block per row for X, and what the tail holds of the rest."""
    layout = Layout(BLOCK, split)
    layout.start(len(lengths))
    placer = Placer(layout)
    longest = max(lengths)
    for start in range(0, longest, chunk):
        width = min(chunk, longest - start)
        new = [
            [index for index in range(width) if start + index >= longest - length]
            for length in lengths
        ]
        grow(layout, placer.pages_needed(new))
        placer.append(new, start)
    layout.check_integrity()
    for row, length in zip(layout.rows, lengths, strict=True):
        held = dict.fromkeys(PageKind, 0)
        for page in row.pages:
            held[page.kind] += len(page.tokens)
        assert abs(held[PageKind.ACTIVATIONS] - split.recompute * length) <= BLOCK
        assert held[PageKind.RESIDENT] <= split.resident * length + BLOCK
        if split.resident < 1 and chunk == 1000:
            assert held[PageKind.RESIDENT] >= split.resident * length - 2 * BLOCK


@settings(max_examples=100, deadline=None)
@given(
    split=splits(), prompt_len=st.integers(1, 400), new_tokens=st.integers(1, 100), data=st.data()
)
def test_what_is_expected_suffices_for_the_prompt_and_the_tokens_after_it(
    split, prompt_len, new_tokens, data
):
    rows = data.draw(st.integers(1, 3))
    layout = Layout(BLOCK, split)
    layout.start(rows)
    placer = Placer(layout)
    grow(layout, placer.pages_expected(prompt_len, new_tokens))
    capacity = {kind: pool.capacity for kind, pool in layout.pools.items()}
    new = [list(range(data.draw(st.integers(0, prompt_len - 1)), prompt_len)) for _ in range(rows)]
    placer.append(new, 0)
    for step in range(new_tokens):
        for kind, needed in placer.pages_needed([[0]] * rows).items():
            assert needed <= layout.pools[kind].free
        placer.append([[0]] * rows, prompt_len + step)
    assert capacity == {kind: pool.capacity for kind, pool in layout.pools.items()}


def test_memory_follows_the_split():
    """A token is kept in one way only, so the pools together are not larger than the cache."""
    layout = Layout(BLOCK, Split(recompute=0.75, stream=0.25))
    layout.start(2)
    pages = Placer(layout).pages_expected(1600, 0)
    assert 2 * 75 <= pages[PageKind.ACTIVATIONS] <= 2 * 77
    assert 2 * 25 <= pages[PageKind.KV] <= 2 * 27
    assert pages[PageKind.RESIDENT] == 0
