// `tnet view`: opens images, runs the model on them, and links the list, the image and the answer.

import { highlightCard, showAnswer, showStrip, showWaiting } from "./answer.js";
import { address, load, loadModel, send } from "./api.js";
import { Controls } from "./controls.js";
import { byId, el, later, plural } from "./dom.js";
import { ImageList } from "./images.js";
import { sign } from "./overlay.js";
import { Stage } from "./stage.js";

let model, controls, list, stage;
let image = null, asked = [], results = new Map(), resultsKey = "", running = null, opening = null;

// --- messages

function say(title, error) {
  const [strong, text] = byId("message").children;
  strong.textContent = title;
  text.textContent = error.message;
  byId("message").hidden = false;
}

function quiet() {
  byId("message").hidden = true;
}

// --- images

async function open(path, view = null, places = []) {
  opening?.abort();
  running?.abort();
  const request = (opening = new AbortController());
  list.mark(path);
  setAsking(false);
  quiet();
  [image, asked] = [null, []];
  byId("title").textContent = path;
  document.title = `${path} · tnet view`;
  byId("label").hidden = true;
  clear("Looking …");
  try {
    const found = await load("/api/image", { path }, request.signal);
    image = found;
    stage.open(found, view);
    showLabel();
    remember();
    await runAgain(places, request);
  } catch (error) {
    if (error.name === "AbortError") return;
    clear("No answer.");
    stage.close();
    say("This image cannot be shown", error);
    remember();
  }
}

// Ask for the places of a link after as many looks as then, since later looks depend on them.
async function runAgain(places, request) {
  const { looks } = controls;
  for (const place of places) {
    controls.looks = place.looks;
    asked = [...asked, place];
    await run();
    if (opening !== request) return; // another image
  }
  controls.looks = looks;
  await run();
}

// --- runs

// Results with the same settings by number of looks, on which weights depend. The server keeps the traversal and takes
// only looks that are new.
function stored() {
  const key = JSON.stringify([image.path, controls.settings, asked]);
  if (key !== resultsKey) [results, resultsKey] = [new Map(), key];
  return results;
}

async function run(again = false) {
  if (!image) return;
  running?.abort();
  const known = stored(), { looks, settings } = controls;
  if (again) known.clear();
  if (!known.has(looks)) {
    const request = (running = new AbortController()), boxes = asked.map(({ box }) => box);
    document.body.classList.add("busy");
    try {
      known.set(looks, await send("/api/run", { path: image.path, looks, ...settings, asked: boxes }, request.signal));
    } catch (error) {
      if (error.name === "AbortError") return;
      clear("No answer.");
      say("The model did not answer", error);
    } finally {
      if (running === request) document.body.classList.remove("busy");
    }
  }
  if (known === results && known.has(controls.looks)) show();
  remember();
}

function show() {
  const found = results.get(controls.looks), answer = found.answers.at(-1);
  const curve = new Map([...results.values()].flatMap(({ answers }) => answers.map((each) => [each.looks, each])));
  stage.overlay.show(found.regions, found.cells);
  showAnswer({ model, answer, curve: [...curve.values()].sort((a, b) => a.looks - b.looks),
    truth: image.typed_label ?? image.label, stopped: found.stopped });
  showStrip(found.run, found.regions, model.classes, { hover: (row) => hover(row, false), pick });
  showExports(found.run, answer.rows);
}

function clear(text) {
  stage.overlay.show([], []);
  showWaiting(text);
  showStrip(null, [], model.classes);
  showExports(null);
}

function ask(box) {
  setAsking(false);
  asked = [...asked, { looks: controls.looks, box }];
  run();
}

// --- links between the parts

function hover(row, scroll) {
  stage.overlay.highlight(row);
  highlightCard(row, scroll);
}

function pick(row) {
  const region = stage.overlay.regions.find((each) => each.row === row);
  if (region) stage.zoomTo(region.box);
  else stage.fit();
}

function setAsking(on) {
  if (on && !(image && model.can_search)) return;
  stage.setAsking(on);
  byId("ask").setAttribute("aria-pressed", on);
  byId("hint").hidden = !on;
}

function showLayers() {
  const { overlay } = stage;
  overlay.boxes.setAttribute("visibility", byId("boxes").checked ? "visible" : "hidden");
  overlay.numbers.setAttribute("visibility", byId("boxes").checked ? "visible" : "hidden");
  overlay.heat.setAttribute("visibility", byId("heat").checked ? "visible" : "hidden");
  overlay.heat.setAttribute("opacity", byId("opacity").value);
  byId("opacity").hidden = document.querySelector(".ramp").hidden = !byId("heat").checked;
}

// --- labels and exports

function showLabel() {
  byId("label").hidden = !model.labels;
  byId("label-value").value = image.typed_label ?? "";
  byId("label-state").textContent = "";
}

async function saveLabel() {
  const target = image, label = byId("label-value").value.trim();
  if (!target || !label) return;
  try {
    await send("/api/label", { path: target.path, label });
    target.typed_label = label;
    byId("label-state").textContent = "saved";
    if (target === image && stored().has(controls.looks)) show();
  } catch (error) {
    say("The label was not saved", error);
  }
}

function showExports(run, rows) {
  byId("png").disabled = run === null;
  for (const link of byId("export").querySelectorAll("a")) {
    if (run === null) link.removeAttribute("href");
    else link.href = address("/api/export", { run, rows, format: link.dataset.format });
  }
}

async function savePng() {
  const verdict = [...byId("answer").querySelector(".verdict").children].map((part) => part.textContent).join(" ");
  const caption = [image.path, verdict, plural(stage.overlay.regions.length, "look"), model.name].join("  ·  ");
  try {
    const canvas = await stage.snapshot(caption);
    const url = URL.createObjectURL(await new Promise((resolve) => canvas.toBlob(resolve)));
    el("a", { href: url, download: `${image.path.split("/").at(-1)}.view.png` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  } catch (error) {
    say("The image was not saved", error);
  }
}

// --- the link

function remember() {
  const { mode, policy, score, stop } = controls.settings, path = byId("title").textContent;
  if (!path) return;
  const [rule, limit] = Object.entries(stop ?? {})[0] ?? [null, null];
  const places = asked.map(({ looks, box }) => [looks, ...box].join(".")).join("_") || null;
  const parts = Object.entries({ path, looks: controls.looks, mode, policy, score, stop: rule, limit, asked: places,
    ...stage.view });
  history.replaceState(null, "", `#${new URLSearchParams(parts.filter(([, value]) => value !== null))}`);
}

async function follow() {
  const link = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  controls.set({ ...link, looks: Number(link.looks) });
  const view = { x: Number(link.x), y: Number(link.y), zoom: Number(link.zoom) };
  const places = (link.asked ?? "").split("_").map((place) => place.split(".").map(Number))
    .filter((place) => place.length === 5 && place.every(Number.isInteger))
    .map(([looks, ...box]) => ({ looks, box }));
  const isView = Object.values(view).every(Number.isFinite) && view.zoom > 0;
  if (link.path) await open(link.path, isView ? view : null, model.can_search ? places : []);
  else if (list.items.length) await open(list.items[0].path);
  else showWaiting("No images here.");
}

async function copyLink() {
  remember();
  await navigator.clipboard.writeText(location.href).catch(() => prompt("The link:", location.href));
  byId("link").textContent = "Copied";
  setTimeout(() => { byId("link").textContent = "Copy link"; }, 1500);
}

// --- keys and theme

const KEYS = {
  ArrowUp: () => list.step(-1), ArrowDown: () => list.step(1), ArrowLeft: () => byId("fewer").click(),
  ArrowRight: () => byId("more").click(), l: () => byId("ask").click(), b: () => byId("boxes").click(),
  h: () => byId("heat").click(), t: () => byId("theme").click(), "/": () => byId("search").focus(),
  "+": () => byId("zoom-in").click(), "=": () => byId("zoom-in").click(), "-": () => byId("zoom-out").click(),
  0: () => byId("fit").click(), "?": () => byId("help").click(),
};

function onKey(event) {
  if (event.key === "Escape") {
    setAsking(false);
    byId("export").open = false;
  }
  if (event.key === "Enter" && event.target.closest("#stage")) stage.askMiddle();
  const typing = event.target.closest("input:not([type=checkbox]), select, textarea, dialog");
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("tnet-theme", theme);
}

function wire() {
  byId("ask").onclick = () => setAsking(byId("ask").getAttribute("aria-pressed") !== "true");
  for (const id of ["boxes", "heat", "opacity"]) byId(id).addEventListener("input", showLayers);
  byId("message").querySelector("button").onclick = quiet;
  byId("png").onclick = savePng;
  byId("link").onclick = copyLink;
  byId("help").onclick = () => byId("keys").showModal();
  const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
  byId("theme").onclick = () => {
    const { theme = systemIsDark.matches ? "dark" : "light" } = document.documentElement.dataset;
    setTheme(theme === "dark" ? "light" : "dark");
  };
  byId("label").addEventListener("submit", (event) => { event.preventDefault(); saveLabel(); });
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", (event) => {
    if (!byId("export").contains(event.target)) byId("export").open = false;
  });
  addEventListener("hashchange", follow);
  byId("sign-1").append(sign(1, "1"));
  byId("sign-2").append(sign(2, "2"));
  byId("sign-asked").append(sign(1, "3", true));
}

async function start() {
  if (localStorage.getItem("tnet-theme")) setTheme(localStorage.getItem("tnet-theme"));
  try {
    model = await loadModel();
  } catch (error) {
    say("The viewer cannot start", error);
    return;
  }
  byId("model").textContent = model.name;
  byId("ask").hidden = !model.can_search;
  byId("classes").append(...model.classes.map((value) => el("option", { value })));
  const soon = later(run, 80);
  controls = new Controls(model, () => soon(), () => run(true));
  stage = new Stage({ hover: (row) => hover(row, true), pick, moved: remember, asked: ask,
    failed: (path, error) => { if (path === image?.path) say("A part of this image cannot be shown", error); } });
  list = new ImageList(open, say);
  list.setClasses(model.classes);
  wire();
  showLayers();
  await list.reload();
  await follow();
}

start();
