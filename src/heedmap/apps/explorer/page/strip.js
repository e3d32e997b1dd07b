// The images to browse, in an order that the network's predictions make.

import { element } from "./pane.js";
import { percent } from "./tile.js";
import * as api from "./api.js";

const CHUNK = 48;
const column = { predicted: 0, confidence: 1, loss: 2, peak: 3, pointing: 4 };

// key: [name, rank of a row (larger comes first, null last), what is written under the image]
const ORDERS = {
  given: ["their own order", null, null],
  loss: ["loss, highest first", (row) => row[column.loss], (row) => `loss ${row[column.loss].toFixed(2)}`],
  unsure: ["confidence, least first", (row) => -row[column.confidence], (row) => percent(row[column.confidence])],
  sure: ["confidence, most first", (row) => row[column.confidence], (row) => percent(row[column.confidence])],
  sharp: ["map, sharpest first", (row) => row[column.peak], (row) => `peak ${row[column.peak].toFixed(1)}×`],
  flat: ["map, flattest first", (row) => -row[column.peak], (row) => `peak ${row[column.peak].toFixed(1)}×`],
  pointing: ["map, beside the object first", (row) => (row[column.pointing] === null ? null : Number(!row[column.pointing])), (row) => (row[column.pointing] ? "in the box" : "beside it")],
};

export class Strip {
  // page: see main.js. choose(reference), asQuery(reference) are called when an image is picked.
  constructor(page, { choose, asQuery }) {
    this.page = page;
    this.choose = choose;
    this.asQuery = asQuery;
    this.rankings = new Map();
    this.part = (name) => document.getElementById(name);
    this.root = this.part("strip");
    const sources = page.facts.sources;
    this.root.hidden = sources.length === 0;
    if (this.root.hidden) return;
    this.fill("source", sources.map((source, place) => [place, `${source.title} (${source.names.length.toLocaleString("en")})`]));
    this.fill("sort", Object.entries(ORDERS).map(([key, [name]]) => [key, name]));
    this.fill("by", page.facts.runs.map((run, place) => [place, run.name]));
    this.part("by-label").hidden = page.facts.runs.length < 2;
    for (const name of ["source", "sort", "by", "only"]) this.part(name).addEventListener("change", () => this.reorder(name === "source"));
    this.part("previous").addEventListener("click", () => this.step(-1));
    this.part("next").addEventListener("click", () => this.step(1));
    this.film = this.part("film");
    this.film.addEventListener("scroll", () => this.more());
    this.film.addEventListener("keydown", (event) => this.key(event));
    this.reorder(true);
  }

  fill(name, pairs) {
    this.part(name).replaceChildren(...pairs.map(([value, text]) => element("option", { value, textContent: text })));
  }

  get source() {
    return Number(this.part("source").value);
  }

  get rows() {
    return this.rankings.get(`${this.part("by").value} ${this.source}`)?.rows;
  }

  get hasLabels() {
    return this.page.facts.sources[this.source].labels.some((label) => label !== null);
  }

  async reorder(isNewSource) {
    if (isNewSource) {
      const labels = [...new Set(this.page.facts.sources[this.source].labels)].filter((label) => label !== null);
      const known = labels.length ? [["wrong", "mistakes only"], ...labels.sort().map((label) => [`=${label}`, label])] : [];
      this.fill("only", [["", "all"], ...known]);
    }
    const sort = this.part("sort").value;
    if (sort !== "given" || this.part("only").value === "wrong") await this.page.guarded(() => this.rank());
    this.show();
  }

  // The server ranks in the background; polls until it is done.
  async rank() {
    const [run, source] = [this.part("by").value, this.source];
    const key = `${run} ${source}`;
    const mine = (this.turn = Symbol(key));
    while (this.turn === mine) {
      const state = await api.ranking(run, source);
      this.rankings.set(key, state);
      this.part("strip-state").textContent = state.failure;
      if (state.rows.length >= state.total || state.failure) break;
      this.part("strip-state").textContent = `ranking ${state.rows.length} of ${state.total} …`;
      await new Promise((done) => setTimeout(done, 300));
    }
  }

  show() {
    const [, rank, written] = ORDERS[this.part("sort").value];
    const only = this.part("only").value;
    const { names, labels } = this.page.facts.sources[this.source];
    let places = names.map((_, place) => place);
    if (only.startsWith("=")) places = places.filter((place) => labels[place] === only.slice(1));
    if (only === "wrong") places = places.filter((place) => this.verdict(place) === "wrong");
    if (rank) {
      const ranks = names.map((_, place) => (this.rows?.[place] ? (rank(this.rows[place]) ?? -Infinity) : -Infinity));
      places.sort((one, other) => ranks[other] - ranks[one] || one - other);
    }
    this.order = places;
    this.written = written;
    this.part("strip-state").textContent = places.length === names.length ? "" : `${places.length.toLocaleString("en")} images`;
    this.film.replaceChildren();
    this.film.scrollLeft = 0;
    this.more();
    this.highlight();
  }

  verdict(place) {
    const label = this.page.facts.sources[this.source].labels[place];
    const row = this.rows?.[place];
    if (!row || label === null) return "";
    return this.page.facts.runs[this.part("by").value].classes[row[column.predicted]] === label ? "right" : "wrong";
  }

  more() {
    const { film } = this;
    while (film.children.length < this.order.length && film.scrollLeft + 2 * film.clientWidth >= film.scrollWidth) {
      const start = film.children.length;
      film.append(...this.order.slice(start, start + CHUNK).map((place) => this.small(place)));
    }
  }

  small(place) {
    const { names, labels } = this.page.facts.sources[this.source];
    const reference = `s${this.source}-${place}`;
    const row = this.rows?.[place];
    const under = this.written && row && this.written(row);
    const name = [names[place], this.verdict(place), under].filter(Boolean).join(", ");
    const made = element("button", { type: "button", className: `small-image ${this.verdict(place)}`, title: name },
      element("img", { src: api.thumbnailOf(reference), alt: name, loading: "lazy", width: 72, height: 72 }),
      element("span", {}, under || labels[place] || names[place].split("/").pop()));
    made.dataset.reference = reference;
    made.addEventListener("click", (event) => (event.shiftKey ? this.asQuery(reference) : this.choose(reference)));
    return element("div", { role: "listitem" }, made);
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const here = step && event.target.closest("[role=listitem]");
    if (!here) return;
    const other = step > 0 ? here.nextElementSibling : here.previousElementSibling;
    other?.firstElementChild.focus();
    event.preventDefault();
  }

  highlight() {
    if (this.root.hidden) return;
    for (const each of this.film.querySelectorAll(".small-image")) {
      each.ariaCurrent = each.dataset.reference === this.page.image?.reference ? "true" : null;
    }
  }

  step(by) {
    if (this.root.hidden || this.order.length === 0) return;
    const [, source, place] = this.page.image?.reference.match(/^s(\d+)-(\d+)$/) ?? [];
    const here = Number(source) === this.source ? this.order.indexOf(Number(place)) : -1;
    const next = Math.min(Math.max(here + by, 0), this.order.length - 1);
    while (this.film.children.length <= next) this.film.append(...this.order.slice(this.film.children.length, this.film.children.length + CHUNK).map((each) => this.small(each)));
    this.film.children[next].scrollIntoView({ block: "nearest", inline: "nearest" });
    this.choose(`s${this.source}-${this.order[next]}`);
  }
}
