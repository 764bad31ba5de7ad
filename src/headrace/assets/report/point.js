// Mouse, touch and keys on a picture: tooltips, zooming, dragging, walking along operations.

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
