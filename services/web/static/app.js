// What every page does: theme, keys, times, and what happens while it is looked at.
import { Plot, number } from "./plots.js";

const body = document.body, root = body.dataset.root, live = body.dataset.live;
const $ = (id) => document.getElementById(id);
const OPEN = ["queued", "running", "retrying"], FAILED = ["failed", "timeout", "lost"];
const POINTS_KEPT = 4000, LINES_KEPT = 2000, COLORS = 6;

// -- theme, keys, times ---------------------------------------------------------------

const stored = localStorage.getItem("theme");
if (stored) document.documentElement.dataset.theme = stored;
function changeTheme() {
  const chosen = document.documentElement.dataset.theme;
  const isDark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("theme", document.documentElement.dataset.theme);
}
$("theme").onclick = changeTheme;
$("help").onclick = () => $("keys").showModal();

addEventListener("keydown", (event) => {
  if (event.target.matches("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "d") return changeTheme();
  if (event.key === "?") return $("keys").showModal();
  const one = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (one) {
    event.preventDefault();
    one.matches("a") ? one.click() : one.focus();
  }
  if (event.key === "j" || event.key === "k") {
    const links = [...document.querySelectorAll("tbody tr td:first-child a")];
    const at = links.indexOf(document.activeElement) + (event.key === "j" ? 1 : -1);
    links[Math.max(0, Math.min(links.length - 1, at))]?.focus();
  }
});

function ago(seconds) {
  if (seconds < 2) return "just now";
  for (const [limit, unit, name] of [[100, 1, "s"], [5400, 60, "min"], [172800, 3600, "h"]])
    if (seconds < limit) return `${Math.round(seconds / unit)} ${name} ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}
function showTimes() {
  for (const one of document.querySelectorAll("time[datetime]")) {
    const at = Date.parse(one.dateTime);
    if (isNaN(at)) continue;
    one.title = new Date(at).toLocaleString();
    const text = at > Date.now() + 2000 ? new Date(at).toLocaleString() : ago((Date.now() - at) / 1000);
    if (one.textContent !== text) one.textContent = text;
  }
}
showTimes();
setInterval(showTimes, 5000);

// -- the page again, as the server has it now -----------------------------------------

let isRefreshing = false, again = false;
async function refresh() {
  if (isRefreshing) { again = true; return; }
  isRefreshing = true;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (answer.ok && !answer.redirected) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const focused = document.activeElement?.closest("tr[data-run]")?.dataset.run;
      for (const one of document.querySelectorAll("[data-refresh]")) {
        const other = fresh.getElementById(one.id);
        if (other && other.innerHTML !== one.innerHTML) one.replaceChildren(...other.childNodes);
      }
      document.title = fresh.title;
      if (focused) document.querySelector(`tr[data-run="${CSS.escape(focused)}"] a`)?.focus();
      for (const [id, one] of Object.entries(known)) if (!one.over) showRow(id, one);
      showTimes();
    }
  } finally {
    setTimeout(() => { isRefreshing = false; if (again) { again = false; refresh(); } }, 1000);
  }
}

// -- what happens ---------------------------------------------------------------------

const known = {}; // by run, what was heard of it
let pending = { runs: {}, series: {}, log: [], skipped: 0 }, isAsked = false;
function take(said) {
  for (const [id, one] of Object.entries(said.runs ?? {})) Object.assign((pending.runs[id] ??= {}), one);
  for (const [name, points] of Object.entries(said.series ?? {})) (pending.series[name] ??= []).push(...points);
  if (said.log) { pending.log.push(...said.log); pending.skipped += said.skipped; }
  if (said.connected === false) connection("Redis is away", true);
  if (isAsked) return;
  isAsked = true;
  requestAnimationFrame(draw);
}
function draw() {
  const { runs, series, log, skipped } = pending;
  pending = { runs: {}, series: {}, log: [], skipped: 0 };
  isAsked = false;
  for (const [id, one] of Object.entries(runs)) live ? showRun(one) : showRow(id, Object.assign((known[id] ??= {}), one), one);
  for (const [name, points] of Object.entries(series)) addPoints(name, points);
  if (Object.keys(series).length) showSeries();
  if (log.length) addLines(log, skipped);
}
function progressOf(bar, one) {
  bar.hidden = false;
  if (one.total) { bar.max = one.total; bar.value = one.done; }
}
function badge(status) {
  const one = document.createElement("span");
  one.className = `badge ${status}`;
  one.textContent = status;
  return one;
}
function showRun(one) {
  if (one.done !== undefined) {
    progressOf($("progress"), one);
    $("message").textContent = `${number(one.done)}${one.total ? ` of ${number(one.total)}` : ""} ${one.message ?? ""}`;
  }
  if (!one.status) return;
  $("status").replaceChildren(badge(one.status));
  showIcon(one.status);
  if (one.over) $("progress").hidden = true;
  refresh();
}
function showRow(id, one, change = one) {
  const row = document.querySelector(`tr[data-run="${CSS.escape(id)}"]`);
  if (change.status && (!row || change.over)) refresh();
  if (!row) return;
  if (one.status) row.querySelector(".status").replaceChildren(badge(one.status));
  if (one.over) { row.querySelector(".bar").replaceChildren(); delete known[id]; return; }
  if (one.done === undefined) return;
  const cell = row.querySelector(".bar");
  if (!cell.firstElementChild) {
    cell.append(document.createElement("progress"));
    cell.firstElementChild.setAttribute("aria-label", `Progress of ${id}`);
  }
  progressOf(cell.firstElementChild, one);
}
function showIcon(status) {
  $("icon").href = `${root}/static/${FAILED.includes(status) ? "icon-failed" : "icon"}.svg`;
}

// -- metrics: a plot for each name, a line for each combination of tags ---------------

const series = {}, plots = {};
function addPoints(key, points) {
  const one = (series[key] ??= []);
  one.push(...points);
  if (one.length > POINTS_KEPT) series[key] = one.filter((_, at) => at >= one.length / 2 || at % 2 === 0);
}
function showSeries() {
  const byName = Object.groupBy(Object.keys(series), (key) => key.split("\t")[0]);
  for (const [name, keys] of Object.entries(byName)) {
    plots[name] ??= figure(name);
    plots[name].show(keys.sort().map((key, at) => ({ name: key.split("\t")[1] || name, color: at % COLORS, points: series[key] })));
  }
}
function figure(name) {
  const one = document.createElement("figure"), caption = document.createElement("figcaption"), place = document.createElement("div");
  caption.textContent = name;
  place.className = "plot";
  one.append(caption, place);
  $("metrics").append(one);
  return new Plot(place, `${name} over time`);
}

// -- the log --------------------------------------------------------------------------

function addLines(lines, skipped) {
  const log = $("log"), added = document.createDocumentFragment();
  if (skipped) added.append(line("executor", `… ${skipped} lines; download the log to see them …`));
  for (const [stream, text] of lines) added.append(line(stream, text));
  log.append(added);
  while (log.childElementCount > LINES_KEPT) log.firstElementChild.remove();
  if ($("search").value) search();
  else if ($("follow").checked) log.scrollTop = log.scrollHeight;
}
function line(stream, text) {
  const one = document.createElement("span");
  one.className = `line ${stream}`;
  one.textContent = `${text}\n`;
  return one;
}
function search() {
  const wanted = $("search").value.toLowerCase();
  let count = 0, first;
  for (const one of $("log").children) {
    const isHit = wanted !== "" && one.textContent.toLowerCase().includes(wanted);
    one.classList.toggle("hit", isHit);
    if (isHit) { count++; first ??= one; }
  }
  $("found").textContent = wanted ? `${count} line${count === 1 ? "" : "s"}` : "";
  if (first) $("log").scrollTop = first.offsetTop - $("log").offsetTop;
}

// -- the stream -----------------------------------------------------------------------

function connection(text, isBad) {
  if ($("link").textContent !== text) $("link").textContent = text;
  $("link").classList.toggle("off", isBad);
}
/** Browsers keep six connections to a host, for all tabs together: a hidden page has none. */
function follow(query) {
  let source, last = "";
  const open = () => {
    const [since, log] = last ? last.split("/") : [query.since, query.log];
    const asked = new URLSearchParams(Object.entries({ ...query, since, log }).filter(([, value]) => value));
    source = new EventSource(`${root}/live?${asked}`);
    source.onopen = () => connection("live", false);
    source.onerror = () => connection("not connected, trying again", true);
    source.onmessage = (event) => { last = event.lastEventId; take(JSON.parse(event.data)); };
    source.addEventListener("bye", () => connection("the server of this page stops", true));
  };
  const close = () => source.close();
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { close(); connection("paused", false); } else if (source.readyState === EventSource.CLOSED) { open(); refresh(); }
  });
  addEventListener("pagehide", close);
  open();
}

if (live) {
  const was = await (await fetch(`${root}/run/history?id=${encodeURIComponent(live)}`)).json();
  for (const one of Object.values(was.runs)) { delete one.status; delete one.over; }
  showIcon(body.dataset.status);
  take(was);
  $("log").scrollTop = $("log").scrollHeight;
  $("search").oninput = search;
  if (OPEN.includes(body.dataset.status)) {
    follow({ run: live, since: was.cursor, log: body.dataset.log });
    refresh(); // the run may have ended between the page and the history
  }
} else if (live === "") follow({});

if (body.hasAttribute("data-throughput")) {
  const ended = new Plot($("ended"), "Runs ended per minute"), took = new Plot($("took"), "Duration of runs in seconds");
  const look = async () => {
    if (document.hidden) return;
    const answer = await fetch(`${root}/throughput`);
    if (!answer.ok) return;
    const minutes = await answer.json(), points = (name) => minutes.at.map((at, i) => [at, minutes[name][i]]);
    ended.show([{ name: "completed", color: 3, points: points("completed") }, { name: "failed", color: 4, points: points("failed") }]);
    took.show([{ name: "median", color: 0, points: points("median") }, { name: "95 %", color: 1, points: points("most") }]);
  };
  await look();
  setInterval(look, 5000);
}
document.documentElement.dataset.ready = "";
