"""A decode step's least time, written out anew, layer by layer, for the planner's property tests."""

import math
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


def widths(shape):
    return shape.kv_widths or ((shape.num_kv_heads, shape.head_dim),) * shape.num_layers


class ReferenceStep:
    """The rows of the linear program, evaluated at a split that all layers have.

    A split is a dictionary of fractions by path; ``streamed`` is the share of the layers' weights
    that is streamed.
    """

    def __init__(self, work, profile):
        self.work, self.profile = work, profile
        self.marks, self.widths = windowed(work.shape), widths(work.shape)
        self.size = BYTES[work.shape.dtype]
        self.tokens = work.rows * work.paged

    def kernel_s(self, flops, size_bytes, memory, rebuild=False):
        dtype = self.work.shape.dtype
        rate = self.profile.gemm_flops_per_s[dtype]
        if rebuild and self.profile.rebuild_flops_per_s is not None:
            rate = self.profile.rebuild_flops_per_s
        memory_rate = getattr(self.profile, memory) or self.profile.device_bytes_per_s
        return max(flops / rate, size_bytes / memory_rate)

    def weights(self, heads, head_dim):
        shape = self.work.shape
        query = shape.num_heads * head_dim
        matrices = 3 if shape.gated_ff else 2
        return (
            2 * shape.d_model * query
            + 2 * shape.d_model * heads * head_dim
            + matrices * shape.d_model * shape.d_ff
        )

    def dense_s(self, elements):
        """All passes of a matrix of so many elements."""
        rows = self.work.rows / self.work.passes
        once = self.kernel_s(2 * elements * rows, self.size * elements, "dense_bytes_per_s")
        return self.work.passes * once

    def seconds(self, split, streamed):
        """Seconds of every resource at a split."""
        work, profile, shape = self.work, self.profile, self.work.shape
        link = store = gpu = host = alone = waiting = before_rebuild = 0.0
        hosts, staged = split.get("host", 0) > 0, split.get("resident", 0) < 1
        last = work.rows_merged_last / work.rows
        for is_windowed, (heads, head_dim) in zip(self.marks, self.widths, strict=True):
            kv, x = 2 * self.size * heads * head_dim, self.size * shape.d_model
            width = shape.num_heads * head_dim
            attend = self.kernel_s(4 * width, kv, "attend_bytes_per_s")
            dense = self.dense_s(self.weights(heads, head_dim))
            link += streamed * work.passes * self.size * self.weights(heads, head_dim)
            merge = 2 * 4 * work.rows * width / profile.device_bytes_per_s
            window = min(shape.sliding_window or work.context, work.context)
            on_device = window if is_windowed else work.context - work.paged
            new = work.rows * (1 + on_device) * attend
            gpu += dense + merge + new
            alone += dense + last * merge + (new if is_windowed else 0.0)
            waiting += merge + new + (dense if is_windowed else 0.0)
            if is_windowed:
                continue
            loaded = split.get("stream", 0) * kv + split.get("recompute", 0) * x
            link += self.tokens * loaded
            before_rebuild += self.tokens * split.get("recompute", 0) * x
            device = split.get("resident", 0) + split.get("stream", 0) + split.get("recompute", 0)
            gpu += self.tokens * device * attend
            rebuild = self.kernel_s(
                4 * shape.d_model * heads * head_dim, kv + x, "device_bytes_per_s", True
            )
            gpu += self.tokens * split.get("recompute", 0) * rebuild
            store += work.rows * kv if staged else 0.0
            if hosts:
                results = self.size * width + 4 * shape.num_heads * (head_dim + 2)
                slower = min(profile.h2d_bytes_per_s, profile.d2h_bytes_per_s)
                host += work.rows * results / slower if self.tokens else 0.0
                host += self.tokens * split["host"] * kv / profile.host_attend_rate
        head = self.dense_s(shape.vocab_size * shape.d_model)
        link_s = link / profile.h2d_bytes_per_s
        found = {
            "link": link_s,
            "store": store / profile.d2h_bytes_per_s,
            "gpu": gpu + head,
        }
        if hosts:
            found["host"] = alone + head + host
            found["dram"] = self.dram_s(link_s, host, alone + head)
        if work.serial:
            waiting += head / work.passes
            cached = found["gpu"] - self.seconds_without_cache()
            cache = (link - streamed * self.all_weights()) / profile.h2d_bytes_per_s
            found["serial"] = waiting + max(
                before_rebuild / profile.h2d_bytes_per_s + cached, cache
            )
        return found

    def all_weights(self):
        return self.work.passes * self.size * sum(self.weights(*one) for one in self.widths)

    def seconds_without_cache(self):
        empty = ReferenceStep(self.work, self.profile)
        empty.tokens = 0
        serial, self.work = self.work, self.work
        object.__setattr__(empty, "work", _parallel(serial))
        return empty.seconds({"stream": 1.0}, 0.0)["gpu"]

    def dram_s(self, link_s, host_s, alone_s):
        """The least T in which link and cores can do their work, found by halving.

        While both are at work they go on at shares of their rates that are given, or, where they
        were not measured, at any that host memory allows.
        """
        profile = self.profile
        link, cores, total = profile.h2d_bytes_per_s, profile.host_attend_rate, profile.dram_rate
        if profile.h2d_while_host_bytes_per_s:
            both = profile.shared_rates
            points = [(both[0] / link, both[1] / cores)]
        else:
            first, second = min(1.0, total / link), min(1.0, total / cores)
            points = [
                (first, min(1.0, (total - first * link) / cores)),
                (min(1.0, (total - second * cores) / link), second),
            ]

        def fits(step_s):
            room = step_s - alone_s
            if room < host_s or step_s < link_s:
                return False
            # The longest that both may be at work; at which point does not matter before that.
            best = 0.0
            for a, b in points:
                most = room if b == 0 else min(room, host_s / b)
                if b < 1:
                    most = min(most, (room - host_s) / (1 - b))
                best = max(best, step_s - host_s + most * (a + b - 1))
            if len(points) == 2:
                # A mixture: the cores end with the room, the link with the step.
                bytes_left = total * room - host_s * cores + alone_s * link
                best = max(best, min(step_s, bytes_left / link))
            return best >= link_s * (1 - 1e-12)

        low, high = 0.0, alone_s + host_s + link_s
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high

    def step_s(self, split, streamed):
        return max(self.seconds(split, streamed).values())

    def gpu_bytes(self, split, streamed, slots):
        """Bytes on the device beyond those of all weights."""
        layers = [one for one, mark in zip(self.widths, self.marks, strict=True) if not mark]
        kv = sum(2 * self.size * heads * head_dim for heads, head_dim in layers)
        every = [self.size * self.weights(*one) for one in self.widths]
        spared = max(0, sum(every) - slots * max(every))
        return split.get("resident", 0) * self.tokens * kv - streamed * spared

    def host_bytes(self, split, streamed, end_paged):
        layers = [one for one, mark in zip(self.widths, self.marks, strict=True) if not mark]
        kv = sum(2 * self.size * heads * head_dim for heads, head_dim in layers)
        x = self.size * self.work.shape.d_model * len(layers)
        every = sum(self.size * self.weights(*one) for one in self.widths)
        kept = self.work.rows * end_paged * kv
        kept += self.tokens * split.get("recompute", 0) * (x - kv)
        return kept - self.tokens * split.get("resident", 0) * kv + streamed * every


def _parallel(work):
    from dataclasses import replace

    return replace(work, serial=False)


def simplex(paths, parts):
    """All splits over some paths in so many parts."""
    for counts in product(range(parts + 1), repeat=len(paths) - 1):
        if sum(counts) <= parts:
            shares = (*counts, parts - sum(counts))
            yield {path: share / parts for path, share in zip(paths, shares, strict=True)}


def close(one, other, tolerance=1e-9):
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=1e-15)
