// The forms of environments: images are sent one by one, folders are picked, options found, captions saved in place.
// Each form works without this script, but for sending images. Nothing that the server answers becomes markup.
const AT_ONCE = 2;

async function answerOf(address, options = {}) {
  try {
    const answer = await fetch(address, { ...options, headers: { Accept: "application/json", ...options.headers } });
    const body = await answer.json().catch(() => ({}));
    return { ok: answer.ok, ...body, detail: body.detail || (answer.ok ? "" : `The server answered ${answer.status}.`) };
  } catch {
    return { ok: false, detail: "The server does not answer.", problems: [] };
  }
}

function element(name, text = "", values = {}) {
  return Object.assign(document.createElement(name), { textContent: text, ...values });
}

const many = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// ---- images that are dropped or chosen ----
function folderOf(drop) {
  if (drop.dataset.upload) return drop.dataset.upload;
  const field = document.getElementById(drop.dataset.uploadName);
  if (!field.value.trim()) {
    field.setCustomValidity("Give it a name first: it names the folder of the images.");
    field.reportValidity();
    field.addEventListener("input", () => field.setCustomValidity(""), { once: true });
    return "";
  }
  return field.value.trim();
}

// An image and its caption are sent together, so that the caption goes where the image goes.
function parcels(files) {
  const found = new Map();
  for (const file of files) {
    const stem = file.name.replace(/\.[^.]*$/, "");
    found.set(stem, [...(found.get(stem) || []), file]);
  }
  return [...found.values()];
}

async function send(drop, files) {
  const folder = folderOf(drop);
  if (!folder || !files.length || drop.dataset.busy) return;
  const [bar, said, refused] = [drop.querySelector("progress"), drop.querySelector("[data-said]"), drop.querySelector("[data-refused]")];
  const largest = Number(drop.querySelector("[data-files]").dataset.largest), waiting = parcels([...files]);
  let done = 0, stored = 0, texts = 0, count = 0, place = "";
  drop.dataset.busy = "yes";
  Object.assign(bar, { hidden: false, max: files.length, value: 0 });
  refused.replaceChildren();
  const refuse = (text) => refused.append(element("li", text, { className: "error" }));
  const sendNext = async () => {
    for (let parcel = waiting.shift(); parcel; parcel = waiting.shift()) {
      const form = new FormData();
      for (const file of parcel) {
        if (file.size > largest) refuse(`${file.name}: larger than ${largest / 1e6} MB; copy it into the folder yourself.`);
        else form.append("file", file);
      }
      const address = `/api/folders/${encodeURIComponent(folder)}/images`;
      const answer = form.has("file") ? await answerOf(address, { method: "POST", body: form }) : { ok: true, images: [], captions: [], count };
      if (answer.ok) {
        stored += answer.images.length;
        texts += answer.captions.length;
        count = Math.max(count, answer.count);
        place = answer.folder && answer.count ? answer.folder : place;
      }
      const reasons = (answer.problems || []).map((one) => [one.message, one.hint].filter(Boolean).join(" "));
      for (const reason of answer.ok || reasons.length ? reasons : [`${parcel[0].name}: ${answer.detail}`]) refuse(reason);
      done += parcel.length;
      bar.value = done;
      said.textContent = `${done} of ${files.length} sent`;
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, sendNext));
  bar.hidden = true;
  delete drop.dataset.busy;
  said.textContent = place ? `${many(stored, "image")} and ${many(texts, "caption")} of ${many(files.length, "file")} stored; ${count === 1 ? "1 image is" : `${count} images are`} in ${place} now.` : "No image was stored.";
  if (place && drop.dataset.folder) document.getElementById(drop.dataset.folder).value = place;
  if (place && drop.dataset.upload && !refused.childElementCount && !document.querySelector("[data-is-changed]")) location.reload();
}

for (const drop of document.querySelectorAll(".drop")) {
  const input = drop.querySelector("[data-files]");
  input.addEventListener("change", async () => { await send(drop, input.files); input.value = ""; });
  for (const type of ["dragenter", "dragover"]) {
    drop.addEventListener(type, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  for (const type of ["dragleave", "drop"]) drop.addEventListener(type, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); send(drop, event.dataTransfer.files); });
}

// ---- folders on the machine of the server ----
async function list(picker, field, path) {
  const answer = await answerOf(`/api/folders?path=${encodeURIComponent(path)}`);
  const box = element("div", "", { className: "picker" });
  const heading = element("p", answer.ok ? answer.folder?.path || "Folders that the server may read" : answer.detail);
  heading.setAttribute("role", "status");
  box.append(heading);
  const folders = element("ul");
  const button = (text, press) => { const made = element("button", text, { type: "button" }); made.addEventListener("click", press); return made; };
  if (answer.folder) {
    const line = element("li", `${answer.folder.images} images, ${answer.folder.captions} text files here`);
    line.append(button("Use this folder", () => {
      field.value = answer.folder.path;
      field.dispatchEvent(new Event("input", { bubbles: true }));
      box.remove();
      field.focus();
    }));
    folders.append(line);
    folders.append(element("li"));
    folders.lastChild.append(button("↑ up", () => list(picker, field, answer.parent || "")));
  }
  for (const one of answer.folders || []) {
    const line = element("li");
    line.append(button(answer.folder ? one.name : one.path, () => list(picker, field, one.path)), element("span", `${one.images} images`));
    folders.append(line);
  }
  if (answer.is_cut) folders.append(element("li", "There are more folders than are shown: type the path."));
  box.append(folders);
  picker.querySelector(".picker")?.remove();
  picker.append(box);
  box.querySelector("button")?.focus();
}

for (const picker of document.querySelectorAll("[data-picker]")) {
  const field = document.getElementById(picker.dataset.picker);
  const open = element("button", "Pick a folder of this machine…", { type: "button" });
  open.addEventListener("click", () => list(picker, field, ""));
  picker.append(open);
}

// ---- options ----
const search = document.querySelector("[data-filter]");
search?.addEventListener("input", () => {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const group of document.querySelectorAll("[data-group]")) {
    let shown = 0;
    for (const option of group.querySelectorAll("[data-words]")) {
      option.hidden = !words.every((word) => option.dataset.words.includes(word));
      shown += option.hidden ? 0 : 1;
    }
    const details = group.querySelector("details");
    details.dataset.wasOpen ??= details.open ? "yes" : "no";
    details.open = words.length ? shown > 0 : details.dataset.wasOpen === "yes";
    group.hidden = words.length > 0 && !shown;
    found += shown;
  }
  document.querySelector("[data-filter-count]").textContent = words.length ? `${found} options` : "";
});
search?.addEventListener("keydown", (event) => { if (event.key === "Enter") event.preventDefault(); });

// A link to an option opens the group that it is in.
function reveal() {
  const target = location.hash.length > 1 ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
  for (let above = target?.closest("details"); above; above = above.parentElement.closest("details")) above.open = true;
  if (target?.matches("input, select, textarea")) target.focus();
}
addEventListener("hashchange", reveal);
reveal();

// ---- what is not saved yet ----
for (const form of document.querySelectorAll("[data-unsaved]")) {
  const note = form.querySelector("[data-unsaved-note]");
  const mark = () => { form.dataset.isChanged = ""; note.hidden = false; };
  if ("isChanged" in form.dataset) mark();
  form.addEventListener("input", (event) => { if (!event.target.matches("[data-filter]")) mark(); });
  form.addEventListener("submit", () => { delete form.dataset.isChanged; });
}
addEventListener("beforeunload", (event) => { if (document.querySelector("[data-is-changed]")) event.preventDefault(); });

// ---- captions ----
for (const form of document.querySelectorAll("[data-caption]")) {
  const [text, said] = [form.elements.caption, form.querySelector("[role=status]")];
  let stored = text.defaultValue; // a browser may have kept what was typed before the page was loaded again
  const mark = () => { if (text.value === stored) delete form.dataset.isChanged; else form.dataset.isChanged = ""; };
  const save = async () => {
    if (text.value === stored || !text.value.trim()) return;
    said.textContent = "saving";
    const sent = text.value;
    const body = JSON.stringify({ file: form.elements.file.value, caption: sent });
    const answer = await answerOf(form.dataset.caption, { method: "PUT", body, headers: { "Content-Type": "application/json" } });
    stored = answer.ok ? sent : stored;
    mark();
    said.textContent = !answer.ok ? answer.detail : answer.is_used ? "saved" : "saved; not used until caption_strategy is textfile";
  };
  form.addEventListener("submit", (event) => { event.preventDefault(); save(); });
  text.addEventListener("change", save);
  text.addEventListener("input", mark);
  mark();
}
