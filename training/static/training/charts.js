// Curves of a run as SVG. Values of a run become text nodes and numbers, never markup.
const SVG = "http://www.w3.org/2000/svg";
const MOST_POINTS = 4000; // beyond it every second point is dropped
const MOST_MARKS = 500;
const DRAW_MS = 250; // from one drawing of new points to the next
const MOST_EVALUATIONS = 6;
const LEFT = 48, RIGHT = 8, TOP = 8, BOTTOM = 20;
const CURVES = { loss: "Loss", learning_rate: "Learning rate", grad_norm: "Gradient norm" };

export function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const rounded = Number(value.toPrecision(digits));
  return rounded !== 0 && Math.abs(rounded) < 1e-4 ? rounded.toExponential() : String(rounded);
}

function element(parent, name, attributes = {}, text = "") {
  const made = parent.namespaceURI === SVG || name === "svg" ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return parent.appendChild(made);
}

// Debiased exponential mean. Its time constant is a share of the run, so points may have any distance.
function smoothed(steps, values, strength) {
  const span = steps.length ? steps[steps.length - 1] - steps[0] : 0;
  const constant = 0.2 * span * strength ** 3;
  if (constant <= 0) return values;
  let sum = 0, weight = 0, before = steps[0];
  return values.map((value, place) => {
    const decay = Math.exp((before - steps[place]) / constant);
    if (value === null) return weight ? sum / weight : null;
    before = steps[place];
    sum = sum * decay + value;
    weight = weight * decay + 1;
    return sum / weight;
  });
}

function niceTicks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const ticks = [];
  for (let tick = Math.ceil(low / size) * size; tick <= high + size * 1e-9; tick += size) ticks.push(Math.abs(tick) < size * 1e-9 ? 0 : tick);
  return ticks;
}

function nearest(steps, wanted) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < wanted) low = middle + 1; else high = middle;
  }
  return low > 0 && wanted - steps[low - 1] < steps[low] - wanted ? low - 1 : low;
}

class Chart {
  constructor(root, title) {
    this.figure = element(root, "figure");
    const caption = element(this.figure, "figcaption");
    element(caption, "span", {}, title);
    this.output = element(caption, "span", { class: "readout" });
    this.svg = element(this.figure, "svg", { role: "img" });
    this.title = title;
    this.cursor = null;
    this.svg.addEventListener("pointermove", (event) => this.point(event.clientX));
    this.svg.addEventListener("pointerleave", () => { this.cursor = null; this.readout(); });
  }

  // curve: { steps, values, smooth (values or null), log, marks: { kind: [step] }, other: { steps, values } of another run }
  draw(curve) {
    this.curve = curve;
    const width = this.svg.clientWidth || 320, height = this.svg.clientHeight || 176;
    const scale = (value) => (curve.log ? (value > 0 ? Math.log10(value) : null) : value);
    const other = curve.other || { steps: [], values: [] };
    const shown = [...curve.values, ...(curve.smooth || []), ...other.values].filter((value) => value !== null).map(scale).filter((value) => value !== null);
    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.figure.hidden = !shown.length;
    if (!shown.length) return;
    let low = shown.reduce((a, b) => Math.min(a, b)), high = shown.reduce((a, b) => Math.max(a, b));
    // A curve without a height, but for rounding, stands in the middle; ticks need a height that numbers can count.
    if (high - low <= 1e-6 * Math.max(Math.abs(low), Math.abs(high))) { const pad = Math.abs(low) * 0.1 || 1; low -= pad; high += pad; }
    const first = Math.min(curve.steps[0], ...other.steps.slice(0, 1));
    const last = Math.max(curve.steps[curve.steps.length - 1], first + 1, ...other.steps.slice(-1));
    this.x = (step) => LEFT + ((step - first) / (last - first)) * (width - LEFT - RIGHT);
    this.step = (pixel) => first + ((pixel - LEFT) / (width - LEFT - RIGHT)) * (last - first);
    const y = (value) => TOP + ((high - value) / (high - low)) * (height - TOP - BOTTOM);
    for (const tick of niceTicks(low, high, 4)) {
      element(this.svg, "line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) });
      element(this.svg, "text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, number(curve.log ? 10 ** tick : tick, 3));
    }
    for (const tick of niceTicks(first, last, Math.max(2, Math.floor(width / 110))).filter(Number.isInteger)) {
      element(this.svg, "text", { x: this.x(tick), y: height - 4, "text-anchor": tick === last ? "end" : "middle" }, tick.toLocaleString("en"));
    }
    this.drawMarks(curve.marks || {}, first, last, width, height);
    const path = (values, steps = curve.steps) => values.reduce(([text, pen], value, place) => {
      const at = value === null ? null : scale(value);
      return at === null ? [text, "M"] : [`${text}${pen}${this.x(steps[place]).toFixed(1)},${y(at).toFixed(1)}`, "L"];
    }, ["", "M"])[0];
    if (other.steps.length) element(this.svg, "path", { class: "other", d: path(other.values, other.steps) });
    element(this.svg, "path", { class: curve.smooth ? "raw" : "line", d: path(curve.values) });
    if (curve.smooth) element(this.svg, "path", { class: "line", d: path(curve.smooth) });
    if (curve.steps.length <= 60) {
      curve.values.forEach((value, place) => {
        const at = value === null ? null : scale(value);
        if (at !== null) element(this.svg, "circle", { class: "dot", cx: this.x(curve.steps[place]), cy: y(at), r: 2 });
      });
    }
    this.svg.setAttribute("aria-label", `${this.title}: ${this.words(0)} to ${this.words(curve.steps.length - 1)}`);
    this.readout();
  }

  // Lines over the whole height, or short ones at the axis where there would be too many.
  drawMarks(marks, first, last, width, height) {
    for (const [kind, all] of Object.entries(marks)) {
      const steps = all.filter((step) => step >= first && step <= last);
      const isShort = steps.length > width / 40, above = isShort && kind === "validation" ? 6 : 0;
      const bottom = height - BOTTOM - above, top = isShort ? bottom - 5 : TOP;
      const look = isShort ? `${kind} short` : kind;
      for (const step of steps) element(this.svg, "line", { class: look, x1: this.x(step), x2: this.x(step), y1: top, y2: bottom });
    }
  }

  words(place) {
    const { steps, values, smooth } = this.curve;
    const mean = smooth && smooth[place] !== null ? ` (smoothed ${number(smooth[place])})` : "";
    return `step ${steps[place].toLocaleString("en")}, ${number(values[place])}${mean}`;
  }

  point(clientX) {
    if (!this.curve || !this.curve.steps.length) return;
    this.cursor = this.step(clientX - this.svg.getBoundingClientRect().left);
    this.readout();
  }

  readout() {
    this.svg.querySelector(".cursor")?.remove();
    if (!this.curve?.steps.length) return;
    const { steps } = this.curve;
    const place = this.cursor === null ? steps.length - 1 : nearest(steps, this.cursor);
    this.output.textContent = this.words(place);
    if (this.cursor === null) return;
    const x = this.x(steps[place]);
    element(this.svg, "line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: this.svg.clientHeight - BOTTOM });
  }
}

export class Curves {
  constructor(root, controls) {
    this.root = root;
    this.controls = controls;
    this.steps = [];
    this.values = { loss: [], learning_rate: [], grad_norm: [] };
    this.marks = { checkpoint: [], validation: [] };
    this.evaluations = new Map();
    this.isComplete = true;
    this.other = null;
    this.drawnAt = -DRAW_MS;
    root.replaceChildren();
    this.charts = new Map(Object.entries(CURVES).map(([name, title]) => [name, new Chart(root, title)]));
    for (const control of [controls.log, controls.smoothing]) control.addEventListener("input", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(root);
  }

  load(metrics) {
    this.steps = metrics.steps;
    for (const name of Object.keys(CURVES)) this.values[name] = metrics[name];
    this.marks = { checkpoint: metrics.checkpoints.map((one) => one.step), validation: metrics.validations };
    for (const [name, points] of Object.entries(metrics.evaluations)) for (const { step, value } of points) this.evaluate(step, { [name]: value });
    this.isComplete = metrics.is_complete;
    this.draw();
  }

  add(data) {
    while (this.steps.length && this.steps[this.steps.length - 1] >= data.step) {
      this.steps.pop();
      for (const name of Object.keys(CURVES)) this.values[name].pop();
    }
    this.steps.push(data.step);
    for (const name of Object.keys(CURVES)) this.values[name].push(data[name] ?? null);
    if (this.steps.length > MOST_POINTS) {
      const even = (_, place) => place % 2 === 0;
      this.steps = this.steps.filter(even);
      for (const name of Object.keys(CURVES)) this.values[name] = this.values[name].filter(even);
      this.isComplete = false;
    }
    this.drawSoon();
  }

  mark(kind, step) {
    if (!this.marks[kind].includes(step)) this.marks[kind].push(step);
    this.marks[kind] = this.marks[kind].slice(-MOST_MARKS);
    this.drawSoon();
  }

  evaluate(step, metrics) {
    for (const [name, value] of Object.entries(metrics)) {
      if (!Number.isFinite(value)) continue;
      if (!this.evaluations.has(name)) {
        if (this.evaluations.size >= MOST_EVALUATIONS) continue;
        this.evaluations.set(name, { steps: [], values: [], chart: new Chart(this.root, `Evaluation: ${name}`) });
      }
      const of = this.evaluations.get(name);
      if (of.steps.length && of.steps[of.steps.length - 1] >= step) continue;
      of.steps.push(step);
      of.values.push(value);
    }
    this.drawSoon();
  }

  // Lays another run over this one; null takes it away.
  compare(metrics) {
    this.other = metrics;
    this.draw();
  }

  // New points are drawn a few times a second, whatever the pace of the steps.
  drawSoon() {
    if (this.isDue) return;
    this.isDue = true;
    setTimeout(() => { this.isDue = false; this.draw(); }, Math.max(0, this.drawnAt + DRAW_MS - performance.now()));
  }

  // At most one drawing for each frame of the screen, and none while the page is hidden.
  draw() {
    if (this.isWaiting) return;
    this.isWaiting = true;
    requestAnimationFrame(() => {
      this.isWaiting = false;
      this.drawNow();
    });
  }

  drawNow() {
    this.drawnAt = performance.now();
    const log = this.controls.log.checked, strength = Number(this.controls.smoothing.value) / 99;
    const mean = (steps, values) => (strength > 0 && steps.length > 2 ? smoothed(steps, values, strength) : null);
    const smooth = (values) => mean(this.steps, values);
    const beside = (name) => this.other && { steps: this.other.steps, values: mean(this.other.steps, this.other[name]) || this.other[name] };
    const otherRate = this.other && { steps: this.other.steps, values: this.other.learning_rate };
    const { loss, learning_rate: rate, grad_norm: norm } = this.values;
    this.charts.get("loss").draw({ steps: this.steps, values: loss, smooth: smooth(loss), log, marks: this.marks, other: beside("loss") });
    this.charts.get("learning_rate").draw({ steps: this.steps, values: rate, other: otherRate });
    this.charts.get("grad_norm").draw({ steps: this.steps, values: norm, smooth: smooth(norm), other: beside("grad_norm") });
    for (const { steps, values, chart } of this.evaluations.values()) chart.draw({ steps, values, marks: { checkpoint: this.marks.checkpoint } });
    this.controls.note.hidden = this.isComplete;
    this.controls.note.textContent = `${this.steps.length.toLocaleString("en")} points of a longer run are shown.`;
  }
}
