// The settings of a run: number of looks, how they are chosen, when to stop.

import { byId, el } from "./dom.js";

const POLICIES = { topk: "most probable places", sample: "drawn by probability", random: "random places (control)",
  centre: "centre first (control)" };
const SCORES = { path: "most probable, any level", density: "most probable for their size",
  gain: "largest expected gain" };
const STOPS = { mean_looks: "mean looks per image", at_least: "accuracy to reach", max_ms: "milliseconds" };
const DEFAULTS = { mean_looks: 2, at_least: 0.9, max_ms: 500 };

export class Controls {
  /** `changed()` is called when the user changes a setting, `run()` when a run is asked for. */
  constructor(model, changed, run) {
    this.model = model;
    const option = (value, text) => el("option", { value }, text);
    const group = (label, mode, names, words) =>
      el("optgroup", { label }, ...names.map((name) => option(`${mode}:${name}`, words[name] ?? name)));
    byId("chooser").append(group("Level by level, as trained", "policy", model.policies, POLICIES));
    if (model.can_search) byId("chooser").append(group("Best first, one by one", "search", model.scores, SCORES));
    byId("chooser-label").hidden = !byId("chooser").options.length;
    const stops = model.calibrated ? ["mean_looks", "at_least", "max_ms"] : ["max_ms"];
    byId("stop").append(...stops.map((name) => option(name, `by ${STOPS[name]}`)));
    byId("looks").addEventListener("input", () => { this.refresh(); changed(); });
    byId("chooser").addEventListener("change", () => { this.refresh(); changed(); });
    byId("stop").addEventListener("change", () => {
      byId("stop-value").value = DEFAULTS[byId("stop").value] ?? "";
      this.refresh();
      if (byId("stop").value) this.looks = byId("looks").max; // the rule ends them
      changed();
    });
    byId("stop-value").addEventListener("change", () => changed());
    byId("controls").addEventListener("submit", (event) => { event.preventDefault(); run(); });
    byId("fewer").onclick = () => this.step(-1, changed);
    byId("more").onclick = () => this.step(1, changed);
    this.set({ looks: model.default_looks });
  }

  get looks() {
    return Number(byId("looks").value);
  }

  set looks(count) {
    byId("looks").value = count;
    this.refresh();
  }

  step(by, changed) {
    const before = this.looks;
    this.looks = before + by;
    if (this.looks !== before) changed();
  }

  /** Everything but the number of looks, as the server takes it. */
  get settings() {
    const [mode, name] = (byId("chooser").value || "policy:").split(":");
    const limit = Number(byId("stop-value").value), stop = byId("stop").value;
    return { mode, policy: (mode === "policy" && name) || this.model.policy, score: mode === "search" ? name : "path",
      stop: mode === "search" && stop && limit > 0 ? { [stop]: limit } : null };
  }

  /** Take settings from a link; what is unknown is left. */
  set({ looks, mode, policy, score, stop, limit }) {
    const value = mode === "search" ? `search:${score ?? "path"}` : `policy:${policy ?? this.model.policy}`;
    if ([...byId("chooser").options].some((option) => option.value === value)) byId("chooser").value = value;
    const isRule = limit > 0 && [...byId("stop").options].some((option) => option.value === stop);
    byId("stop").value = isRule ? stop : "";
    byId("stop-value").value = isRule ? limit : "";
    this.refresh();
    if (looks >= 0) this.looks = looks;
  }

  refresh() {
    const slider = byId("looks"), isSearch = byId("chooser").value.startsWith("search");
    slider.max = isSearch ? this.model.max_search_looks : this.model.max_looks;
    const where = !isSearch && this.model.levels > 2 ? " at level 1" : ""; // as many inside each as in training
    byId("looks-shown").textContent = `${slider.value} of ${slider.max}${where}`;
    byId("fewer").disabled = slider.value === slider.min;
    byId("more").disabled = slider.value === slider.max;
    byId("stop-label").hidden = !isSearch;
    byId("stop-value").hidden = byId("stop-label").hidden || !byId("stop").value;
  }
}
