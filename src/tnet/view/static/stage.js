// The image: deep zoom, the overlay, scale bar, coordinates, and drawing a box.

import { address, load } from "./api.js";
import { byId, later, percent } from "./dom.js";
import { Overlay } from "./overlay.js";

const TAP_PX = 6; // shorter drags are clicks
const { OpenSeadragon } = window;

export class Stage {
  /** `on`: functions `hover(row)`, `pick(row)`, `moved()`, `asked(box)`, `failed(path, error)`. */
  constructor(on) {
    this.on = on;
    this.image = null;
    this.asking = null; // the pixel where a box begins, or true before
    this.overlay = new Overlay();
    forgoStyle();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const drawer = new URLSearchParams(location.search).get("drawer");
    this.viewer = new OpenSeadragon({
      element: byId("stage"), ...(drawer && { drawer, navigatorDrawer: drawer }), showNavigationControl: false,
      showNavigator: true, navigatorId: "minimap", navigatorAutoFade: false, animationTime: still ? 0 : 0.4,
      maxZoomPixelRatio: 16, minZoomImageRatio: 0.7, visibilityRatio: 0.4, preserveImageSizeOnResize: true,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, gestureSettingsTouch: { clickToZoom: false },
    });
    this.viewer.canvas.append(this.overlay.root);
    this.viewer.canvas.setAttribute("aria-label", "Image; drag to move, scroll to zoom");
    for (const event of ["update-viewport", "open", "resize"]) this.viewer.addHandler(event, () => this.align());
    this.viewer.addHandler("animation-finish", () => this.on.moved());
    this.viewer.addHandler("tile-load-failed", later(({ tile }) => this.explain(tile.getUrl()), 100));
    this.viewer.addHandler("canvas-key", (event) => {
      event.preventDefaultAction = !"wasd".includes(event.originalEvent.key.toLowerCase()); // others are the page's
    });
    this.viewer.addHandler("canvas-click", (event) => this.click(event));
    this.viewer.addHandler("canvas-press", (event) => this.press(event));
    this.viewer.addHandler("canvas-drag", (event) => this.drag(event));
    this.viewer.addHandler("canvas-drag-end", (event) => { if (this.asking) event.preventDefaultAction = true; });
    this.viewer.addHandler("canvas-release", (event) => this.release(event));
    this.viewer.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.viewer.canvas.addEventListener("pointerleave", () => this.leave());
    byId("zoom-in").onclick = () => this.zoomBy(1.5);
    byId("zoom-out").onclick = () => this.zoomBy(1 / 1.5);
    byId("fit").onclick = () => this.fit();
  }

  /** Show an image at a view `{x, y, zoom}`, or whole. */
  open(image, view = null) {
    this.image = image;
    byId("minimap").classList.remove("empty");
    const { width, height, tile_px: tileSize, max_level: maxLevel, path } = image;
    const tile = (level, col, row) => address("/api/tile", { path, level, col, row });
    const minLevel = Math.max(0, maxLevel - Math.ceil(Math.log2(Math.max(width, height) / tileSize)));
    const source = new OpenSeadragon.TileSource({ width, height, tileSize, minLevel, maxLevel, getTileUrl: tile });
    this.viewer.addOnceHandler("open", () => { if (view) this.moveTo(view); else this.align(); });
    this.viewer.open(source);
  }

  close() {
    this.image = null;
    this.viewer.close();
    byId("scale").hidden = true;
    byId("minimap").classList.add("empty");
    byId("place").textContent = "";
  }

  get item() {
    return this.image && this.viewer.world.getItemAt(0);
  }

  get view() {
    const { viewport } = this.viewer;
    if (!this.item) return null;
    const { x, y } = viewport.viewportToImageCoordinates(viewport.getCenter());
    const zoom = viewport.viewportToImageZoom(viewport.getZoom());
    return { x: Math.round(x), y: Math.round(y), zoom: Number(zoom.toPrecision(4)) };
  }

  moveTo({ x, y, zoom }) {
    const { viewport } = this.viewer;
    viewport.zoomTo(viewport.imageToViewportZoom(zoom), null, true);
    viewport.panTo(viewport.imageToViewportCoordinates(x, y), true);
    viewport.applyConstraints(true);
  }

  fit() {
    if (this.item) this.viewer.viewport.goHome();
  }

  zoomBy(factor) {
    if (this.item) this.viewer.viewport.zoomBy(factor).applyConstraints();
  }

  zoomTo([y0, x0, y1, x1]) {
    if (!this.item) return;
    const margin = 0.35 * Math.max(y1 - y0, x1 - x0);
    const { viewport } = this.viewer;
    viewport.fitBoundsWithConstraints(
      viewport.imageToViewportRectangle(x0 - margin, y0 - margin, x1 - x0 + 2 * margin, y1 - y0 + 2 * margin));
  }

  align() {
    if (!this.item) return;
    const { viewport } = this.viewer;
    const at = (x, y) => viewport.pixelFromPoint(viewport.imageToViewportCoordinates(x, y), true);
    const origin = at(0, 0), end = at(this.image.width, 0);
    const scale = (end.x - origin.x) / this.image.width;
    this.overlay.place(scale, origin.x, origin.y);
    drawScale(scale, this.image.spacing);
  }

  setAsking(on) {
    this.asking = on || null;
    this.overlay.setDraft(null);
    this.viewer.element.classList.toggle("asking", on);
    if (on) this.viewer.canvas.focus();
  }

  /** Ask for a look at the middle of the view. */
  askMiddle() {
    if (this.asking && this.item) this.finish(this.around(this.view));
  }

  // Pixels of the image under a point of the canvas.
  pixel(point) {
    const { viewport } = this.viewer;
    return viewport.viewportToImageCoordinates(viewport.pointFromPixel(point, true));
  }

  press(event) {
    if (this.asking && this.item) this.asking = this.pixel(event.position);
  }

  drag(event) {
    if (!this.asking || !this.item) return;
    event.preventDefaultAction = true;
    this.overlay.setDraft(this.drawn(this.pixel(event.position)));
  }

  release(event) {
    if (this.asking?.x === undefined || !this.item) return;
    const end = this.pixel(event.position), length_px = Math.hypot(end.x - this.asking.x, end.y - this.asking.y);
    if (length_px * this.overlay.scale > TAP_PX) this.finish(this.drawn(end));
  }

  finish(box) {
    if (box[0] < box[2] && box[1] < box[3]) this.on.asked(box);
    else this.setAsking(true);
  }

  // Whole pixels of the image between where the drawing began and a point.
  drawn(end) {
    const clip = (value, most) => Math.min(Math.max(Math.round(value), 0), most);
    const { width, height } = this.image;
    const xs = [clip(this.asking.x, width), clip(end.x, width)].sort((a, b) => a - b);
    const ys = [clip(this.asking.y, height), clip(end.y, height)].sort((a, b) => a - b);
    return [ys[0], xs[0], ys[1], xs[1]];
  }

  // A box around a click, as large as the smallest look so far, or a fifth of the image, inside it.
  around({ x, y }) {
    const { width, height } = this.image, fifth = Math.ceil(Math.min(width, height) / 5);
    const sides = this.overlay.regions.map(({ box: [y0, x0, y1, x1] }) => [y1 - y0, x1 - x0]);
    const [h, w] = sides.sort((a, b) => a[0] * a[1] - b[0] * b[1])[0] ?? [fifth, fifth];
    if (x < 0 || y < 0 || x >= width || y >= height) return [0, 0, 0, 0];
    const fit = (value, side, most) => Math.max(0, Math.min(Math.round(value - side / 2), most - side));
    const y0 = fit(y, h, height), x0 = fit(x, w, width);
    return [y0, x0, Math.min(y0 + h, height), Math.min(x0 + w, width)];
  }

  click(event) {
    if (!this.item) return;
    if (this.asking) return this.finish(this.around(this.pixel(event.position)));
    if (!event.quick) return;
    const region = this.overlay.at(this.pixel(event.position));
    if (region) this.on.pick(region.row);
  }

  point(event) {
    if (!this.item) return;
    const frame = this.viewer.canvas.getBoundingClientRect();
    const pixel = this.pixel(new OpenSeadragon.Point(event.clientX - frame.left, event.clientY - frame.top));
    const x = Math.floor(pixel.x), y = Math.floor(pixel.y);
    const inside = x >= 0 && y >= 0 && x < this.image.width && y < this.image.height;
    const region = inside ? this.overlay.at(pixel) : null;
    if ((region?.row ?? null) !== this.overlay.hot) this.on.hover(region?.row ?? null);
    const words = inside ? placeNames(this.image, x, y) : [];
    if (region) words.push(`look ${region.row}`);
    const cell = inside ? this.overlay.probabilityAt(pixel) : null;
    if (cell !== null) words.push(`location ${percent(cell)}`);
    byId("place").textContent = words.join("  ·  ");
  }

  leave() {
    byId("place").textContent = "";
    this.on.hover(null);
  }

  // Say why a tile is missing.
  async explain(url) {
    const problem = await load(url).catch((error) => error);
    if (problem instanceof Error) this.on.failed(new URL(url, location.href).searchParams.get("path"), problem);
  }

  /** Return a canvas of the view: tiles, overlay and a caption. */
  async snapshot(caption) {
    const tiles = this.viewer.drawer.canvas, frame = this.viewer.canvas.getBoundingClientRect();
    const ratio = tiles.width / frame.width, bar = Math.round(30 * ratio);
    const canvas = Object.assign(document.createElement("canvas"), { width: tiles.width, height: tiles.height + bar });
    const context = canvas.getContext("2d");
    context.fillStyle = getComputedStyle(this.viewer.element).backgroundColor;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(tiles, 0, 0);
    const copy = this.overlay.root.cloneNode(true);
    for (const [name, value] of [["width", frame.width], ["height", frame.height]]) copy.setAttribute(name, value);
    const url = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" }));
    const drawn = new Image(tiles.width, tiles.height);
    drawn.src = url;
    await drawn.decode().finally(() => URL.revokeObjectURL(url));
    context.drawImage(drawn, 0, 0, tiles.width, tiles.height);
    context.fillStyle = "#16202c";
    context.fillRect(0, tiles.height, canvas.width, bar);
    context.fillStyle = "#fff";
    context.font = `${13 * ratio}px system-ui, sans-serif`;
    const [scale, text] = byId("scale").children, width = scale.clientWidth * ratio, base = tiles.height + 20 * ratio;
    const right = canvas.width - 10 * ratio - context.measureText(text.textContent).width;
    context.fillText(text.textContent, right, base);
    context.fillRect(right - 8 * ratio - width, base - 6 * ratio, width, 3 * ratio);
    context.fillText(caption, 10 * ratio, base, right - width - 30 * ratio);
    return canvas;
  }
}

// OpenSeadragon adds an inline style, which the Content-Security-Policy refuses, unless it finds one; browsers do not
// apply this one, which has no namespace.
function forgoStyle() {
  const none = document.createElementNS(null, "style");
  none.setAttribute("data-openseadragon-mobile-css", "");
  document.head.append(none);
}

function placeNames({ spacing, geo }, x, y) {
  const words = [`x ${x}, y ${y} px`];
  if (geo) {
    const [a, b, c, d, e, f] = geo.transform, digits = spacing?.unit === "deg" ? 6 : 1;
    const east = a * (x + 0.5) + b * (y + 0.5) + c, north = d * (x + 0.5) + e * (y + 0.5) + f;
    words.push(`${east.toFixed(digits)}, ${north.toFixed(digits)} (${geo.crs})`);
  } else if (spacing) {
    words.push(`${length(x * spacing.x, spacing.unit)}, ${length(y * spacing.y, spacing.unit)}`);
  }
  return words;
}

function length(value, unit) {
  const [factor, name] = { um: value >= 1000 ? [1000, "mm"] : [1, "µm"], m: value >= 1000 ? [1000, "km"] : [1, "m"],
    deg: [1, "°"], px: [1, "px"] }[unit];
  return `${Number((value / factor).toPrecision(3))} ${name}`;
}

// A bar of a round length between 70 and 175 px on the screen.
function drawScale(scale, spacing) {
  const [bar, text] = byId("scale").children, perUnit = scale / (spacing?.x ?? 1);
  const least = 70 / perUnit, power = 10 ** Math.floor(Math.log10(least));
  const round = [1, 2, 5, 10].find((factor) => factor * power >= least) * power;
  bar.style.width = `${round * perUnit}px`;
  text.textContent = length(round, spacing?.unit ?? "px");
  byId("scale").hidden = false;
}
