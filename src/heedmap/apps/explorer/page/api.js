// Every request to the server. An error comes as {"error": sentence}, and the sentence becomes the exception's message.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function send(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new ApiError("The explorer does not respond; is it still running in the terminal?", 0);
  }
  if (response.ok) return response;
  const content = await response.json().catch(() => ({}));
  throw new ApiError(content.error ?? `The explorer responded with status ${response.status}.`, response.status);
}

export const about = async () => (await send("/api/about")).json();
export const facts = async (reference) => (await send(`/api/images/${reference}`)).json();
export const ranking = async (run, source) => (await send(`/api/rankings/${run}/${source}`)).json();
export const viewOf = (reference) => `/api/images/${reference}/view`;
export const thumbnailOf = (reference) => `/api/images/${reference}/thumbnail`;

const post = (request) => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(request),
});

export async function upload(file, limits) {
  if (file.size > limits.bytes) {
    throw new ApiError(`${file.name} is larger than ${limits.bytes / 1e6} MB; shrink it.`, 413);
  }
  const response = await send(`/api/uploads?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
  return response.json();
}

const MAX_CACHED = 64;
const predictions = new Map();

// The same request has the same prediction as long as the explorer runs, so going back and forth is instant.
export async function predict(request) {
  const key = JSON.stringify(request);
  if (!predictions.has(key)) {
    if (predictions.size >= MAX_CACHED) predictions.delete(predictions.keys().next().value);
    const coming = send("/api/predict", post(request)).then(async (response) => unpacked(await response.json()));
    predictions.set(key, coming);
    coming.catch(() => predictions.delete(key));
  }
  return predictions.get(key);
}

export const npz = async (request) => (await send("/api/npz", post(request))).blob();

function unpacked(prediction) {
  for (const map of prediction.maps) map.values = floats(map.values);
  return prediction;
}

// float32, little-endian; read one by one so that it holds on a big-endian machine too.
export function floats(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, index) => view.getFloat32(4 * index, true));
}
