// Draws lines over time as SVG, with a readout under the pointer.  Times are in the reader's time zone.
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 160, LEFT = 52, RIGHT = 8, TOP = 8, BOTTOM = 20;

const make = (name, attributes = {}, text = "") => {
  const one = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
  if (text) one.textContent = text;
  return one;
};

export const number = (value) =>
  Math.abs(value) >= 1e6 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4));

const clock = (seconds, precise) =>
  new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", ...(precise ? { second: "2-digit" } : {}) });

/** Steps of 1, 2 or 5 times a power of ten, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(at);
  return found;
}

/** A plot in `place`.  `lines` are {name, color, points: [[x, y]]}; null as y interrupts a line. */
export class Plot {
  constructor(place, label) {
    this.place = place;
    this.lines = [];
    this.svg = make("svg", { role: "img", "aria-label": label });
    this.readout = document.createElement("div");
    this.readout.className = "readout";
    place.append(this.svg);
    place.after(this.readout);
    this.svg.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    new ResizeObserver(() => this.draw()).observe(place);
  }

  show(lines) {
    this.lines = lines;
    this.draw();
  }

  draw() {
    const width = this.place.clientWidth, all = this.lines.flatMap((line) => line.points);
    const values = all.map(([, y]) => y).filter((y) => y !== null);
    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    if (!width || !all.length) return;
    const least = (list) => list.reduce((a, b) => Math.min(a, b), Infinity), most = (list) => list.reduce((a, b) => Math.max(a, b), -Infinity);
    let x0 = least(all.map(([x]) => x)), x1 = most(all.map(([x]) => x));
    let y0 = values.length ? least(values) : 0, y1 = values.length ? most(values) : 1;
    if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
    if (y0 > 0 && y0 < (y1 - y0) * 2) y0 = 0;
    if (y0 === y1) [y0, y1] = y0 === 0 ? [0, 1] : [Math.min(0, y0), Math.max(0, y1)];
    this.x = (x) => LEFT + ((x - x0) / (x1 - x0)) * (width - LEFT - RIGHT);
    this.y = (y) => HEIGHT - BOTTOM - ((y - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM);
    for (const at of ticks(y0, y1, 4)) {
      this.svg.append(make("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: this.y(at), y2: this.y(at) }));
      this.svg.append(make("text", { x: LEFT - 6, y: this.y(at) + 4, "text-anchor": "end" }, number(at)));
    }
    const steps = Math.max(1, Math.floor((width - LEFT) / 110));
    for (let i = 0; i <= steps; i++) {
      const at = x0 + ((x1 - x0) * i) / steps, anchor = i === 0 ? "start" : i === steps ? "end" : "middle";
      this.svg.append(make("text", { x: this.x(at), y: HEIGHT - 5, "text-anchor": anchor }, clock(at, x1 - x0 < 300)));
    }
    for (const line of this.lines) {
      let path = "", open = false;
      for (const [at, [x, y]] of line.points.entries()) {
        if (y === null) { open = false; continue; }
        const isAlone = !open && (line.points[at + 1]?.[1] ?? null) === null;
        path += `${open ? "L" : "M"}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}${isAlone ? "m-2 0h4" : ""}`;
        open = true;
      }
      this.svg.append(make("path", { class: `c${line.color}`, d: path }));
    }
    this.point(null);
  }

  /** The values nearest to the pointer; without a pointer, the last ones. */
  point(offset) {
    this.svg.querySelector(".pointer")?.remove();
    const nearest = (points) => points.reduce((a, b) => (Math.abs(this.x(b[0]) - offset) < Math.abs(this.x(a[0]) - offset) ? b : a));
    const chosen = this.lines.filter((line) => line.points.length).map((line) => [line, offset === null ? line.points.at(-1) : nearest(line.points)]);
    this.readout.replaceChildren(...chosen.map(([line, [, y]]) => {
      const one = document.createElement("span");
      one.className = `k${line.color}`;
      one.textContent = `${line.name} ${y === null ? "–" : number(y)}`;
      return one;
    }));
    if (offset === null || !chosen.length) return;
    const x = chosen[0][1][0], when = document.createElement("span");
    when.textContent = clock(x, true);
    this.readout.prepend(when);
    this.svg.append(make("line", { class: "pointer", x1: this.x(x), x2: this.x(x), y1: TOP, y2: HEIGHT - BOTTOM }));
  }
}
