"""The least time of a decode step, written out anew, layer by layer, for the planner's tests."""

from itertools import product

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def windowed(shape):
    """Which layers attend to a window: as many as there are, spread evenly."""
    marks, count = [], 0
    for layer in range(shape.num_layers):
        due = (layer + 1) * shape.windowed_layers // shape.num_layers
        marks.append(due > count)
        count = max(count, due)
    return marks


class ReferenceStep:
    """What a step needs at a split that all layers have: fractions by path.

    ``streamed`` is the share of the layers' weights that is streamed.
    """

    def __init__(self, work, profile):
        self.work, self.profile, self.shape = work, profile, work.shape
        self.size = BYTES[work.shape.dtype]
        self.tokens = work.rows * work.paged
        uniform = ((work.shape.num_kv_heads, work.shape.head_dim),) * work.shape.num_layers
        self.layers = list(zip(windowed(work.shape), work.shape.kv_widths or uniform, strict=True))

    def kernel_s(self, flops, size_bytes, memory, rebuild=False):
        rate = self.profile.gemm_flops_per_s[self.shape.dtype]
        if rebuild and self.profile.rebuild_flops_per_s is not None:
            rate = self.profile.rebuild_flops_per_s
        memory_rate = getattr(self.profile, memory) or self.profile.device_bytes_per_s
        return max(flops / rate, size_bytes / memory_rate)

    def weights(self, heads, head_dim):
        """Matrix elements of a layer."""
        shape = self.shape
        attention = 2 * shape.d_model * (shape.num_heads + heads) * head_dim
        return attention + (3 if shape.gated_ff else 2) * shape.d_model * shape.d_ff

    def dense_s(self, elements):
        """All passes of a matrix of so many elements."""
        rows = self.work.rows / self.work.passes
        once = self.kernel_s(2 * elements * rows, self.size * elements, "dense_bytes_per_s")
        return self.work.passes * once

    def seconds(self, split, streamed):
        """Return the seconds of every resource, by name."""
        work, profile, shape = self.work, self.profile, self.shape
        share = dict.fromkeys(("resident", "stream", "recompute", "host"), 0.0) | split
        head = self.dense_s(shape.vocab_size * shape.d_model)
        weights = cache = activations = store = fixed = cached = host = 0.0
        alone, waiting = head, head / work.passes
        merged_last = (
            work.rows
            if work.schedule == "row"
            else work.rows - (work.rows * (work.batches - 1) // work.batches)
        )
        for is_windowed, (heads, head_dim) in self.layers:
            kv, x = 2 * self.size * heads * head_dim, self.size * shape.d_model
            width = shape.num_heads * head_dim
            attend = self.kernel_s(4 * width, kv, "attend_bytes_per_s")
            dense = self.dense_s(self.weights(heads, head_dim))
            merge = 2 * 4 * work.rows * width / profile.device_bytes_per_s
            window = min(shape.sliding_window or work.context, work.context)
            new = work.rows * attend
            new *= 1 + (window if is_windowed else work.context - work.paged)
            weights += streamed * work.passes * self.size * self.weights(heads, head_dim)
            fixed += dense + merge + new
            alone += dense + (merge + new if is_windowed else merge * merged_last / work.rows)
            waiting += merge + new + (dense if is_windowed else 0.0)
            if is_windowed:
                continue
            rebuild = self.kernel_s(
                4 * shape.d_model * heads * head_dim, kv + x, "device_bytes_per_s", rebuild=True
            )
            cache += self.tokens * (share["stream"] * kv + share["recompute"] * x)
            activations += self.tokens * share["recompute"] * x
            cached += self.tokens * (1 - share["host"]) * attend
            cached += self.tokens * share["recompute"] * rebuild
            store += work.rows * kv if share["resident"] < 1 else 0.0
            if share["host"] > 0 and self.tokens:
                results = self.size * width + 4 * shape.num_heads * (head_dim + 2)
                slower = min(profile.h2d_bytes_per_s, profile.d2h_bytes_per_s)
                mail = work.rows * results / (profile.mail_bytes_per_s or slower)
                if profile.mail_bytes_per_s:
                    # The device's own kernels write and read it, as part of the merges.
                    fixed += mail
                    mail *= merged_last / work.rows
                alone += mail
                host += self.tokens * share["host"] * kv / profile.host_attend_rate
        link = (weights + cache) / profile.h2d_bytes_per_s
        found = {
            "link": link,
            "store": store / profile.d2h_bytes_per_s,
            "gpu": fixed + head + cached,
        }
        if share["host"] > 0:
            found |= {"host": alone + host, "dram": self.dram_s(link, host, alone)}
        if work.serial:
            found["device waiting"] = waiting + cached + activations / profile.h2d_bytes_per_s
            found["link waiting"] = waiting + cache / profile.h2d_bytes_per_s
        return found

    def step_s(self, split, streamed):
        return max(self.seconds(split, streamed).values())

    def dram_s(self, link_s, host_s, alone_s):
        """Return the least T in which link and cores can do their work, found by halving."""
        low, high = 0.0, alone_s + host_s + link_s
        for _ in range(60):
            middle = (low + high) / 2
            room = middle - alone_s
            fits = room >= host_s and self.most_link_s(room, host_s, alone_s) >= link_s
            low, high = (low, middle) if fits else (middle, high)
        return high

    def most_link_s(self, room_s, host_s, alone_s):
        """Return how much the link can do in the cores' room and while they have nothing to do."""
        profile = self.profile
        link, cores, total = profile.h2d_bytes_per_s, profile.host_attend_rate, profile.dram_rate
        if room_s == 0:
            return alone_s
        if not profile.h2d_while_host_bytes_per_s:
            return alone_s + room_s * min(1.0, (total - cores * host_s / room_s) / link)
        a = min(1.0, profile.h2d_while_host_bytes_per_s / link)
        b = min(1.0, profile.host_while_h2d_bytes_per_s / cores)
        if a + b < 1:
            a, b = a / (a + b), b / (a + b)
        # Both are at work for as long as the cores can still make up for what they lose.
        both_s = min(room_s, host_s / b)
        if b < 1:
            both_s = min(both_s, (room_s - host_s) / (1 - b))
        cores_only_s = host_s - b * both_s
        return alone_s + max(room_s - both_s - cores_only_s + a * both_s, room_s - host_s)

    def gpu_bytes(self, split, streamed, weight_slots):
        """Bytes on the device at this step, beyond those of all weights."""
        every = [self.size * self.weights(*widths) for _, widths in self.layers]
        spared = max(0, sum(every) - weight_slots * max(every))
        return split.get("resident", 0.0) * self.tokens * self.kv_bytes() - streamed * spared

    def host_bytes(self, split, streamed, end_paged):
        """Bytes on the host at the end, if later tokens are all there."""
        every = sum(self.size * self.weights(*widths) for _, widths in self.layers)
        full = sum(not is_windowed for is_windowed, _ in self.layers)
        more_for_x = self.size * self.shape.d_model * full - self.kv_bytes()
        kept = self.work.rows * end_paged * self.kv_bytes()
        kept += self.tokens * split.get("recompute", 0.0) * more_for_x
        return kept - self.tokens * split.get("resident", 0.0) * self.kv_bytes() + streamed * every

    def kv_bytes(self):
        """Bytes of a token's K/V in all layers that attend to the whole context."""
        full = [widths for is_windowed, widths in self.layers if not is_windowed]
        return sum(2 * self.size * heads * head_dim for heads, head_dim in full)


def simplex(paths, parts):
    """Yield all splits over some paths in so many parts."""
    for counts in product(range(parts + 1), repeat=len(paths) - 1):
        if sum(counts) <= parts:
            shares = (*counts, parts - sum(counts))
            yield {path: share / parts for path, share in zip(paths, shares, strict=True)}
