// Maps and images to pixels, by the same rules as heedmap.visualization.heatmap: each place as opaque as it is hot, over an image
// that is paled to a quarter of its colour, on the scale that is named and no other.

export const SIDE = 384;

let colours = new Uint8Array(768);

export function setColours(hex) {
  colours = Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));
}

export async function image(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const canvas = new OffscreenCanvas(SIDE, SIDE);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.imageSmoothingQuality = "high";
  pen.drawImage(image, 0, 0, SIDE, SIDE);
  const pixels = pen.getImageData(0, 0, SIDE, SIDE).data;
  return { image, paled: paled(pixels) };
}

function paled(pixels) {
  const pale = new Float32Array(SIDE * SIDE * 3);
  for (let from = 0, to = 0; from < pixels.length; from += 4, to += 3) {
    const grey = 0.299 * pixels[from] + 0.587 * pixels[from + 1] + 0.114 * pixels[from + 2];
    for (let channel = 0; channel < 3; channel++) pale[to + channel] = 0.75 * grey + 0.25 * pixels[from + channel];
  }
  return pale;
}

// The map's values at SIDE x SIDE pixels: linear between the centres of its cells, or the cells themselves.
export function spread(map, smooth) {
  const field = new Float32Array(SIDE * SIDE);
  const xs = axis(map.width, smooth);
  const ys = axis(map.height, smooth);
  for (let y = 0, place = 0; y < SIDE; y++) {
    const above = ys.first[y] * map.width;
    const below = ys.second[y] * map.width;
    const down = ys.share[y];
    for (let x = 0; x < SIDE; x++, place++) {
      const left = xs.first[x];
      const right = xs.second[x];
      const over = xs.share[x];
      const top = map.values[above + left] * (1 - over) + map.values[above + right] * over;
      const bottom = map.values[below + left] * (1 - over) + map.values[below + right] * over;
      field[place] = top * (1 - down) + bottom * down;
    }
  }
  return field;
}

function axis(cells, smooth) {
  const first = new Int32Array(SIDE);
  const second = new Int32Array(SIDE);
  const share = new Float32Array(SIDE);
  for (let pixel = 0; pixel < SIDE; pixel++) {
    const place = ((pixel + 0.5) * cells) / SIDE;
    if (!smooth) {
      first[pixel] = second[pixel] = Math.min(Math.floor(place), cells - 1);
      continue;
    }
    const centred = Math.min(Math.max(place - 0.5, 0), cells - 1);
    first[pixel] = Math.floor(centred);
    second[pixel] = Math.min(first[pixel] + 1, cells - 1);
    share[pixel] = centred - first[pixel];
  }
  return { first, second, share };
}

// Returns the mask (1 where the map is at or above the threshold) and its share of the area.
export function masked(field, [low, high], threshold) {
  const least = low + threshold * (high - low);
  const mask = new Uint8Array(field.length);
  let inside = 0;
  for (let place = 0; place < field.length; place++) {
    if (field[place] >= least) {
      mask[place] = 1;
      inside++;
    }
  }
  return { mask, least, share: inside / field.length };
}

// `paled` null draws the map by itself, as features are drawn.
export function paint(pen, pale, field, [low, high], opacity, mask) {
  const image = pen.createImageData(SIDE, SIDE);
  const out = image.data;
  for (let place = 0; place < field.length; place++) {
    const heat = Math.min(Math.max((field[place] - low) / (high - low), 0), 1);
    const colour = 3 * Math.round(heat * 255);
    const outside = mask && !mask[place];
    const share = pale ? (outside ? 0 : opacity * Math.sqrt(heat)) : 1;
    const dim = outside ? 0.38 : 1;
    for (let channel = 0; channel < 3; channel++) {
      const ground = pale ? pale[3 * place + channel] : 0;
      out[4 * place + channel] = dim * (ground * (1 - share) + colours[colour + channel] * share);
    }
    out[4 * place + 3] = 255;
  }
  if (mask) outline(out, mask);
  pen.putImageData(image, 0, 0);
}

function outline(out, mask) {
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      const place = y * SIDE + x;
      if (!mask[place]) continue;
      const edge =
        (x > 0 && !mask[place - 1]) ||
        (x < SIDE - 1 && !mask[place + 1]) ||
        (y > 0 && !mask[place - SIDE]) ||
        (y < SIDE - 1 && !mask[place + SIDE]);
      if (edge) out.set([255, 255, 255], 4 * place);
    }
  }
}

export function bar(canvas) {
  const pen = canvas.getContext("2d");
  canvas.width = 256;
  canvas.height = 1;
  const image = pen.createImageData(256, 1);
  for (let place = 0; place < 256; place++) {
    image.data.set([...colours.subarray(3 * place, 3 * place + 3), 255], 4 * place);
  }
  pen.putImageData(image, 0, 0);
}

// Light inside dark, so that a line shows on any ground.
export function frame(pen, box, dashed) {
  const [left, top, right, bottom] = box.map((share) => share * SIDE);
  pen.setLineDash(dashed ? [7, 5] : []);
  for (const [width, colour] of [[4.5, "rgb(0 0 0 / .75)"], [2, "#fff"]]) {
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.strokeRect(left + 1, top + 1, right - left - 2, bottom - top - 2);
  }
  pen.setLineDash([]);
}

export function ring(pen, x, y, radius = 10) {
  for (const [width, colour] of [[4.5, "rgb(0 0 0 / .75)"], [2, "#fff"]]) {
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.beginPath();
    pen.arc(x * SIDE, y * SIDE, radius, 0, 2 * Math.PI);
    pen.stroke();
  }
}

export function cross(pen, x, y) {
  pen.lineWidth = 1;
  for (const [shift, colour] of [[1, "rgb(0 0 0 / .6)"], [0, "rgb(255 255 255 / .85)"]]) {
    pen.strokeStyle = colour;
    pen.beginPath();
    pen.moveTo(Math.round(x * SIDE) + 0.5 + shift, 0);
    pen.lineTo(Math.round(x * SIDE) + 0.5 + shift, SIDE);
    pen.moveTo(0, Math.round(y * SIDE) + 0.5 + shift);
    pen.lineTo(SIDE, Math.round(y * SIDE) + 0.5 + shift);
    pen.stroke();
  }
}
