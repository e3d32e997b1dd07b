// A row: one run, one map method and one target class, asked about the image of the page.

import { Tile, fileName, percent, save } from "./tile.js";
import { element } from "./pane.js";
import * as wire from "./wire.js";

const LEARNED = "attention";
const LETTERS = "ABCDEFGH";
const MOST_BARS = 5;

export class Lane {
  // page: what all rows share, see main.js. choice: {run, method, target}; target null is the predicted class.
  constructor(page, choice) {
    this.page = page;
    this.choice = choice;
    this.tiles = [];
    this.reply = null;
    this.head = element("div", { className: "lane-head" });
    this.bars = element("div", { className: "bars" });
    this.row = element("div", { className: "tiles" });
    this.said = element("p", { className: "said small" });
    this.root = element("article", { className: "lane" }, this.head, element("div", { className: "lane-body" }, this.bars, this.row), this.said);
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
      this.page.ask(this);
    };
    const run = runs.length > 1
      ? this.select("Run", runs.map((each, place) => [place, each.name]), this.choice.run, change("run"))
      : element("span", { className: "grey" }, `${this.run.name}`);
    const parts = [this.badge, run, element("span", { className: "grey small about" }, `${this.run.model}, ${this.run.attention}`)];
    if (methods.length > 1) {
      parts.push(this.select("Map method", methods.map((each) => [each.key, each.key === LEARNED ? "learned attention" : each.key]), this.choice.method, change("method"), methods));
    }
    if (this.choice.method !== LEARNED) {
      const classes = [["", "predicted class"], ...this.run.classes.map((name, place) => [place, name])];
      parts.push(this.select("Target class", classes, this.choice.target ?? "", change("target")));
    }
    this.keep = element("button", { type: "button", className: "quiet", ariaLabel: "Save this row's raw maps as npz", onclick: () => this.saveMaps() }, "Raw maps");
    this.remove = element("button", { type: "button", className: "quiet", ariaLabel: "Remove this row", onclick: () => this.page.drop(this) }, "Remove");
    this.head.replaceChildren(...parts, this.verdict, element("span", { className: "push row" }, this.keep, this.remove));
    this.name();
  }

  name() {
    this.badge.textContent = this.letter;
    this.badge.hidden = this.remove.hidden = this.page.lanes.length < 2;
    this.root.ariaLabel = `Row ${this.letter}: ${this.run.name}`;
  }

  select(label, pairs, chosen, onchange, told = []) {
    const options = pairs.map(([value, text]) => {
      const title = told.find((each) => each.key === value);
      const selected = String(value) === String(chosen);
      return element("option", { value, textContent: text, selected, title: title ? `${title.sentence} (${title.cost})` : "" });
    });
    return element("select", { ariaLabel: label, onchange }, ...options);
  }

  question(query) {
    const { run, method, target } = this.choice;
    return { image: this.page.image.reference, run, method, target, query };
  }

  get asked() {
    const query = this.page.query;
    return query === null ? null : (query.reference ?? { x: query.x, y: query.y });
  }

  // Asks, and with a foreign query also for the image's own maps, to tell how much moved.
  async refresh(turn) {
    const slow = setTimeout(() => this.root.classList.add("busy"), 150);
    try {
      const [reply, own] = await Promise.all([wire.ask(this.question(this.asked)), wire.ask(this.question(null))]);
      if (turn !== this.page.turn) return;
      this.reply = reply;
      this.own = own;
      this.show();
    } catch (error) {
      if (error.status !== 400) throw error;
      this.refuse(error.message); // this row cannot be had; the others can
    } finally {
      clearTimeout(slow);
      this.root.classList.remove("busy");
    }
  }

  refuse(message) {
    this.tiles = [];
    this.reply = null;
    this.row.replaceChildren();
    this.bars.replaceChildren();
    this.verdict.replaceChildren();
    this.said.textContent = message;
  }

  show() {
    const shapes = (maps) => maps.map((map) => `${map.name} ${map.kind} ${map.height} ${map.width}`).join();
    if (shapes(this.tiles.map((tile) => tile.map)) === shapes(this.reply.maps)) {
      this.tiles.forEach((tile, place) => (tile.map = this.reply.maps[place]));
    } else {
      this.tiles = this.reply.maps.map((map) => new Tile(map, this.title(map), this.page.on));
      this.row.replaceChildren(...this.tiles.map((tile) => tile.root));
    }
    for (const tile of this.tiles) tile.pane.above.ariaLabel = tile.label();
    this.showAnswer();
    this.said.textContent = [this.reply.said, this.moved()].filter(Boolean).join(" ");
    this.root.dataset.follows = this.reply.follows;
    this.page.redraw();
  }

  title(map) {
    return map.kind === "features" ? `features ${map.name}` : map.name;
  }

  showAnswer() {
    const { probabilities, predicted } = this.reply;
    const label = this.page.image.label;
    const name = this.run.classes[predicted];
    const right = label === null ? "" : label === name ? "right" : "wrong";
    const mark = right && element("span", { className: `mark-${right}` }, right === "right" ? "right" : `wrong, truth: ${label}`);
    this.verdict.replaceChildren(element("b", {}, name), ` ${percent(probabilities[predicted])} `, mark);
    const order = probabilities.map((share, place) => [share, place]).sort((one, other) => other[0] - one[0]);
    this.bars.replaceChildren(...order.slice(0, MOST_BARS).map(([share, place]) => this.bar(share, place)));
  }

  bar(share, place) {
    const name = this.run.classes[place];
    const fill = element("i");
    fill.style.width = `${100 * share}%`;
    return element("div", { className: place === this.reply.predicted ? "bar first" : "bar" },
      element("span", { title: name }, name), element("span", { className: "number" }, percent(share)), element("div", { className: "track" }, fill));
  }

  // Half the summed difference of two maps that sum to one: the share of the attention that lies elsewhere now.
  moved() {
    if (!this.reply.follows) return "";
    const parts = this.reply.maps.filter((map) => map.kind === "map" && map.name !== "combined").map((map) => {
      const before = this.own.maps.find((each) => each.name === map.name).values;
      const total = before.reduce((sum, value) => sum + value, 0);
      if (Math.abs(total - 1) > 1e-3) return "";
      const apart = map.values.reduce((sum, value, place) => sum + Math.abs(value - before[place]), 0) / 2;
      return `${map.name} ${percent(apart)}`;
    });
    const told = parts.filter(Boolean).join(", ");
    return told && `Against the image's own query, this share of the attention lies elsewhere: ${told}.`;
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
    const query = this.reply?.follows ? this.reply.box : null;
    for (const tile of this.tiles) tile.mark(cursor, { ...marks, query });
  }

  async saveMaps() {
    await this.page.guarded(async () => {
      const blob = await wire.npz(this.question(this.asked));
      save(blob, `${fileName(`${this.page.image.name}-${this.run.name}`)}.npz`);
    });
  }
}
