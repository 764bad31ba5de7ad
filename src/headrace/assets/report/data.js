// The page's data: unpacks what page_data.py packed, finds spans by time, writes figures for people.

const data = JSON.parse(document.getElementById("data").textContent);

// Spans of one timeline as columns, sorted by start. Times are seconds since the timeline's start.
function unpack(entry) {
  const count = entry.spans.length / 4;
  const columns = {
    count,
    operation: new Uint32Array(count),
    step: new Int32Array(count),
    start: new Float64Array(count),
    finish: new Float64Array(count),
  };
  let start_ns = 0;
  for (let i = 0; i < count; i++) {
    const [operation, step, difference_ns, duration_ns] = entry.spans.slice(4 * i, 4 * i + 4);
    start_ns += difference_ns;
    columns.operation[i] = operation;
    columns.step[i] = step;
    columns.start[i] = start_ns * 1e-9;
    columns.finish[i] = (start_ns + duration_ns) * 1e-9;
  }
  return columns;
}

function prepare(entry) {
  const spans = unpack(entry);
  const steps = entry.steps.map(([number, start_ns, finish_ns]) =>
    ({ number, start: start_ns * 1e-9, finish: finish_ns * 1e-9 }));
  let finish = 0;
  for (const time of spans.finish) finish = Math.max(finish, time);
  return { ...entry, spans, steps, finish, picks: new Map() };
}

const panels = data.panels.map((panel) => ({ ...panel, timelines: panel.timelines.map(prepare) }));
const timelines = panels.flatMap((panel) => panel.timelines);
const stepNumbers = [...new Set(timelines.flatMap((t) => t.steps.map((s) => s.number)))]
  .sort((a, b) => a - b);

// The spans of a row's lanes: their indices by start, and the longest duration among them.
function pick(timeline, lanes) {
  const key = lanes.join();
  if (!timeline.picks.has(key)) {
    const { spans, operations } = timeline;
    const indices = [];
    let longest = 0;
    for (let i = 0; i < spans.count; i++) {
      if (!lanes.includes(operations[spans.operation[i]][0])) continue;
      indices.push(i);
      longest = Math.max(longest, spans.finish[i] - spans.start[i]);
    }
    timeline.picks.set(key, { indices: Uint32Array.from(indices), longest });
  }
  return timeline.picks.get(key);
}

// Position in a pick of the first span that starts at `time` or later.
function firstFrom(timeline, indices, time) {
  let low = 0, high = indices.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (timeline.spans.start[indices[middle]] < time) low = middle + 1; else high = middle;
  }
  return low;
}

// Indices of a row's spans that touch the window [from, to].
function* spansIn(timeline, lanes, from, to) {
  const { indices, longest } = pick(timeline, lanes);
  const { start, finish } = timeline.spans;
  for (let n = firstFrom(timeline, indices, from - longest); n < indices.length; n++) {
    const i = indices[n];
    if (start[i] > to) return;
    if (finish[i] >= from) yield i;
  }
}

function describe(timeline, i) {
  const { spans } = timeline;
  const [lane, kind, layer, granule, bytes, flops] = timeline.operations[spans.operation[i]];
  return {
    lane, kind: data.kinds[kind], layer, granule, bytes, flops, step: spans.step[i],
    start: spans.start[i], duration: spans.finish[i] - spans.start[i],
  };
}

function scaled(value, step, units) {
  let n = 0;
  // What rounds up to a whole step is written in the next unit: 1.00 ms, not 1000.0 µs.
  while (n < units.length - 1 && Math.abs(value) >= step * 0.99995) { value /= step; n++; }
  const size = Math.abs(value);
  return `${value.toFixed(n === 0 && Number.isInteger(value) ? 0 : size < 10 ? 2 : 1)} ${units[n]}`;
}
const formatSeconds = (s) => (s === 0 ? "0 s" : scaled(s * 1e9, 1000, ["ns", "µs", "ms", "s"]));
const formatBytes = (b) => scaled(b, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
const formatRate = (r) => scaled(r, 1000, ["B/s", "KB/s", "MB/s", "GB/s", "TB/s"]);
const formatFlops = (f) => scaled(f, 1000, ["FLOP", "KFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"]);
const formatShare = (share) => `${(100 * share).toFixed(share > 0 && share < 0.095 ? 1 : 0)} %`;
