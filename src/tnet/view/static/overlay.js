// Boxes, numbers and the heat of cells over the image, in an SVG whose coordinates are pixels of the image.
// Presentation attributes instead of CSS: the PNG export draws the same SVG, where the page's style does not reach.

import { svg } from "./dom.js";

export const COLORS = ["#ff9d1e", "#17c3b2", "#ff5fa2", "#9b8cff", "#b7e23b"]; // levels 1, 2, ..., as in `tnet explain`
const DASHES = ["", "9 4", "3 3", "12 3 3 3", "1 4"];
// From rarely to most probable: magma between black and white, so that it shows on dark and on bright images.
const RAMP = [[81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]];
const HALO_PX = [5, 8], LINE_PX = [2.5, 4.5]; // widths, plain and highlighted
const UNSCALED = { "vector-effect": "non-scaling-stroke" };
const DARK = "rgba(0,0,0,.7)";

export const color = (level) => COLORS[(Math.max(level, 1) - 1) % COLORS.length];
const dash = (level) => DASHES[(Math.max(level, 1) - 1) % DASHES.length];

/** Make the sign of a level's boxes with a number, for legends and lists. */
export function sign(level, text, asked = false) {
  const box = { x: 2, y: 2, width: 22, height: 16, rx: asked ? 8 : 1, fill: color(level) };
  return svg("svg", { class: "sign", viewBox: "0 0 26 20", "aria-hidden": "true" },
    svg("rect", { ...box, ...(level > 1 || asked ? { stroke: "#000", "stroke-dasharray": dash(level) } : {}) }),
    svg("text", { x: 13, y: 14.5, "text-anchor": "middle", "font-size": 12, "font-weight": 700, fill: "#000" }, text));
}

function heatColor(share) {
  const at = Math.min(share, 0.9999) * (RAMP.length - 1);
  const from = RAMP[Math.floor(at)], to = RAMP[Math.floor(at) + 1];
  return `rgb(${from.map((value, i) => Math.round(value + (to[i] - value) * (at % 1))).join()})`;
}

const place = ([y0, x0, y1, x1]) => ({ x: x0, y: y0, width: x1 - x0, height: y1 - y0 });

export const covers = ([y0, x0, y1, x1], { x, y }) => y0 <= y && y < y1 && x0 <= x && x < x1;

const area = ([y0, x0, y1, x1]) => (y1 - y0) * (x1 - x0);

export class Overlay {
  constructor() {
    this.heat = svg("g", { class: "heat" });
    this.halos = svg("g", {});
    this.lines = svg("g", {});
    this.boxes = svg("g", { class: "boxes" }, this.halos, this.lines);
    this.draft = svg("rect", { class: "draft", visibility: "hidden", ...frame("#fff", 2, "6 4") });
    this.world = svg("g", {}, this.heat, this.boxes, this.draft);
    const font = { "font-family": "system-ui, sans-serif", "font-weight": 700, "font-size": 12 };
    this.numbers = svg("g", { class: "numbers", ...font });
    this.root = svg("svg", { class: "overlay", "aria-hidden": "true" }, this.world, this.numbers);
    this.regions = [];
    this.cells = [];
    this.hot = null;
    this.scale = 1;
  }

  /** Show these regions, and the cells of those that were scored. */
  show(regions, cells) {
    this.regions = regions.filter((region) => region.row > 0);
    this.cells = cells.filter((scored) => scored.probs?.length);
    this.heat.replaceChildren(...this.cells.map(heatOf));
    this.halos.replaceChildren(...this.regions.map(haloOf));
    this.lines.replaceChildren(...this.regions.map(lineOf));
    this.numbers.replaceChildren(...this.regions.map(numberOf));
    if (!this.regions.some((region) => region.row === this.hot)) this.hot = null;
    this.highlight(this.hot);
    this.place(this.scale, this.dx, this.dy);
  }

  /** Align with the image: screen = scale * pixel + (dx, dy). */
  place(scale, dx = 0, dy = 0) {
    Object.assign(this, { scale, dx, dy });
    this.world.setAttribute("transform", `matrix(${scale} 0 0 ${scale} ${dx} ${dy})`);
    const taken = new Set(); // numbers of equal boxes stand side by side
    this.regions.forEach((region, i) => {
      const [y0, x0, y1, x1] = region.box, corner = (Math.max(region.level, 1) - 1) % 4;
      const width = Number(this.numbers.children[i].dataset.width);
      const right = corner === 1 || corner === 2, bottom = corner > 1;
      const y = scale * (bottom ? y1 : y0) + dy - (bottom ? 18 : 0);
      let x = scale * (right ? x1 : x0) + dx - (right ? width : 0);
      while (taken.has(`${x} ${y}`)) x += (right ? -1 : 1) * (width + 2);
      taken.add(`${x} ${y}`);
      this.numbers.children[i].setAttribute("transform", `translate(${x} ${y})`);
    });
  }

  /** Mark one region, its cells and number; `null`: none. */
  highlight(row) {
    this.hot = row;
    const hasCells = this.cells.some((scored) => scored.row === row);
    for (const group of this.heat.children) {
      const own = Number(group.dataset.row) === row;
      group.setAttribute("opacity", hasCells && !own ? 0.15 : 1);
      group.setAttribute("stroke", hasCells && own ? "#fff" : "none");
    }
    for (const node of [...this.halos.children, ...this.lines.children, ...this.numbers.children]) {
      const own = Number(node.dataset.row) === row;
      node.classList.toggle("hot", own);
      node.setAttribute("opacity", row === null || own ? 1 : 0.45);
    }
    for (const [group, widths] of [[this.halos, HALO_PX], [this.lines, LINE_PX]]) {
      for (const node of group.children) node.setAttribute("stroke-width", widths[Number(node.matches(".hot"))]);
    }
  }

  /** Return the smallest region over a pixel of the image, or `null`. */
  at(point) {
    const found = this.regions.filter((region) => covers(region.box, point));
    return found.sort((a, b) => area(a.box) - area(b.box))[0] ?? null;
  }

  /** Return the probability of the cell over a pixel in the deepest region that was scored, or `null`. */
  probabilityAt(point) {
    for (const scored of [...this.cells].reverse()) {
      const cell = scored.boxes.findIndex((box) => covers(box, point));
      if (cell >= 0) return scored.probs[cell];
    }
    return null;
  }

  setDraft(box) {
    const shown = box ? { ...place(box), visibility: "visible" } : { visibility: "hidden" };
    for (const [name, value] of Object.entries(shown)) this.draft.setAttribute(name, value);
  }
}

function frame(stroke, width, dashes = "") {
  return { fill: "none", stroke, "stroke-width": width, "stroke-dasharray": dashes, ...UNSCALED };
}

function haloOf({ row, box }) {
  return svg("rect", { "data-row": row, ...place(box), ...frame(DARK, HALO_PX[0]) });
}

function lineOf({ row, level, box, asked }) {
  return svg("rect", { "data-row": row, "data-box": box.join(), "data-asked": asked, ...place(box),
    ...frame(color(level), LINE_PX[0], dash(level)) });
}

function numberOf({ row, level, asked }) {
  const width = 10 + 7 * String(row).length;
  return svg("g", { "data-row": row, "data-width": width },
    svg("rect", { width, height: 18, fill: color(level),
      ...(asked ? { rx: 9, stroke: "#fff", "stroke-width": 2 } : { rx: 2, stroke: DARK }) }),
    svg("text", { x: width / 2, y: 13.5, "text-anchor": "middle", fill: "#000" }, String(row)));
}

/** Draw the cells of one region; where cells overlap, the largest probability is shown. */
function heatOf({ row, boxes, probs }) {
  const most = Math.max(...probs, 1e-12);
  const ys = edges(boxes.flatMap(([y0, , y1]) => [y0, y1])), xs = edges(boxes.flatMap(([, x0, , x1]) => [x0, x1]));
  const group = svg("g", { "data-row": row, stroke: "none", "stroke-width": 1, "shape-rendering": "crispEdges" });
  for (let i = 0; i + 1 < ys.length; i++) {
    for (let j = 0; j + 1 < xs.length; j++) {
      const over = probs.filter((_, cell) => covers(boxes[cell], { x: xs[j], y: ys[i] }));
      if (!over.length) continue;
      const box = [ys[i], xs[j], ys[i + 1], xs[j + 1]], share = Math.max(...over) / most;
      const fill = { fill: heatColor(share), "fill-opacity": (0.15 + 0.85 * share).toFixed(3) };
      group.append(svg("rect", { ...place(box), ...fill, ...UNSCALED, "data-cell": box.join() }));
    }
  }
  return group;
}

const edges = (values) => [...new Set(values)].sort((a, b) => a - b);
