// Keeps the page live: the server draws each section, this swaps those that changed. And it acts, with a token.
"use strict";

const POLL_MS = 5000, SLOW_MS = 10000, LEAST_MS = 1000, LATE_S = 15;
const main = document.getElementById("main");
const run = main.dataset.run;
const live = document.getElementById("live");

// ---- live

let source = null, seenAt = Date.now(), slowAt = Date.now(), waiting = null, busy = false, refreshedAt = Date.now();

function sections(html) {
  return new DOMParser().parseFromString(`<main>${html}</main>`, "text/html").querySelectorAll("main > section");
}

const drawn = new Map([...main.querySelectorAll(":scope > section")].map((each) => [each.id, each.outerHTML]));

function swap(fresh) {
  const old = document.getElementById(fresh.id);
  const html = fresh.outerHTML;
  if (drawn.get(fresh.id) === html) return;
  const selection = getSelection();
  if (old && !selection.isCollapsed && old.contains(selection.anchorNode)) return; // somebody is copying from it
  drawn.set(fresh.id, html);
  if (!old) {
    const before = fresh.previousElementSibling && document.getElementById(fresh.previousElementSibling.id);
    if (before) before.after(document.importNode(fresh, true));
    else main.append(document.importNode(fresh, true));
    return;
  }
  for (const open of old.querySelectorAll("details[open]")) {
    const same = open.id && fresh.querySelector(`#${CSS.escape(open.id)}`);
    if (same) same.open = true;
  }
  const focused = old.contains(document.activeElement) ? [...old.querySelectorAll("a, button, summary, pre")].indexOf(document.activeElement) : -1;
  const scrolled = [...old.querySelectorAll(".wide, pre")].map((each) => [each.scrollLeft, each.scrollTop]);
  const made = document.importNode(fresh, true);
  old.replaceWith(made);
  made.querySelectorAll(".wide, pre").forEach((each, index) => { if (scrolled[index]) [each.scrollLeft, each.scrollTop] = scrolled[index]; });
  if (focused >= 0) made.querySelectorAll("a, button, summary, pre")[focused]?.focus({ preventScroll: true });
}

async function refresh() {
  if (busy || document.hidden) return;
  busy = true;
  const slow = Date.now() - slowAt > SLOW_MS;
  try {
    const query = new URLSearchParams(location.search);
    query.delete("run");
    query.set("slow", slow);
    const answer = await fetch(`/page/runs/${encodeURIComponent(run)}?${query}`);
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const fresh = [...sections(await answer.text())];
    fresh.forEach(swap);
    if (slow) slowAt = Date.now();
    seenAt = Date.now();
  } catch (error) {
    console.info(`not refreshed: ${error.message}`);
  }
  busy = false;
  refreshedAt = Date.now();
  show();
}

function soon() {
  if (waiting !== null) return;
  waiting = setTimeout(() => { waiting = null; refresh(); }, Math.max(0, refreshedAt + LEAST_MS - Date.now()));
}

function show() {
  const age = Math.round((Date.now() - seenAt) / 1000);
  const text = document.getElementById("live-text");
  const [state, words] = age > LATE_S ? ["late", `no answer for ${age} s`]
    : source?.readyState === EventSource.OPEN ? ["live", "live"] : ["still", "reconnecting"];
  live.dataset.state = state;
  if (text.textContent !== words) text.textContent = words;
}

function listen() {
  if (document.hidden || source) return;
  source = new EventSource(run ? `/events?run=${encodeURIComponent(run)}` : "/events");
  source.addEventListener("open", show);
  source.addEventListener("run", () => { seenAt = Date.now(); soon(); });
  source.addEventListener("runs", (event) => { seenAt = Date.now(); if (JSON.parse(event.data).runs.length) location.reload(); });
  source.addEventListener("error", show); // it tries again by itself, unless the server refused it
}

function hush() {
  source?.close();
  source = null;
}

document.addEventListener("visibilitychange", () => { if (document.hidden) hush(); else { listen(); if (run) refresh(); } });
setInterval(() => {
  if (document.hidden) return;
  if (source?.readyState === EventSource.CLOSED) { hush(); listen(); }
  if (run && Date.now() - refreshedAt > POLL_MS) refresh(); // queues and workers change without the run
  show();
}, 1000);
listen();
document.getElementById("choice")?.addEventListener("change", (event) => event.target.form.submit());

// ---- act

const TEXTS = {
  pause: ["Pause", "Nothing new is started; what is in hand is finished or given back."],
  resume: ["Resume", "Goes on under the limits that it has."],
  retry: ["Retry what died", "All dead shards are put back to work. Mend first what ended them."],
  cancel: ["Cancel the run", "It ends for good, and keeps what it has so far. It cannot be resumed."],
};
const dialog = document.getElementById("ask");
const said = document.getElementById("said");

function say(text) {
  said.textContent = text;
  said.hidden = !text;
}

function ask(act) {
  const [title, text] = TEXTS[act];
  document.getElementById("ask-title").textContent = `${title}: ${run}`;
  document.getElementById("ask-text").textContent = text;
  document.getElementById("ask-yes").textContent = title;
  document.getElementById("ask-token").hidden = sessionStorage.getItem("token") !== null;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => {
    const given = document.getElementById("token");
    if (dialog.returnValue === "yes" && given.value.trim()) sessionStorage.setItem("token", given.value.trim());
    given.value = "";
    resolve(dialog.returnValue === "yes");
  }, { once: true }));
}

async function act(name) {
  if ((name === "cancel" || sessionStorage.getItem("token") === null) && !await ask(name)) return;
  say("");
  try {
    const headers = { Authorization: `Bearer ${sessionStorage.getItem("token") ?? ""}` };
    const answer = await fetch(`/runs/${encodeURIComponent(run)}/${name}`, { method: "POST", headers });
    if (answer.status === 401) sessionStorage.removeItem("token");
    if (!answer.ok) say(`Not done: ${(await answer.json()).detail}`);
    else if (name === "retry") say(`${(await answer.json()).shards} shards are put back to work.`);
  } catch (error) {
    say(`Not done: the status API does not answer (${error.message}).`);
  }
  refresh();
}

document.getElementById("ask-no")?.addEventListener("click", () => dialog.close("no")); // no submit button: Enter is for yes
main.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-act]");
  if (button) act(button.dataset.act);
});
