// The answer: verdict, probabilities of classes, how they evolve look by look, and the strip of what the model saw.

import { address } from "./api.js";
import { byId, el, later, percent, plural, svg } from "./dom.js";
import { sign } from "./overlay.js";

// Passing over boxes does not move the strip.
const scrollTo = later((row) => {
  byId("strip").querySelector(`[data-row="${row}"]`)?.scrollIntoView({ block: "nearest" });
}, 500);

const MOST_BARS = 6, MOST_LINES = 4;
const CHART = { width: 300, height: 116, left: 42, right: 8, top: 8, bottom: 20 };

/**
 * Show an answer.
 *
 * `model`: with `classes` and `multilabel`; `answer`: `{looks, probs}`; `curve`: the known answers by ascending number
 * of looks; `truth`: the label, or null; `stopped`: whether a stopping rule ended the looks.
 */
export function showAnswer({ model: { classes, multilabel }, answer, curve, truth, stopped }) {
  const order = [...answer.probs.keys()].sort((a, b) => answer.probs[b] - answer.probs[a]);
  const chosen = multilabel ? order.filter((index) => answer.probs[index] >= 0.5) : order.slice(0, 1);
  const labels = truth === null ? [] : multilabel ? truth.split("|") : [truth];
  const names = chosen.map((index) => classes[index]);
  const shown = order.filter((index, place) => place < MOST_BARS || labels.includes(classes[index]));
  const isRight = names.length === labels.length && names.every((name) => labels.includes(name));
  const after = answer.looks ? `after ${plural(answer.looks, "look")}` : "from the whole image, small, without looks";
  const verdict = isRight ? "✓ as labelled" : `✗ labelled ${labels.join(", ")}`;
  byId("answer").replaceChildren(
    el("p", { class: "muted" }, `Answer ${after}${stopped ? "  ·  stopped by itself" : ""}`),
    el("p", { class: "verdict" }, el("span", {}, names.join(", ") || "no label above 50 %"),
      el("b", {}, chosen.length === 1 ? percent(answer.probs[chosen[0]]) : "")),
    truth === null ? "" : el("p", { class: isRight ? "truth right" : "truth wrong" }, verdict),
    el("ul", { class: "bars" }, ...shown.map((index) =>
      bar(classes[index], answer.probs[index], chosen.includes(index), labels.includes(classes[index])))),
    order.length > shown.length ? el("p", { class: "muted" }, `the most probable of ${order.length} classes`) : "",
    curve.length > 1 ? chart(classes, answer, curve, order.slice(0, MOST_LINES)) : "",
  );
}

export function showWaiting(text) {
  byId("answer").replaceChildren(el("p", { class: "waiting" }, text));
}

function bar(name, prob, isBest, isTrue) {
  const fill = el("i");
  fill.style.width = `${100 * prob}%`;
  return el("li", { class: isBest ? "best" : null, title: name },
    el("span", {}, isTrue ? `✓ ${name}` : name),
    el("span", { class: "track" }, fill),
    el("span", { class: "number" }, percent(prob)));
}

function chart(classes, answer, curve, lines) {
  const { width, height, left, right, top, bottom } = CHART;
  const last = Math.max(curve.at(-1).looks, 1);
  const x = (looks) => left + ((width - left - right) * looks) / last;
  const y = (prob) => height - bottom - (height - top - bottom) * prob;
  const [first, end] = [curve[0], curve.at(-1)], best = lines[0];
  const point = ({ looks, probs }) => `${percent(probs[best])} after ${plural(looks, "look")}`;
  const summary = `Probability of ${classes[best]}: ${point(first)}, ${point(end)}`;
  const grid = [0, 0.5, 1].flatMap((prob) => [
    svg("line", { class: "grid", x1: left, x2: width - right, y1: y(prob), y2: y(prob) }),
    svg("text", { x: left - 5, y: y(prob) + 3.5, "text-anchor": "end" }, `${100 * prob} %`)]);
  const ticks = [...new Set([0, Math.round(last / 2), last])].map((looks) => {
    const isLast = looks === last, anchor = isLast ? "end" : "middle";
    return svg("text", { x: x(looks), y: height - 6, "text-anchor": anchor }, isLast ? plural(looks, "look") : looks);
  });
  const radius = curve.length > 12 ? 1.5 : 2.5;
  const paths = lines.map((index, i) => svg("g", { class: `line line-${i}` },
    svg("polyline", { points: curve.map(({ looks, probs }) => `${x(looks)},${y(probs[index])}`).join(" ") }),
    ...curve.map(({ looks, probs }) => svg("circle", { cx: x(looks), cy: y(probs[index]), r: radius }))));
  const now = svg("line", { class: "now", x1: x(answer.looks), x2: x(answer.looks), y1: top, y2: height - bottom });
  return el("figure", {},
    svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": summary },
      ...grid, now, ...paths.reverse(), ...ticks),
    el("figcaption", {}, ...lines.map((index, i) => el("span", {},
      svg("svg", { class: `line line-${i}`, viewBox: "0 0 22 6", "aria-hidden": "true" },
        svg("line", { x1: 0, x2: 22, y1: 3, y2: 3 })),
      classes[index]))));
}

/** Show what the model saw; `on`: functions `hover(row)`, `pick(row)`. Cards that stay are kept. */
export function showStrip(run, regions, classes, on) {
  const strip = byId("strip"), known = new Map([...strip.children].map((card) => [card.dataset.key, card]));
  byId("strip-title").hidden = !regions.length;
  strip.replaceChildren(...regions.map((region) => {
    const key = JSON.stringify([run, region]);
    return known.get(key) ?? card(key, run, region, classes, on);
  }));
}

function card(key, run, region, classes, on) {
  const { row, level, asked, top, weight } = region;
  const name = row === 0 ? "Whole image" : `Look ${row}`;
  const share = weight === null ? null : `weight ${percent(weight)}`;
  const words = [name, row && asked ? "asked by you" : null, row ? `level ${level}` : null,
    top && `alone ${classes[top[0]]} ${percent(top[1])}`, share];
  return el("button", {
    type: "button", class: "card", "data-key": key, "data-row": row, "aria-label": words.filter(Boolean).join(", "),
    title: row ? "Zoom to it" : "Show the whole image",
    click: () => on.pick(row), pointerenter: () => on.hover(row), pointerleave: () => on.hover(null),
    focus: () => on.hover(row), blur: () => on.hover(null),
  },
    el("img", { src: address("/api/look", { run, row }), alt: "", loading: "lazy" }),
    el("span", { class: "caption" }, row ? sign(level, String(row), asked) : null,
      el("span", {}, row ? (asked ? "yours" : `level ${level}`) : name)),
    top && el("span", { class: "alone" }, classes[top[0]]),
    top && el("span", { class: "muted" }, `alone ${percent(top[1])}`),
    share && el("span", { class: "muted" }, share));
}

/** Mark one card, and bring it into view after a moment if `scroll`. */
export function highlightCard(row, scroll) {
  for (const item of byId("strip").children) {
    const own = Number(item.dataset.row) === row;
    item.classList.toggle("hot", own);
  }
  scrollTo(scroll && row !== null ? row : null);
}
