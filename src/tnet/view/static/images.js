// The list of images: search, filters, thumbnails, keys.

import { address, load } from "./api.js";
import { byId, el, later, percent, plural } from "./dom.js";

const PAGE = 100;
const FILTERS = ["filter", "label-filter", "predicted-filter"];

export class ImageList {
  /** `open(path)` is called when the user chooses an image. */
  constructor(open, failed) {
    this.open = open;
    this.failed = failed;
    this.items = [];
    this.total = 0;
    this.current = null;
    this.request = null;
    this.end = el("div", { class: "end" });
    const reload = later(() => this.reload(), 150);
    byId("search").addEventListener("input", reload);
    for (const id of FILTERS) byId(id).addEventListener("change", () => this.reload());
    new IntersectionObserver(([entry]) => {
      if (entry.isIntersecting && this.items.length < this.total) this.extend();
    }, { root: byId("list"), rootMargin: "400px" }).observe(this.end);
  }

  setClasses(classes) {
    for (const id of FILTERS.slice(1)) byId(id).append(...classes.map((name) => el("option", { value: name }, name)));
  }

  async reload() {
    this.request?.abort();
    this.request = null;
    this.items = [];
    await this.extend();
  }

  async extend() {
    if (this.request) return;
    const request = (this.request = new AbortController());
    const query = { search: byId("search").value, filter: byId("filter").value, label: byId("label-filter").value,
      predicted: byId("predicted-filter").value, offset: this.items.length, limit: PAGE };
    try {
      const { total, items } = await load("/api/images", query, request.signal);
      if (!this.items.length) byId("list").replaceChildren();
      this.total = total;
      this.items.push(...items);
      byId("list").append(...items.map((item) => this.row(item)), this.end);
      byId("count").textContent = plural(total, "image");
      if (items.some((item) => item.label !== null || item.predicted !== null)) this.offerFilters(items);
    } catch (error) {
      if (error.name !== "AbortError") this.failed("The images cannot be listed", error);
    } finally {
      if (this.request === request) this.request = null;
    }
    this.mark(this.current, false);
  }

  offerFilters(items) {
    const some = (name) => items.some((item) => item[name] !== null);
    byId("filters").hidden = false;
    if (some("label")) byId("label-filter").hidden = false;
    if (some("predicted")) byId("filter").hidden = byId("predicted-filter").hidden = false;
  }

  row({ path, label, predicted, probability }) {
    const slash = path.lastIndexOf("/"), folder = path.slice(0, slash + 1);
    const right = label === null || predicted === null ? null : label === predicted;
    const mark = right === null ? "" : right ? "✓ " : "✗ ";
    const answer = predicted === null ? label && `label ${label}` :
      `${mark}${predicted}${probability === null ? "" : ` ${percent(probability)}`}`;
    return el("button", { type: "button", class: "item", "data-path": path, title: path, click: () => this.open(path) },
      el("img", { src: address("/api/thumb", { path }), alt: "", loading: "lazy",
        error: (event) => event.target.removeAttribute("src") }),
      el("span", { class: "name" }, path.slice(slash + 1)),
      el("span", { class: right === false ? "wrong" : "muted" }, [answer, folder].filter(Boolean).join("  ·  ")));
  }

  /** Mark the image that is open. */
  mark(path, scroll = true) {
    this.current = path;
    for (const item of byId("list").querySelectorAll(".item")) {
      const own = item.dataset.path === path;
      if (own) {
        item.setAttribute("aria-current", "true");
        if (scroll) item.scrollIntoView({ block: "nearest" });
      } else item.removeAttribute("aria-current");
    }
  }

  /** Open the next image, or the previous one for -1. */
  step(by) {
    const at = this.items.findIndex((item) => item.path === this.current);
    const next = this.items[at < 0 ? 0 : at + by];
    if (next) this.open(next.path);
    if (at + by + 10 > this.items.length && this.items.length < this.total) this.extend();
  }
}
