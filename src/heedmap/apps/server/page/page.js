// One image to /predict: its JSON and the map drawn over it. Addresses are relative, so that the app can be mounted.

const part = (name) => document.getElementById(name);

async function send(file, format) {
  const kind = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  return fetch(`predict?format=${format}`, { method: "POST", headers: { "content-type": kind }, body: file });
}

async function predict(file) {
  part("status").textContent = "Predicting ...";
  part("result").hidden = true;
  try {
    const prediction = await (await send(file, "json")).json();
    if (prediction.error) {
      part("status").textContent = prediction.error;
      return;
    }
    part("json").textContent = JSON.stringify(prediction, null, 1);
    URL.revokeObjectURL(part("map").src);
    part("map").src = URL.createObjectURL(await (await send(file, "overlay")).blob());
    part("status").textContent = `${prediction.predicted.name}, ${(100 * prediction.predicted.probability).toFixed(1)} %`;
    part("result").hidden = false;
  } catch {
    part("status").textContent = "The service does not respond.";
  }
}

part("file").addEventListener("change", ({ target }) => target.files[0] && predict(target.files[0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  part("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    part("drop").classList.toggle("over", kind === "dragover");
  });
}
part("drop").addEventListener("drop", ({ dataTransfer }) => dataTransfer.files[0] && predict(dataTransfer.files[0]));

const root = location.origin + location.pathname.replace(/\/$/, "");
const jpeg = "curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg'";
part("curl").textContent = [
  `curl -F image=@cat.jpg ${root}/predict`,
  `${jpeg} '${root}/predict?format=overlay' -o map.png`,
  `${jpeg} -H 'Accept: application/x-npy' ${root}/predict -o map.npy`,
].join("\n");
const { model } = await (await fetch("health")).json();
part("name").textContent = document.title = `heedmap: ${model}`;
