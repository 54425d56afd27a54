// Keeps the pages of runs up to date. Numbers and curves follow the events of the stream at once; everything else is
// fetched again as the server renders it. Nothing that an event holds becomes markup.
import { Curves, number } from "./charts.js";

const page = document.body.dataset;
const REFRESH_MS = 1200, POLL_MS = 10000, RETRY_MS = 5000;
const TYPES = ["lifecycle.stage", "training.status", "training.progress", "training.checkpoint", "training.summary",
  "validation.image", "notification", "error"];
const ENDS = ["completed", "stopped", "cancelled", "error"];
const title = document.title;
const live = document.getElementById("live");
let source = null, place = null, curves = null;

const part = (name) => document.querySelector(`[data-part="${name}"]`);
const isBusy = () => (part("head") || part("runs"))?.dataset.busy === "yes";

function duration(seconds) {
  if (seconds < 10) return `${number(seconds, 2)} s`;
  const whole = Math.round(seconds), two = (value) => String(value).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

function bytes(count) {
  const units = ["bytes", "KB", "MB", "GB", "TB"];
  let power = 0;
  while (count >= 1024 && power < units.length - 1) { count /= 1024; power += 1; }
  return `${count.toFixed(power ? 1 : 0)} ${units[power]}`;
}

function show(key, text) {
  const found = document.querySelector(`[data-fact="${key}"]`);
  if (found && found.textContent !== text) found.textContent = text;
}

function say(text) {
  if (live.textContent !== text) live.textContent = text;
}

// ---- parts that the server renders ----
const bare = (html) => html.replace(/value="[A-Za-z0-9]{64}"/g, "").replace(/ open=""/g, "");

// ---- the image of the base model over the newest one ----
const splits = new Map();
const split = (slider) => slider.closest(".compare").style.setProperty("--split", `${slider.value}%`);
document.addEventListener("input", ({ target }) => {
  if (!target.matches(".compare input")) return;
  splits.set(target.id, target.value);
  split(target);
});

// Keeps what a person has opened and set, and where the keyboard is.
function replace(current, fresh) {
  if (current.dataset.busy === fresh.dataset.busy && bare(current.innerHTML) === bare(fresh.innerHTML)) return;
  const focused = current.contains(document.activeElement) ? document.activeElement : null;
  const again = focused?.id ? `#${CSS.escape(focused.id)}` : focused?.hasAttribute("href") ? `[href="${CSS.escape(focused.getAttribute("href"))}"]` : "";
  if (focused && !again) return;
  const opened = [...current.querySelectorAll("details[open]")].map((one) => one.id);
  current.replaceWith(fresh);
  for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
  for (const slider of fresh.querySelectorAll(".compare input")) {
    slider.value = splits.get(slider.id) ?? slider.value;
    split(slider);
  }
  if (again) fresh.querySelector(again)?.focus({ preventScroll: true });
}

let due = 0, fetchedAt = 0;
function refresh() {
  if (due || document.hidden) return;
  due = setTimeout(async () => {
    fetchedAt = Date.now();
    try {
      const answer = await fetch(location.pathname + location.search, { headers: { Accept: "text/html" } });
      if (answer.ok) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        for (const found of fresh.querySelectorAll("[data-part]")) {
          const current = part(found.dataset.part);
          if (current) replace(current, found);
        }
      }
    } catch { /* the server is away: the stream says so and tries again */ }
    due = 0;
    if (page.page === "run" && !isBusy()) disconnect("ended");
  }, Math.max(150, fetchedAt + REFRESH_MS - Date.now()));
}

// ---- events ----
function showProgress(data) {
  const percent = data.total_steps ? (100 * data.step) / data.total_steps : 0;
  const bar = document.getElementById("bar");
  if (!bar) return refresh();
  bar.value = percent;
  document.title = `${percent.toFixed(0)} % · ${title}`;
  show("step", `${data.step.toLocaleString("en")} of ${data.total_steps.toLocaleString("en")}`);
  show("left", data.eta_seconds ? duration(data.eta_seconds) : "–");
  show("pace", duration(data.seconds_per_step));
  show("loss", data.loss === null ? "not finite" : number(data.loss));
  show("rate", number(data.learning_rate, 3));
  show("norm", number(data.grad_norm, 3));
  const memory = data.memory?.peak ?? data.memory?.resident;
  if (memory) show("memory", bytes(memory));
  const epochs = document.querySelector('[data-fact="epoch"]')?.textContent.split(" of ")[1];
  show("epoch", epochs ? `${data.epoch} of ${epochs}` : String(data.epoch));
}

function showRow(job, data) {
  const row = document.querySelector(`[data-job="${CSS.escape(job)}"]`);
  const bar = row?.querySelector("progress");
  if (!bar) return refresh();
  bar.value = data.total_steps ? (100 * data.step) / data.total_steps : 0;
  const left = data.eta_seconds ? ` · ${duration(data.eta_seconds)} left` : "";
  const loss = data.loss === null ? "loss not finite" : `loss ${number(data.loss)}`;
  row.querySelector('[data-fact="line"]').textContent =
    `step ${data.step.toLocaleString("en")} of ${data.total_steps.toLocaleString("en")}${left} · ${loss}`;
}

function showStage(stage) {
  const line = document.querySelector(`[data-stage="${CSS.escape(stage.key)}"]`);
  if (!line || stage.status !== "running") return refresh();
  line.className = stage.status;
  line.querySelector("progress").value = stage.progress.percent;
  line.querySelector(".count").textContent = stage.progress.total ? `${stage.progress.current} of ${stage.progress.total}` : stage.status;
}

// A preview grows in its place until the finished image is there.
function showImage(event) {
  const previews = document.getElementById("previews");
  if (event.data.validation_type !== "intermediary") {
    previews.replaceChildren();
    previews.hidden = true;
    curves.mark("validation", event.data.global_step);
    return refresh();
  }
  const address = (event.images || event.videos || [])[0]?.src;
  if (!address) return;
  const name = event.title.split(": ").pop();
  let figure = [...previews.children].find((one) => one.dataset.name === name);
  if (!figure) {
    figure = previews.appendChild(document.createElement("figure"));
    figure.dataset.name = name;
    figure.append(document.createElement("img"), document.createElement("figcaption"));
  }
  const [image, caption] = figure.children;
  image.src = address;
  image.alt = `Preview: ${event.data.prompt || "no prompt"}`;
  caption.textContent = `${name}: ${event.data.step_label}`;
  previews.hidden = false;
}

function take(event) {
  if (page.page === "list") {
    if (event.type === "training.progress") showRow(event.job_id, event.data);
    else if (event.type !== "lifecycle.stage" && event.data?.validation_type !== "intermediary") refresh();
    return;
  }
  if (event.type === "training.progress") { curves.add(event.data); showProgress(event.data); }
  else if (event.type === "lifecycle.stage") showStage(event.stage);
  else if (event.type === "validation.image") showImage(event);
  else {
    if (event.type === "training.checkpoint") curves.mark("checkpoint", event.checkpoint.step);
    if (event.data?.code === "evaluation") curves.evaluate(event.data.details.step, event.data.details.metrics);
    if (event.type === "training.status" && ENDS.includes(event.data.status)) say(event.title);
    refresh();
  }
}

// ---- the stream ----
function disconnect(text) {
  source?.close();
  source = null;
  say(text);
}

// A browser opens only six connections to one server, for all of its tabs together. A hidden tab therefore gives its own back.
function connect() {
  if (source || document.hidden) return;
  if (page.page === "run" && !isBusy()) return say("ended");
  const address = new URL(page.stream, location.href);
  if (place) address.searchParams.set("last_event_id", place);
  source = new EventSource(address);
  source.onopen = () => say("live");
  source.onerror = () => {
    say("reconnecting");
    if (source?.readyState !== EventSource.CLOSED) return;
    source = null;
    setTimeout(connect, RETRY_MS);
  };
  for (const type of TYPES) {
    source.addEventListener(type, (message) => {
      if (!message.data) return; // the connection's own "error"
      place = message.lastEventId;
      take(JSON.parse(message.data));
    });
  }
}

async function fetchMetrics(address) {
  const answer = await fetch(address, { headers: { Accept: "application/json" } });
  return answer.ok ? answer.json() : null;
}

async function begin() {
  if (page.page === "run") {
    const controls = Object.fromEntries([["log", "log-scale"], ["smoothing", "smoothing"], ["note", "thinned"]].map(([name, id]) => [name, document.getElementById(id)]));
    curves = new Curves(document.getElementById("charts"), controls);
    const other = document.getElementById("other");
    other?.addEventListener("input", async () => curves.compare(other.value ? await fetchMetrics(other.value) : null));
    const metrics = await fetchMetrics(page.metrics);
    if (metrics) {
      curves.load(metrics);
      if (metrics.next_index) place = String(metrics.next_index - 1);
    }
  }
  connect();
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return disconnect("paused");
    refresh();
    connect();
  });
  setInterval(() => { if (isBusy()) refresh(); }, POLL_MS);
}

if (page.page) begin();
