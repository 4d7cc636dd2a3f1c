// The page without this file shows how things stand and can do everything; with it, it is live.
"use strict";

const body = document.body;
const $ = (id) => document.getElementById(id);
document.documentElement.classList.add("js");
let skew = 0; // the server's clock less ours

function announce(text) { $("announce").textContent = text; }

function complain(text) {
	const alert = $("alert");
	if (alert) alert.textContent = text;
	else announce(text);
}

// From the server's own templates, which escape what people wrote.
function element(html) {
	const holder = document.createElement("template");
	holder.innerHTML = html.trim();
	return holder.content.firstElementChild;
}

async function send(form, data) {
	const answer = await fetch(form.action, {
		method: "POST",
		headers: { Accept: "application/json", "Content-Type": data ? "application/json" : "application/x-www-form-urlencoded" },
		body: data ? JSON.stringify(data) : new URLSearchParams(new FormData(form)),
	});
	const said = await answer.json().catch(() => ({}));
	if (!answer.ok) throw new Error(said.error_description || "The server answered " + answer.status + ".");
	return said;
}

// Messages.
const log = $("log");
const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 120;
const toEnd = () => { if (log) log.scrollTop = log.scrollHeight; };

function showMessage(m) {
	if (m.group !== body.dataset.group || m.thread !== body.dataset.thread) {
		const place = document.querySelector(`[data-place="${CSS.escape(m.group + "/" + m.thread)}"]`);
		if (place && m.account !== body.dataset.me) place.classList.add("news");
		return;
	}
	if (!log) return;
	const fresh = element(m.html);
	const old = $(m.id);
	if (old) {
		replace(old, fresh);
		return;
	}
	const follow = atEnd() || m.account === body.dataset.me;
	$("empty")?.remove();
	fresh.classList.add("fresh");
	log.append(fresh);
	if (follow) toEnd();
}

// What is replaced keeps its focus and what was unfolded.
function replace(old, fresh) {
	const key = old.contains(document.activeElement) ? document.activeElement.dataset.key : null;
	const focused = old.contains(document.activeElement);
	const folded = old.querySelector("details");
	if (folded) fresh.querySelector("details").open = folded.open;
	old.replaceWith(fresh);
	if (!focused) return;
	const next = (key && fresh.querySelector(`[data-key="${CSS.escape(key)}"]`)) || fresh;
	if (next === fresh) fresh.tabIndex = -1;
	next.focus({ preventScroll: true });
}

// The panel.
const states = {};

function showStory(s) {
	const fresh = element(s.html);
	const old = $("story-" + s.id);
	if (old) replace(old, fresh);
	else $("stories").prepend(fresh);
	const now = s.state + " " + s.left;
	if (states[s.id] !== undefined && states[s.id] !== now) {
		const words = fresh.querySelector(".state").textContent;
		announce(`${s.app}: ${words}${s.state === "redeemed" && s.left >= 0 ? ", " + s.left + " uses left" : ""}.`);
	} else if (states[s.id] === undefined && ready && s.state === "pending") {
		announce(`${s.app} asks whether it may act for you.`);
	}
	states[s.id] = now;
	while ($("stories").children.length > 12) $("stories").lastElementChild.remove();
	tick();
}

function tick() {
	const now = Date.now() + skew;
	let alive = 0;
	for (const story of document.querySelectorAll(".story")) {
		if ("alive" in story.dataset) alive++;
		const left = Number(story.dataset.until) - now;
		if (!story.dataset.until) continue;
		const seconds = Math.ceil(Math.min(Math.max(0, left), Number(story.dataset.span)) / 1000);
		const text = seconds > 0 ? `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")} left` : "time is over";
		const clock = story.querySelector("[data-clock]");
		if (clock && clock.textContent !== text) clock.textContent = text;
		const bar = story.querySelector("progress");
		if (bar) bar.value = Math.max(0, left);
		if (left <= 0 && story.dataset.state !== "expired") {
			story.dataset.state = "expired";
			delete story.dataset.alive;
			story.querySelector(".state").textContent = "expired";
		}
	}
	const count = $("alive");
	count.hidden = alive === 0;
	count.textContent = alive ? ` ${alive}` : "";
}
setInterval(tick, 250);

let ready = false;
const stream = new EventSource("/events?since=" + body.dataset.rev);
stream.addEventListener("hello", (e) => {
	skew = JSON.parse(e.data).now - Date.now();
	setTimeout(() => { ready = true; }, 1000);
});
stream.addEventListener("message", (e) => showMessage(JSON.parse(e.data)));
stream.addEventListener("story", (e) => showStory(JSON.parse(e.data)));
stream.addEventListener("operation", (e) => { $("last").textContent = JSON.parse(e.data).text; });
stream.addEventListener("open", () => body.classList.remove("offline"));
stream.addEventListener("error", () => body.classList.add("offline"));

// Writing.
const say = $("say");
function grow() {
	say.rows = Math.min(6, Math.max(1, say.value.split("\n").length));
}
say?.addEventListener("input", grow);
say?.addEventListener("keydown", (e) => {
	if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
		e.preventDefault();
		$("say-form").requestSubmit();
	}
});
$("say-form")?.addEventListener("submit", async (e) => {
	e.preventDefault();
	complain("");
	const text = say.value;
	if (!text.trim()) return;
	say.value = "";
	grow();
	try {
		await send(e.target, { text, thread: body.dataset.thread });
	} catch (err) {
		say.value = text;
		grow();
		complain(err.message);
	}
	say.focus();
});
for (const hint of document.querySelectorAll(".hint")) {
	hint.addEventListener("click", () => {
		say.value = hint.dataset.text;
		grow();
		say.focus();
	});
}

// Small forms are sent without leaving the page; what comes of them comes over the stream. Links to apps do leave: that is their way.
document.addEventListener("submit", async (e) => {
	const form = e.target;
	if (form.matches("form.try")) {
		e.preventDefault();
		await tryWithout(form);
	} else if (form.matches("form.quiet")) {
		e.preventDefault();
		const button = form.querySelector("button");
		button.setAttribute("aria-busy", "true");
		complain("");
		try {
			await send(form);
		} catch (err) {
			complain(err.message);
		}
		button.removeAttribute("aria-busy");
	}
});

async function tryWithout(form) {
	const box = $("tries");
	try {
		const { attempts } = await send(form);
		const list = document.createElement("ol");
		for (const a of attempts) {
			const item = document.createElement("li");
			const status = document.createElement("b");
			status.textContent = a.status;
			const said = document.createElement("code");
			said.textContent = a.body;
			item.append(status, ` with ${a.with}`, said);
			list.append(item);
		}
		const title = document.createElement("h3");
		title.textContent = attempts.every((a) => a.status === 401) ? "Refused, each time" : "Not refused: this must not be";
		const request = document.createElement("p");
		const code = document.createElement("code");
		code.textContent = attempts[0].request;
		request.append(code);
		box.replaceChildren(title, request, list);
		box.className = "tries";
		announce(`${title.textContent}: ${attempts.map((a) => a.status).join(", ")}.`);
	} catch (err) {
		box.textContent = err.message;
	}
}

// On a narrow screen one part is shown at a time.
for (const tab of document.querySelectorAll("[data-show]")) {
	tab.addEventListener("click", () => {
		body.dataset.view = tab.dataset.show;
		for (const other of document.querySelectorAll("[data-show]")) other.setAttribute("aria-pressed", String(other === tab));
		if (tab.dataset.show === "chat") toEnd();
	});
}
document.addEventListener("keydown", (e) => {
	const people = document.querySelector(".people[open]");
	if (e.key === "Escape" && people) {
		people.open = false;
		people.querySelector("summary").focus();
	}
});

toEnd();
tick();
