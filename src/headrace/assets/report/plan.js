// The pointer and the keys on charts: the values of all curves at the nearest place are read out.

const SVG = "http://www.w3.org/2000/svg";
const tip = document.getElementById("tip");
const said = document.getElementById("said");
const made = (tag, text) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  return element;
};
const drawn = (tag, attributes) => {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};

// A name's colours, as custom properties between which the page's style chooses.
const colours = ([, light, dark]) => `--light:${light};--dark:${dark}`;

function listen(plot) {
  const { names, columns } = JSON.parse(plot.dataset.readout);
  if (!columns.length) return;
  const cursor = drawn("g", { class: "cursor", "pointer-events": "none" });
  plot.append(cursor);
  let at = -1;

  function hide() {
    tip.hidden = true;
    cursor.replaceChildren();
    at = -1;
  }

  function show(index, clientX, clientY) {
    at = index;
    const [x, place, values] = columns[index];
    const sorted = [...values].sort((one, other) => one[1] - other[1]);
    cursor.replaceChildren(
      drawn("line", { x1: x, x2: x, y1: plot.dataset.top, y2: plot.dataset.bottom }),
      ...values.map(([name, y]) => {
        const dot = drawn("circle", { cx: x, cy: y, r: 5, class: "series" });
        dot.setAttribute("style", colours(names[name]));
        return dot;
      }),
    );
    const list = made("dl");
    for (const [name, , words] of sorted) {
      const swatch = made("i");
      swatch.setAttribute("style", colours(names[name]));
      const term = made("dt");
      term.append(swatch, made("span", names[name][0]));
      list.append(term, made("dd", words));
    }
    tip.replaceChildren(made("b", place), list);
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const right = clientX + 16 + width < innerWidth - 6;
    tip.style.left = `${Math.max(4, right ? clientX + 16 : clientX - width - 16)}px`;
    tip.style.top = `${Math.max(4, Math.min(clientY + 14, innerHeight - height - 6))}px`;
    return `${place}: ${sorted.map(([name, , words]) => `${names[name][0]} ${words}`).join(", ")}`;
  }

  // Where a place of the picture is on the screen.
  const onScreen = (x, y) => new DOMPoint(x, y).matrixTransform(plot.getScreenCTM());

  plot.addEventListener("pointermove", (event) => {
    const { x } = new DOMPoint(event.clientX, 0).matrixTransform(plot.getScreenCTM().inverse());
    let nearest = 0;
    columns.forEach(([left], index) => {
      if (Math.abs(left - x) < Math.abs(columns[nearest][0] - x)) nearest = index;
    });
    show(nearest, event.clientX, event.clientY);
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") hide();
    if (by === undefined) return;
    event.preventDefault();
    const next = Math.min(Math.max(at < 0 ? 0 : at + by, 0), columns.length - 1);
    const place = onScreen(columns[next][0], Number(plot.dataset.top));
    said.textContent = show(next, place.x, place.y);
  });
}

for (const plot of document.querySelectorAll(".plot")) listen(plot);
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
