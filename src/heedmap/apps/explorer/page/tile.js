// One map: drawn over the image, read cell by cell, cut by the threshold, saved.

import { SIDE, bar, masked, paint, spread } from "./draw.js";
import { Pane, element } from "./pane.js";

const digits = (value) => (value === 0 ? "0" : Math.abs(value) < 1e-4 ? value.toExponential(2) : value.toPrecision(3));
export const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

export class Tile {
  constructor(map, title, on) {
    this.map = map;
    this.title = title;
    const host = element("div", { className: "pane" });
    this.pane = new Pane(host, this.label(), () => map, { ...on, home: () => this.hottest() });
    this.low = element("span");
    this.high = element("span");
    this.ramp = element("canvas", { className: "ramp", ariaHidden: "true" });
    bar(this.ramp);
    this.read = element("p", { className: "value" });
    this.share = element("p", { className: "share small" });
    const save = (name, label, work) =>
      element("button", { type: "button", className: "quiet", ariaLabel: `${label} of ${title}`, title: `${label} of ${title}`, onclick: work }, name);
    this.tools = element("span", { className: "push" },
      save("PNG", "Save the heatmap", () => this.saveImage()),
      save("Mask", "Save the mask", () => this.saveMask()));
    this.root = element("figure", { className: "tile" },
      element("figcaption", {}, element("b", {}, title), element("span", { className: "grey" }, `${map.height} × ${map.width}`), this.tools),
      host,
      element("div", { className: "legend" }, this.low, this.ramp, this.high),
      this.read, this.share);
    this.root.dataset.map = map.name;
  }

  label() {
    const { x, y } = this.hottest();
    const where = `row ${Math.floor(y * this.map.height) + 1}, column ${Math.floor(x * this.map.width) + 1}`;
    return `Map ${this.title}, ${this.map.height} by ${this.map.width} cells, largest value ${digits(this.peak)} at ${where}. Arrow keys read it.`;
  }

  get peak() {
    return this.map.values.reduce((most, value) => Math.max(most, value), -Infinity);
  }

  get mean() {
    return this.map.values.reduce((sum, value) => sum + value, 0) / this.map.values.length;
  }

  hottest() {
    const place = this.map.values.indexOf(this.peak);
    return { x: ((place % this.map.width) + 0.5) / this.map.width, y: (Math.floor(place / this.map.width) + 0.5) / this.map.height };
  }

  valueAt({ x, y }) {
    const row = Math.floor(y * this.map.height);
    const column = Math.floor(x * this.map.width);
    return { row, column, value: this.map.values[row * this.map.width + column] };
  }

  // view: {pale, scale: [low, high], opacity, threshold (0 switches it off), smooth}
  draw(view) {
    this.view = view;
    this.field = spread(this.map, view.smooth);
    const cut = view.threshold > 0 ? masked(this.field, view.scale, view.threshold) : null;
    this.mask = cut;
    paint(this.pane.pen, this.map.kind === "features" ? null : view.pale, this.field, view.scale, view.opacity, cut?.mask);
    [this.low.textContent, this.high.textContent] = view.scale.map(digits);
    this.share.textContent = cut ? `≥ ${digits(cut.least)} on ${percent(cut.share)} of the area` : "";
    this.root.dataset.share = cut ? cut.share.toFixed(4) : "";
  }

  mark(cursor, marks) {
    const flat = this.mean > 0 && this.peak < 1.05 * this.mean;
    const cell = cursor && this.valueAt(cursor);
    const box = cell && [cell.column / this.map.width, cell.row / this.map.height, (cell.column + 1) / this.map.width, (cell.row + 1) / this.map.height];
    this.pane.mark({ ...marks, cursor, cell: box, hottest: flat ? null : this.hottest() });
    this.read.textContent = cell ? this.reading(cell) : this.summary();
    this.root.dataset.value = cell ? String(cell.value) : "";
  }

  reading({ row, column, value }) {
    const times = this.mean > 0 && this.map.low >= 0 ? ` (${(value / this.mean).toFixed(2)} × mean)` : "";
    return `${digits(value)}${times} at ${row + 1}, ${column + 1}`;
  }

  summary() {
    const sum = this.mean * this.map.values.length;
    const what = Math.abs(sum - 1) < 1e-3 ? "uniform" : "mean";
    return this.mean > 0 ? `peak ${digits(this.peak)} = ${digits(this.peak / this.mean)} × ${what}` : `peak ${digits(this.peak)}`;
  }

  saveImage() {
    this.pane.below.toBlob((blob) => save(blob, `${fileName(this.title)}.png`), "image/png");
  }

  // Black and white; without a threshold the mask is of the upper half of the scale, and its name says so.
  saveMask() {
    const threshold = this.view.threshold || 0.5;
    const { mask } = masked(this.field, this.view.scale, threshold);
    const canvas = element("canvas", { width: SIDE, height: SIDE });
    const pen = canvas.getContext("2d");
    const image = pen.createImageData(SIDE, SIDE);
    mask.forEach((inside, place) => image.data.set([255 * inside, 255 * inside, 255 * inside, 255], 4 * place));
    pen.putImageData(image, 0, 0);
    canvas.toBlob((blob) => save(blob, `${fileName(this.title)}-mask-${Math.round(100 * threshold)}.png`), "image/png");
  }
}

export const fileName = (text) => text.replace(/[^\w.-]+/g, "_").slice(0, 80) || "map";

export function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
