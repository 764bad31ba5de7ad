// The view that all pictures share, and what changes it.

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
