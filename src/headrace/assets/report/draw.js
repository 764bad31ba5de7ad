// Drawing: fills with hatching, bars, time axis. A "frame" is one panel's canvas with its colours.

const HATCHING = {
  diagonal: "M-2 8L8 -2M-2 2L2 -2M4 8L8 4",
  back: "M-2 -2L8 8M4 -2L8 2M-2 4L2 8",
  dots: "M1 1h1.6v1.6h-1.6zM4 4h1.6v1.6h-1.6z",
  cross: "M0 3H6M3 0V6",
  horizontal: "M0 3H6",
  vertical: "M3 0V6",
};
const PAD = 12; // pixels beyond each border of a picture that are looked at too, for smoothing
const HEAD = 15, FOOT = 20, ROW_GAP = 7, HALF_GAP = 2;

const darkScreen = matchMedia("(prefers-color-scheme: dark)");
let printing = false;
const theme = () => (darkScreen.matches && !printing ? "dark" : "light");

// A fill for a kind: its colour, and its hatching over it. Made for one pixel ratio and theme.
const fills = new Map();
function fillOf(context, kind, ratio) {
  const colour = kind[theme()];
  if (!(kind.hatching in HATCHING)) return colour;
  const key = `${colour} ${kind.hatching} ${ratio}`;
  if (!fills.has(key)) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = Math.round(6 * ratio);
    const pen = tile.getContext("2d");
    pen.scale(tile.width / 6, tile.height / 6);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 6, 6);
    pen.strokeStyle = theme() === "dark" ? "rgb(0 0 0 / .42)" : "rgb(255 255 255 / .5)";
    pen.stroke(new Path2D(HATCHING[kind.hatching]));
    const fill = context.createPattern(tile, "repeat");
    fill.setTransform(new DOMMatrix().scale(6 / tile.width));
    fills.set(key, fill);
  }
  return fills.get(key);
}

// Black or white, whichever reads better on the colour.
function inkOn(colour) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
  return 0.2126 * r ** 2.2 + 0.7152 * g ** 2.2 + 0.0722 * b ** 2.2 < 0.22 ? "#ffffff" : "#1b1f27";
}

const halfHeight = (panel) => (panel.timelines.length > 1 ? 22 : 32);
const rowHeight = (panel) =>
  panel.timelines.length * (halfHeight(panel) + HALF_GAP) - HALF_GAP;
const plotHeight = (panel, rows) => HEAD + rows.length * (rowHeight(panel) + ROW_GAP) + FOOT;

// Each row's halves, one for each timeline: where it is drawn.
function* halves(panel, rows) {
  let y = HEAD;
  for (const row of rows) {
    for (const timeline of panel.timelines) {
      yield { row, timeline, y, height: halfHeight(panel) };
      y += halfHeight(panel) + HALF_GAP;
    }
    y += ROW_GAP - HALF_GAP;
  }
}

// Round times, at least 80 pixels apart.
function ticks(from, to, width) {
  const rough = (to - from) * 80 / width;
  const power = 10 ** Math.floor(Math.log10(rough));
  const unit = power * [1, 2, 5, 10].find((factor) => power * factor >= rough);
  const times = [];
  for (let n = Math.ceil(from / unit); n * unit <= to; n++) times.push(n * unit);
  return times;
}

// Bars of one half. A bar narrower than a pixel adds to the height of its pixel column instead, so
// that the coloured area is the busy time at every zoom, and the work is bounded by the width.
// Where such bars are most of what there is, all bars become columns, smoothed to a level.
function drawBars(frame, half, x, from, to) {
  const { context, width, ratio } = frame;
  const { timeline, row, y, height } = half;
  const { spans, operations } = timeline;
  const bars = [];
  let tiny = 0, tinyWidth = 0, allWidth = 0;
  const pad = (to - from) * PAD / width;
  for (const i of spansIn(timeline, row.lanes, from - pad, to + pad)) {
    const [, kind, layer] = operations[spans.operation[i]];
    const low = Math.max(x(spans.start[i]), -PAD), high = Math.min(x(spans.finish[i]), width + PAD);
    bars.push([kind, layer, low, high]);
    allWidth += high - low;
    if (high - low < 1) { tiny++; tinyWidth += high - low; }
  }
  const crowded = tiny > width / 2 && tinyWidth > allWidth / 2;
  const columns = data.kinds.map(() => null);
  const wide = data.kinds.map(() => []);
  for (const bar of bars) {
    const [kind, , low, high] = bar;
    if (high - low >= 1 && !crowded) wide[kind].push(bar);
    else spread(columns[kind] ??= new Float32Array(width + 2 * PAD + 2), low, high);
  }
  const bases = new Float32Array(width + 2 * PAD + 2);
  data.kinds.forEach((kind, k) => {
    context.fillStyle = fillOf(context, kind, ratio);
    for (const [, , low, high] of wide[k]) {
      context.fillRect(low, y, high - low - (high - low > 3 ? 0.75 : 0), height);
    }
    if (!columns[k]) return;
    const heights = crowded ? smoothed(columns[k], x(0), x(timeline.finish)) : columns[k];
    context.fill(pile(heights, bases, y + height, height));
  });
  drawWords(frame, wide.flat(), y + height / 2);
}

// Add a bar to the pixel columns that it covers. Column n is pixel n - PAD.
function spread(sums, low, high) {
  for (let column = Math.floor(low); column < high; column++) {
    sums[column + PAD] += Math.min(high, column + 1) - Math.max(low, column);
  }
}

// The outline of columns on top of those piled up so far: one shape, so that no seams show in print.
function pile(heights, bases, floor, height) {
  const shape = new Path2D();
  const below = [];
  for (let n = 0; n <= heights.length; n++) {
    const left = n - PAD;
    if (heights[n] > 0) {
      const base = floor - bases[n];
      bases[n] += Math.min(Math.max(heights[n] * height, 0.5), height - bases[n]);
      if (!below.length) shape.moveTo(left, base);
      shape.lineTo(left, floor - bases[n]);
      shape.lineTo(left + 1, floor - bases[n]);
      below.push(left, base);
    } else if (below.length) {
      for (let m = below.length - 2; m >= 0; m -= 2) {
        shape.lineTo(below[m] + 1, below[m + 1]);
        shape.lineTo(below[m], below[m + 1]);
      }
      shape.closePath();
      below.length = 0;
    }
  }
  return shape;
}

// Crowded columns, averaged over some pixels: a level instead of a flicker. `low` and `high` bound
// the timeline, so that nothing is spread beyond its ends.
function smoothed(sums, low, high) {
  const first = Math.max(Math.floor(low) + PAD, 0);
  const last = Math.min(Math.ceil(high) - 1, sums.length - PAD - 3) + PAD;
  const total = new Float64Array(sums.length + 1);
  sums.forEach((sum, n) => { total[n + 1] = total[n] + sum; });
  return sums.map((_, n) => {
    if (n < first || n > last) return 0;
    const from = Math.max(n - 7, first), to = Math.min(n + 7, last) + 1;
    return (total[to] - total[from]) / (to - from);
  });
}

function drawWords({ context, width }, words, y) {
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (const [k, layer, low, high] of words) {
    if (high - low < 18) continue;
    const kind = data.kinds[k];
    const left = Math.max(low, 0), right = Math.min(high, width);
    const choices = layer >= 0 ? [`${kind.short}, layer ${layer}`, kind.short] : [kind.short];
    const word = choices.find((each) => context.measureText(each).width + 8 <= right - left);
    if (!word) continue;
    const colour = kind[theme()];
    const middle = (left + right) / 2;
    if (kind.hatching !== "none") {
      // A plain ground, so that the hatching does not cross the letters.
      const wide = context.measureText(word).width + 6;
      context.fillStyle = colour;
      context.fillRect(middle - wide / 2, y - 7, wide, 14);
    }
    context.fillStyle = inkOn(colour);
    context.fillText(word, middle, y + 0.5);
  }
}

// Draw a panel. `view` has from and to in seconds, and offset(timeline): when its zero is.
function drawPanel(frame, panel, rows, view) {
  const { context, width, height, ratio, colours } = frame;
  const scale = width / (view.to - view.from);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = frame.font;
  const times = ticks(view.from, view.to, width);
  drawGrid(frame, times, (time) => (time - view.from) * scale);
  const labels = [];
  for (const half of halves(panel, rows)) {
    const { timeline } = half;
    const zero = timeline.steps.length ? view.offset(timeline) : 0;
    const x = (time) => (time - zero - view.from) * scale;
    const start = Math.max(x(0), -2), finish = Math.min(x(timeline.finish), width + 2);
    context.fillStyle = colours.track;
    if (finish > start) context.fillRect(start, half.y, finish - start, half.height);
    drawBars(frame, half, x, view.from + zero, view.to + zero);
    context.fillStyle = colours.ink;
    timeline.steps.forEach((step, n) => {
      const at = x(step.start);
      if (at < -80 || at > width) return;
      if (n > 0) context.fillRect(Math.round(at) - 0.75, half.y - 2, 1.5, half.height + 4);
      if (half.y === HEAD) labels.push([at, x(step.finish), step.number]);
    });
  }
  drawStepLabels(frame, labels);
  if (frame.selected) drawSelection(frame, panel, rows, view, scale);
}

function drawGrid({ context, height, width, colours }, times, x) {
  const largest = Math.max(...times.map(Math.abs), 1e-12);
  const [unit, factor] = largest >= 1 ? ["s", 1] : largest >= 1e-3 ? ["ms", 1e3]
    : largest >= 1e-6 ? ["µs", 1e6] : ["ns", 1e9];
  context.textBaseline = "alphabetic";
  for (const time of times) {
    const at = Math.round(x(time));
    context.fillStyle = colours.line;
    context.fillRect(at, HEAD, 1, height - HEAD - FOOT + 3);
    context.fillStyle = colours.soft;
    const text = `${Number((time * factor).toPrecision(9))} ${unit}`;
    const half = context.measureText(text).width / 2;
    context.textAlign = "center";
    context.fillText(text, Math.min(Math.max(at, half), width - half), height - 5);
  }
}

function drawStepLabels({ context, width, colours }, labels) {
  context.fillStyle = colours.soft;
  context.textAlign = "left";
  context.textBaseline = "alphabetic";
  let reached = -1;
  for (const [start, finish, number] of labels) {
    const text = `step ${number}`;
    const wide = context.measureText(text).width;
    const at = Math.max(start, 0) + (start > 2 ? 3 : 0);
    if (at < reached || at + wide > Math.min(finish, width)) continue;
    context.fillText(text, at, HEAD - 4);
    reached = at + wide + 6;
  }
}

function drawSelection(frame, panel, rows, view, scale) {
  const { context, colours, selected } = frame;
  for (const { row, timeline, y, height } of halves(panel, rows)) {
    if (timeline !== selected.timeline || row.name !== selected.row.name) continue;
    const { start, finish } = timeline.spans;
    const zero = view.offset(timeline) + view.from;
    const low = (start[selected.index] - zero) * scale;
    const wide = Math.max((finish[selected.index] - start[selected.index]) * scale, 3);
    context.strokeStyle = colours.ink;
    context.lineWidth = 2;
    context.strokeRect(low, y + 1, wide, height - 2);
  }
}
