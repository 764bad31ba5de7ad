// The page: builds the panels, draws them when the view has changed, prints them.

const element = (tag, css, text) => {
  const made = document.createElement(tag);
  if (css) made.className = css;
  if (text !== undefined) made.textContent = text;
  return made;
};
const byId = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isEmpty = timelines.every((timeline) => timeline.spans.count === 0);

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
