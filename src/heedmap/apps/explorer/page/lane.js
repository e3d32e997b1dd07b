// A row: what one run predicts for the image of the page, with maps of one method and one target class.

import { Tile, fileName, percent, save } from "./tile.js";
import { element } from "./pane.js";
import * as api from "./api.js";

const LEARNED = "attention";
const LETTERS = "ABCDEFGH";
const MAX_BARS = 5;

export class Lane {
  // page: what all rows share, see main.js. choice: {run, method, target}; target null is the predicted class.
  constructor(page, choice) {
    this.page = page;
    this.choice = choice;
    this.tiles = [];
    this.prediction = null;
    this.head = element("div", { className: "lane-head" });
    this.bars = element("div", { className: "bars" });
    this.row = element("div", { className: "tiles" });
    this.note = element("p", { className: "note small" });
    this.root = element("article", { className: "lane" }, this.head, element("div", { className: "lane-body" }, this.bars, this.row), this.note);
    this.build();
  }

  get run() {
    return this.page.facts.runs[this.choice.run];
  }

  get letter() {
    return LETTERS[this.page.lanes.indexOf(this)] ?? "?";
  }

  build() {
    const { runs, methods } = this.page.facts;
    this.badge = element("span", { className: "badge", ariaHidden: "true" });
    this.verdict = element("span", { className: "verdict" });
    const change = (name) => (event) => {
      this.choice[name] = event.target.value === "" ? null : name === "method" ? event.target.value : Number(event.target.value);
      if (name === "run") this.choice.target = null;
      this.build();
      this.page.predict(this);
    };
    const run = runs.length > 1
      ? this.select("Run", runs.map(({ name }, index) => [index, name]), this.choice.run, change("run"))
      : element("span", { className: "grey" }, `${this.run.name}`);
    const parts = [this.badge, run, element("span", { className: "grey small about" }, `${this.run.model}, ${this.run.attention}`)];
    if (methods.length > 1) {
      parts.push(this.select("Map method", methods.map(({ key }) => [key, key === LEARNED ? "learned attention" : key]), this.choice.method, change("method"), methods));
    }
    if (this.choice.method !== LEARNED) {
      const classes = [["", "predicted class"], ...this.run.classes.map((name, index) => [index, name])];
      parts.push(this.select("Target class", classes, this.choice.target ?? "", change("target")));
    }
    this.saveButton = element("button", { type: "button", className: "quiet", ariaLabel: "Save this row's raw maps as npz", onclick: () => this.saveMaps() }, "Raw maps");
    this.removeButton = element("button", { type: "button", className: "quiet", ariaLabel: "Remove this row", onclick: () => this.page.drop(this) }, "Remove");
    this.head.replaceChildren(...parts, this.verdict, element("span", { className: "push row" }, this.saveButton, this.removeButton));
    this.name();
  }

  name() {
    this.badge.textContent = this.letter;
    this.badge.hidden = this.removeButton.hidden = this.page.lanes.length < 2;
    this.root.ariaLabel = `Row ${this.letter}: ${this.run.name}`;
  }

  select(label, pairs, chosen, onchange, methods = []) {
    const options = pairs.map(([value, text]) => {
      const method = methods.find(({ key }) => key === value);
      const selected = String(value) === String(chosen);
      return element("option", { value, textContent: text, selected, title: method ? `${method.sentence} (${method.cost})` : "" });
    });
    return element("select", { ariaLabel: label, onchange }, ...options);
  }

  request(query) {
    const { run, method, target } = this.choice;
    return { image: this.page.image.reference, run, method, target, query };
  }

  get query() {
    const query = this.page.query;
    return query === null ? null : (query.reference ?? { x: query.x, y: query.y });
  }

  // Predicts, with another query also the image's own maps, to show how much has moved.
  async refresh(turn) {
    const slow = setTimeout(() => this.root.classList.add("busy"), 150);
    try {
      const [prediction, own] = await Promise.all([api.predict(this.request(this.query)), api.predict(this.request(null))]);
      if (turn !== this.page.turn) return;
      this.prediction = prediction;
      this.own = own;
      this.show();
    } catch (error) {
      if (error.status !== 400) throw error;
      this.refuse(error.message); // this row cannot be computed; the others can
    } finally {
      clearTimeout(slow);
      this.root.classList.remove("busy");
    }
  }

  refuse(message) {
    this.tiles = [];
    this.prediction = null;
    this.row.replaceChildren();
    this.bars.replaceChildren();
    this.verdict.replaceChildren();
    this.note.textContent = message;
  }

  show() {
    const shapes = (maps) => maps.map((map) => `${map.name} ${map.kind} ${map.height} ${map.width}`).join();
    if (shapes(this.tiles.map((tile) => tile.map)) === shapes(this.prediction.maps)) {
      this.tiles.forEach((tile, place) => (tile.map = this.prediction.maps[place]));
    } else {
      this.tiles = this.prediction.maps.map((map) => new Tile(map, this.title(map), this.page.on));
      this.row.replaceChildren(...this.tiles.map((tile) => tile.root));
    }
    for (const tile of this.tiles) tile.pane.above.ariaLabel = tile.label();
    this.showPrediction();
    this.note.textContent = [this.prediction.note, this.moved()].filter(Boolean).join(" ");
    this.root.dataset.follows = this.prediction.follows_query;
    this.page.redraw();
  }

  title(map) {
    return map.kind === "features" ? `features ${map.name}` : map.name;
  }

  showPrediction() {
    const { probabilities, predicted } = this.prediction;
    const label = this.page.image.label;
    const name = this.run.classes[predicted];
    const right = label === null ? "" : label === name ? "right" : "wrong";
    const mark = right && element("span", { className: `mark-${right}` }, right === "right" ? "right" : `wrong, truth: ${label}`);
    this.verdict.replaceChildren(element("b", {}, name), ` ${percent(probabilities[predicted])} `, mark);
    const order = probabilities.map((share, place) => [share, place]).sort((one, other) => other[0] - one[0]);
    this.bars.replaceChildren(...order.slice(0, MAX_BARS).map(([share, place]) => this.bar(share, place)));
  }

  bar(share, place) {
    const name = this.run.classes[place];
    const fill = element("i");
    fill.style.width = `${100 * share}%`;
    return element("div", { className: place === this.prediction.predicted ? "bar first" : "bar" },
      element("span", { title: name }, name), element("span", { className: "number" }, percent(share)), element("div", { className: "track" }, fill));
  }

  // Half the summed difference of two maps that sum to one: the share of the attention that lies elsewhere now.
  moved() {
    if (!this.prediction.follows_query) return "";
    const parts = this.prediction.maps.filter((map) => map.kind === "map" && map.name !== "combined").map((map) => {
      const before = this.own.maps.find((each) => each.name === map.name).values;
      const total = before.reduce((sum, value) => sum + value, 0);
      if (Math.abs(total - 1) > 1e-3) return "";
      const apart = map.values.reduce((sum, value, place) => sum + Math.abs(value - before[place]), 0) / 2;
      return `${map.name} ${percent(apart)}`;
    });
    const moved = parts.filter(Boolean).join(", ");
    return moved && `Against the image's own query, this share of the attention lies elsewhere: ${moved}.`;
  }

  scaleOf(map) {
    const [least, most] = map.values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
    if (this.page.view.scale === "span") return [least, most > least ? most : least + 1];
    if (this.page.view.scale === "own") return [map.low, map.high];
    const same = this.page.lanes.flatMap((lane) => lane.tiles.map((tile) => tile.map)).filter((each) => each.name === map.name && each.method === map.method);
    return [Math.min(...same.map((each) => each.low)), Math.max(...same.map((each) => each.high))];
  }

  draw() {
    const { opacity, threshold, smooth } = this.page.view;
    for (const tile of this.tiles) tile.draw({ pale: this.page.pixels.paled, scale: this.scaleOf(tile.map), opacity, threshold, smooth });
  }

  mark(cursor, marks) {
    const query = this.prediction?.follows_query ? this.prediction.query_box : null;
    for (const tile of this.tiles) tile.mark(cursor, { ...marks, query });
  }

  async saveMaps() {
    await this.page.guarded(async () => {
      const blob = await api.npz(this.request(this.query));
      save(blob, `${fileName(`${this.page.image.name}-${this.run.name}`)}.npz`);
    });
  }
}
