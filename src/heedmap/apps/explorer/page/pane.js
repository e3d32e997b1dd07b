// A square to look into: the image itself, or a map over it. All panes share one cursor, in shares of the image.

import { SIDE, cross, frame, ring } from "./draw.js";

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export class Pane {
  // grid(): {width, height} of the cells that arrow keys step through. on: {move, leave, choose, home}.
  constructor(host, label, grid, on) {
    this.grid = grid;
    this.below = element("canvas", { width: SIDE, height: SIDE, ariaHidden: "true" });
    this.above = element("canvas", {
      width: SIDE,
      height: SIDE,
      tabIndex: 0,
      role: "application",
      ariaLabel: label,
      ariaRoleDescription: "map",
    });
    host.replaceChildren(this.below, this.above);
    this.pen = this.below.getContext("2d", { willReadFrequently: true });
    this.cursor = null;
    this.above.addEventListener("pointermove", (event) => on.move(this.placeOf(event), event));
    this.above.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && on.leave());
    this.above.addEventListener("click", (event) => on.choose(this.placeOf(event), event));
    this.above.addEventListener("keydown", (event) => this.key(event, on));
  }

  placeOf(event) {
    const box = this.above.getBoundingClientRect();
    const clip = (share) => Math.min(Math.max(share, 0), 0.99999);
    return { x: clip((event.clientX - box.left) / box.width), y: clip((event.clientY - box.top) / box.height) };
  }

  key(event, on) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in steps) {
      on.move(this.stepped(...steps[event.key]), event);
    } else if (event.key === "Enter" || event.key === " ") {
      if (this.cursor) on.choose(this.cursor, event);
    } else if (event.key === "Home" && on.home) {
      on.move(on.home(), event);
    } else {
      return;
    }
    event.preventDefault();
  }

  stepped(right, down) {
    const { width, height } = this.grid();
    if (!this.cursor) return { x: (Math.floor(width / 2) + 0.5) / width, y: (Math.floor(height / 2) + 0.5) / height };
    const along = (share, cells, step) => {
      const cell = Math.min(Math.max(Math.floor(share * cells) + step, 0), cells - 1);
      return (cell + 0.5) / cells;
    };
    return { x: along(this.cursor.x, width, right), y: along(this.cursor.y, height, down) };
  }

  // marks: {cursor, cell, hottest, query, object}, each null where there is none.
  mark(marks) {
    this.cursor = marks.cursor;
    const pen = this.above.getContext("2d");
    pen.clearRect(0, 0, SIDE, SIDE);
    if (marks.object) frame(pen, marks.object, false);
    if (marks.query) frame(pen, marks.query, true);
    if (marks.hottest) ring(pen, marks.hottest.x, marks.hottest.y);
    if (marks.cursor) cross(pen, marks.cursor.x, marks.cursor.y);
    if (marks.cell) frame(pen, marks.cell, false);
  }
}
