// Everything that is asked of the server. A reply that is no success carries a sentence; it becomes the error's text.

export class Trouble extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function asked(address, options) {
  let reply;
  try {
    reply = await fetch(address, options);
  } catch {
    throw new Trouble("The explorer does not answer; is it still running in the terminal?", 0);
  }
  if (reply.ok) return reply;
  const said = await reply.json().catch(() => ({}));
  throw new Trouble(said.message ?? `The explorer answered ${reply.status}.`, reply.status);
}

export const about = async () => (await asked("/api/about")).json();
export const facts = async (reference) => (await asked(`/api/images/${reference}`)).json();
export const walk = async (run, source) => (await asked(`/api/walks/${run}/${source}`)).json();
export const viewOf = (reference) => `/api/images/${reference}/view`;
export const thumbnailOf = (reference) => `/api/images/${reference}/thumbnail`;

const body = (question) => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(question),
});

export async function upload(file, limits) {
  if (file.size > limits.bytes) {
    throw new Trouble(`${file.name} is larger than ${limits.bytes / 1e6} MB; shrink it.`, 413);
  }
  const reply = await asked(`/api/uploads?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
  return reply.json();
}

const KEPT = 64;
const replies = new Map();

// The same question has the same answer as long as the explorer runs, so going back and forth is instant.
export async function ask(question) {
  const key = JSON.stringify(question);
  if (!replies.has(key)) {
    if (replies.size >= KEPT) replies.delete(replies.keys().next().value);
    const coming = asked("/api/ask", body(question)).then(async (reply) => unpacked(await reply.json()));
    replies.set(key, coming);
    coming.catch(() => replies.delete(key));
  }
  return replies.get(key);
}

export const npz = async (question) => (await asked("/api/npz", body(question))).blob();

function unpacked(reply) {
  for (const map of reply.maps) map.values = floats(map.values);
  return reply;
}

// float32, little-endian; read one by one so that it holds on a big-endian machine too.
export function floats(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, place) => view.getFloat32(4 * place, true));
}
