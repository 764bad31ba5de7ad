// The page: builds the panels, holds the view, answers mouse, touch and keys.

const element = (tag, css, text) => {
  const made = document.createElement(tag);
  if (css) made.className = css;
  if (text !== undefined) made.textContent = text;
  return made;
};
const byId = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isEmpty = timelines.every((timeline) => timeline.spans.count === 0);

// The view: a window on a time axis whose zero is the start of the step `step` in every timeline.
const view = {
  from: 0, to: 1, step: stepNumbers[0] ?? 0,
  offset(timeline) {
    const step = timeline.steps.find((each) => each.number === view.step);
    return (step ?? timeline.steps.at(-1)).start;
  },
};
const frames = [];

function extent() {
  const shown = timelines.filter((timeline) => timeline.spans.count);
  const low = Math.min(...shown.map((timeline) => -view.offset(timeline)));
  const high = Math.max(...shown.map((timeline) => timeline.finish - view.offset(timeline)));
  return [low, high + (high - low) * 0.005 || 1e-9];
}

function show(from, to) {
  const [low, high] = extent();
  const length = Math.min(Math.max(to - from, 2e-8), high - low);
  view.from = Math.min(Math.max(from, low), high - length);
  view.to = view.from + length;
  hideTip();
  redraw();
}
function zoom(factor, at = (view.from + view.to) / 2) {
  show(at - (at - view.from) * factor, at + (view.to - at) * factor);
}
function move(share) {
  const by = (view.to - view.from) * share;
  show(view.from + by, view.to + by);
}
function showAll() {
  view.step = stepNumbers[0] ?? 0;
  show(...extent());
}
// Show one step from its start, as long as the slowest timeline needs for it.
function showStep(difference) {
  const at = stepNumbers.indexOf(view.step) + difference;
  view.step = stepNumbers[Math.min(Math.max(at, 0), stepNumbers.length - 1)];
  const longest = Math.max(...timelines.map((timeline) => {
    const step = timeline.steps.find((each) => each.number === view.step);
    return step ? step.finish - step.start : 0;
  }));
  show(0, longest * 1.01);
}

const actions = {
  in: () => zoom(0.5), out: () => zoom(2), left: () => move(-0.3), right: () => move(0.3),
  all: showAll, previous: () => showStep(-1), step: () => showStep(0), next: () => showStep(1),
};
const keys = {
  "+": "in", "=": "in", "-": "out", ArrowLeft: "left", ArrowRight: "right", 0: "all",
  Home: "all", "[": "previous", "]": "next", s: "step",
};

let waiting = 0;
function redraw() {
  waiting ||= requestAnimationFrame(() => { waiting = 0; drawAll(); });
}
function drawAll() {
  byId("step").textContent = `Step ${view.step}`;
  const [low, high] = isEmpty ? [0, 1] : extent();
  const button = (name) => document.querySelector(`[data-do=${name}]`);
  button("out").disabled = view.to - view.from >= (high - low) * 0.999;
  button("left").disabled = view.from <= low;
  button("right").disabled = view.to >= high * 0.9999;
  button("previous").disabled = view.step === stepNumbers[0];
  button("next").disabled = view.step === stepNumbers.at(-1);
  const colours = {};
  for (const name of ["ink", "soft", "line", "track"]) {
    colours[name] = printing ? PAPER[name] : colour(`--${name}`);
  }
  for (const frame of frames) {
    // On paper the width is that of an A4 page; three dots for each pixel keep it sharp.
    frame.ratio = printing ? 3 : devicePixelRatio || 1;
    frame.width = printing ? 790 : Math.max(Math.floor(frame.canvas.clientWidth), 50);
    frame.colours = colours;
    const [wide, tall] = [frame.width * frame.ratio, frame.height * frame.ratio].map(Math.round);
    if (frame.canvas.width !== wide || frame.canvas.height !== tall) {
      frame.canvas.width = wide;
      frame.canvas.height = tall;
    }
    drawPanel(frame, frame.panel, frame.rows, view);
  }
}
const PAPER = { ink: "#1b1f27", soft: "#5c6472", line: "#d9dde4", track: "#e9ecf1" };

function legend() {
  const list = byId("legend");
  list.replaceChildren(...data.kinds.map((kind) => {
    const item = element("li");
    const swatch = element("canvas");
    const ratio = printing ? 3 : devicePixelRatio || 1;
    swatch.width = 24 * ratio;
    swatch.height = 13 * ratio;
    const context = swatch.getContext("2d");
    context.scale(ratio, ratio);
    context.fillStyle = fillOf(context, kind, ratio);
    context.fillRect(0, 0, 24, 13);
    item.append(swatch, kind.name);
    return item;
  }));
}

function build() {
  frames.length = 0;
  const kind = byId("lanes").checked ? "lanes" : "machine";
  byId("panels").replaceChildren(...panels.map((panel) => buildPanel(panel, panel.rows[kind])));
  for (const frame of frames) listen(frame);
}

function buildPanel(panel, rows) {
  const section = element("section", "panel");
  const heading = element("div", "heading");
  heading.append(element("h2", "", panel.label), ...panel.timelines.map(speed(panel)));
  section.append(heading);
  if (!rows.length) {
    section.append(element("p", "empty", "There are no operations to show."));
    return section;
  }
  const plot = element("div", "plot");
  const canvas = element("canvas");
  const height = plotHeight(panel, rows);
  canvas.style.height = `${height}px`;
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", inWords(panel, rows));
  plot.append(names(panel, rows), canvas);
  section.append(plot);
  const font = "12px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
  frames.push({ canvas, context: canvas.getContext("2d"), panel, rows, height, font });
  return section;
}

// "predicted: 25.2 ms a step, 1.98 × the speed of stream"
const speed = (panel) => (timeline) => {
  const line = element("p", "", `${timeline.words}`);
  if (timeline.step_s === null) return line;
  line.append(": ", element("strong", "", formatSeconds(timeline.step_s)), " a step");
  const predicted = panel.timelines.find((other) => other.origin === "predicted");
  if (predicted && predicted !== timeline && predicted.step_s) {
    const more = 100 * (timeline.step_s / predicted.step_s - 1);
    line.append(`, ${Math.abs(more).toFixed(1)} % ${more < 0 ? "less" : "more"} than predicted`);
  }
  const first = panels[0].timelines.find((other) => other.origin === timeline.origin);
  if (panel !== panels[0] && first?.step_s && timeline.step_s) {
    const ratio = (first.step_s / timeline.step_s).toFixed(2);
    line.append(", ", element("strong", "", `${ratio} ×`), ` the speed of ${panels[0].label}`);
  }
  return line;
};

function names(panel, rows) {
  const column = element("div", "names");
  column.style.paddingTop = `${HEAD}px`;
  // Lanes share the link, so the fullest of them says little: only parts of the machine are marked.
  const whole = rows === panel.rows.machine;
  const busiest = panel.timelines.map((_, n) => Math.max(...rows.map((row) => row.shares[n])));
  for (const row of rows) {
    const line = element("div", "name");
    line.style.height = `${rowHeight(panel)}px`;
    line.style.marginBottom = `${ROW_GAP}px`;
    const shares = element("span", "shares");
    panel.timelines.forEach((timeline, n) => {
      const share = element("span", whole && row.shares[n] === busiest[n] ? "full" : "");
      share.style.height = `${halfHeight(panel) + (n ? HALF_GAP : 0)}px`;
      share.title = `${row.name}, ${timeline.words}: busy ${formatShare(row.shares[n])} of the time`;
      const word = panel.timelines.length > 1 ? timeline.origin : "busy";
      share.append(element("span", "origin", word), formatShare(row.shares[n]));
      shares.append(share);
    });
    line.append(element("b", "", row.name), shares);
    column.append(line);
  }
  return column;
}

function inWords(panel, rows) {
  return panel.timelines.map((timeline, n) => `${panel.label}, ${timeline.words}: ${
    timeline.step_s === null ? "no steps" : `${formatSeconds(timeline.step_s)} a step`}; ${
    rows.map((row) => `${row.name} busy ${formatShare(row.shares[n])}`).join(", ")}.`).join(" ");
}

// What is under a point of a canvas: the span that covers it, or the nearest within 3 pixels.
function hit(frame, px, py) {
  const half = [...halves(frame.panel, frame.rows)]
    .find(({ y, height }) => py >= y - 1 && py <= y + height + 1);
  if (!half || !half.timeline.spans.count) return null;
  const { timeline, row } = half;
  const perPixel = (view.to - view.from) / frame.width;
  const time = view.from + px * perPixel + view.offset(timeline);
  let best = null, distance = 3 * perPixel, crowd = 0;
  for (const i of spansIn(timeline, row.lanes, time - distance, time + distance)) {
    const { start, finish } = timeline.spans;
    if (start[i] <= time + perPixel / 2 && finish[i] >= time - perPixel / 2) crowd++;
    const away = Math.max(start[i] - time, time - finish[i], 0);
    if (away < distance || best === null) { best = i; distance = Math.min(distance, away); }
  }
  return best === null ? null : { timeline, row, index: best, crowd };
}

function tipLines({ timeline, index, crowd }) {
  const span = describe(timeline, index);
  const place = [];
  if (span.layer >= 0) place.push(`layer ${span.layer}`);
  if (span.granule >= 0) place.push(`granule ${span.granule}`);
  place.push(`step ${span.step}`);
  const lines = [place.join(", "),
    `${formatSeconds(span.duration)}, from ${formatSeconds(span.start - view.offset(timeline))}`];
  const rate = (unit, amount) => (span.duration > 0 ? ` at ${unit(amount / span.duration)}` : "");
  if (span.bytes) lines.push(formatBytes(span.bytes) + rate(formatRate, span.bytes));
  if (span.flops) {
    const perSecond = (amount) => `${formatFlops(amount)}/s`;
    lines.push(formatFlops(span.flops) + rate(perSecond, span.flops));
  }
  lines.push(timeline.words);
  if (crowd > 3) lines.push(`one of ${crowd} operations here; zoom in to tell them apart`);
  return [span.kind.name, ...lines];
}

function showTip(frame, found, left, top) {
  frame.selected = found;
  const [name, ...lines] = tipLines(found);
  const tip = byId("tip");
  tip.replaceChildren(element("b", "", name), ...lines.map((line) => element("span", "", line)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(left + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${top + 18 + height > innerHeight ? Math.max(4, top - height - 12) : top + 18}px`;
  redraw();
}
function hideTip() {
  byId("tip").hidden = true;
  for (const frame of frames) {
    if (frame.selected) redraw();
    frame.selected = null;
  }
}

// n and p: select the next or previous operation of the row, bring it into view, and say it.
function walk(frame, difference) {
  const half = halves(frame.panel, frame.rows).next().value;
  const { timeline, row, index } = frame.walked ?? { ...half, index: -1 };
  const { indices } = pick(timeline, row.lanes);
  if (!indices.length) return;
  const here = index < 0 ? firstFrom(timeline, indices, view.from + view.offset(timeline))
    : indices.indexOf(index) + difference;
  select(frame, { timeline, row, index: indices[Math.min(Math.max(here, 0), indices.length - 1)] });
}
// Up and down: the same time in the row above or below.
function climb(frame, difference) {
  const all = [...halves(frame.panel, frame.rows)];
  const now = frame.walked;
  const at = now ? all.findIndex((h) => h.timeline === now.timeline && h.row === now.row) : -1;
  const { timeline, row } = all[Math.min(Math.max(at + difference, 0), all.length - 1)];
  const { indices } = pick(timeline, row.lanes);
  if (!indices.length) return;
  const time = now ? now.timeline.spans.start[now.index] - view.offset(now.timeline) : view.from;
  const next = firstFrom(timeline, indices, time + view.offset(timeline));
  select(frame, { timeline, row, index: indices[Math.min(next, indices.length - 1)] });
}
function select(frame, found) {
  const { start, finish } = found.timeline.spans;
  const zero = view.offset(found.timeline);
  const middle = (start[found.index] + finish[found.index]) / 2 - zero;
  const length = view.to - view.from;
  if (middle < view.from || middle > view.to) show(middle - length / 2, middle + length / 2);
  frame.walked = found;
  const box = frame.canvas.getBoundingClientRect();
  const half = [...halves(frame.panel, frame.rows)]
    .find((each) => each.timeline === found.timeline && each.row === found.row);
  const left = box.left + (middle - view.from) / length * box.width;
  showTip(frame, { ...found, crowd: 1 }, left, box.top + half.y + half.height);
  byId("said").textContent = `${found.row.name}: ${tipLines({ ...found, crowd: 1 }).join("; ")}`;
}

// A page that is already scrolling goes on scrolling when a picture comes under the pointer.
let scrolledAt = -1e9;
addEventListener("scroll", () => { scrolledAt = performance.now(); }, { passive: true });

function listen(frame) {
  const { canvas } = frame;
  let dragged = null;
  const timeAt = (event) => view.from
    + (event.clientX - canvas.getBoundingClientRect().left) / frame.width * (view.to - view.from);
  canvas.addEventListener("wheel", (event) => {
    const wide = view.to - view.from;
    const [low, high] = extent();
    const pixels = event.deltaMode === 1 ? 16 : 1;
    const sideways = event.shiftKey ? event.deltaY || event.deltaX : event.deltaX;
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      move(sideways * pixels / frame.width);
      return;
    }
    // When everything is in view there is nothing to zoom out to, and the page scrolls instead.
    const whole = event.deltaY > 0 && wide >= (high - low) * 0.999;
    if (!event.ctrlKey && (whole || performance.now() - scrolledAt < 350)) return;
    event.preventDefault();
    zoom(Math.exp(Math.max(-60, Math.min(event.deltaY * pixels, 60)) * 0.005), timeAt(event));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    dragged = { x: event.clientX, from: view.from, to: view.to };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (dragged) {
      const by = (event.clientX - dragged.x) / frame.width * (dragged.to - dragged.from);
      show(dragged.from - by, dragged.to - by);
      return;
    }
    const box = canvas.getBoundingClientRect();
    const found = hit(frame, event.clientX - box.left, event.clientY - box.top);
    if (found) showTip(frame, found, event.clientX, event.clientY); else hideTip();
  });
  const stop = () => { dragged = null; };
  canvas.addEventListener("pointerup", stop);
  canvas.addEventListener("pointercancel", stop);
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("dblclick", (event) => zoom(0.4, timeAt(event)));
  canvas.addEventListener("blur", () => { frame.walked = null; hideTip(); });
  canvas.addEventListener("keydown", (event) => {
    const steps = { n: () => walk(frame, 1), p: () => walk(frame, -1),
      ArrowDown: () => climb(frame, 1), ArrowUp: () => climb(frame, -1), Escape: hideTip };
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in steps)) return;
    event.preventDefault();
    steps[event.key]();
  });
}

function start() {
  if (!panels.length) {
    byId("panels").append(element("p", "empty", "There are no operations to show."));
    return;
  }
  build();
  if (isEmpty) return;
  byId("bar").hidden = false;
  byId("stepper").hidden = stepNumbers.length < 2;
  byId("bar").addEventListener("click", (event) => {
    actions[event.target.closest("[data-do]")?.dataset.do]?.();
  });
  byId("lanes").addEventListener("change", () => { build(); redraw(); });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    if (event.target.matches("input")) return;
    event.preventDefault();
    actions[keys[event.key]]();
  });
  addEventListener("resize", redraw);
  darkScreen.addEventListener("change", () => { legend(); redraw(); });
  for (const [name, on] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(name, () => paper(on));
  }
  legend();
  begin();
  begun = { from: view.from, to: view.to };
  drawAll();
}

// Print what is seen, or everything if the view is still the one that the page began with.
let begun = null, before = null;
function paper(on) {
  printing = on;
  if (on && view.from === begun?.from && view.to === begun?.to) {
    before = begun;
    showAll();
  } else if (!on && before) {
    show(before.from, before.to);
    before = null;
  }
  legend();
  drawAll();
}

// Begin with everything, unless bars would be hard to see: then with as many steps as keep them
// two pixels wide in the fullest row, and with one at least.
function begin() {
  showAll();
  const counts = frames.flatMap(({ panel, rows }) => rows.flatMap((row) =>
    panel.timelines.map((t) => pick(t, row.lanes).indices.length / (t.steps.length || 1))));
  const width = frames[0].canvas.clientWidth;
  const steps = Math.max(1, Math.floor(width / (2 * Math.max(...counts))));
  if (steps >= stepNumbers.length) return;
  const ends = timelines.flatMap((timeline) => {
    const last = timeline.steps[Math.min(steps, timeline.steps.length) - 1];
    return last ? [last.finish - view.offset(timeline)] : [];
  });
  show(0, Math.max(...ends) * 1.01);
}

start();
