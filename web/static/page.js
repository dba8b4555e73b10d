// What the pages do by themselves, beside htmx: say how long ago something was, choose all
// rows of a list at once, and let go of old lines.

// A browser keeps no more than six connections to a server, over all its tabs, and an open
// page has one of them. So a page that nobody sees gives its own back, and is told everything
// again when it is seen. To htmx it is an EventSource.
class WhileSeen extends EventTarget {
	#url;
	#source = null;
	#names = new Set();
	#turn = () => (document.hidden ? this.#pause() : this.#go());

	constructor(url) {
		super();
		this.#url = url;
		document.addEventListener("visibilitychange", this.#turn);
		this.#turn();
	}

	#go() {
		if (this.#source) {
			return;
		}
		this.#source = new EventSource(this.#url);
		this.#source.onopen = (e) => this.onopen?.(e);
		this.#source.onerror = (e) => this.onerror?.(e);
		this.#names.forEach((name) => this.#source.addEventListener(name, this));
	}

	#pause() {
		this.#source?.close();
		this.#source = null;
	}

	handleEvent(e) {
		this.dispatchEvent(new MessageEvent(e.type, { data: e.data }));
	}

	addEventListener(name, listener) {
		super.addEventListener(name, listener);
		this.#names.add(name);
		this.#source?.addEventListener(name, this);
	}

	get readyState() {
		return this.#source ? this.#source.readyState : EventSource.CONNECTING;
	}

	close() {
		document.removeEventListener("visibilitychange", this.#turn);
		this.#pause();
	}
}

htmx.createEventSource = (url) => new WhileSeen(url);

const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

// ago is a time in the two units that matter: "3 min 20 s".
function ago(seconds) {
	let out = [];
	for (const [size, name] of units) {
		const n = Math.floor(seconds / size);
		if (n > 0 || (name === "s" && out.length === 0)) {
			out.push(`${n} ${name}`);
			seconds -= n * size;
		} else if (out.length > 0) {
			break;
		}
		if (out.length === 2) {
			break;
		}
	}
	return out.join(" ");
}

// The clock of the daemon and that of this browser may differ; what is in the future is now.
function tell() {
	for (const t of document.querySelectorAll("time.since")) {
		const text = ago(Math.max(0, (Date.now() - Date.parse(t.dateTime)) / 1000));
		if (t.textContent !== text) {
			t.title ||= t.textContent;
			t.textContent = text;
		}
	}
}

document.addEventListener("DOMContentLoaded", tell);
document.addEventListener("htmx:afterSwap", tell);
document.addEventListener("htmx:sseMessage", tell);
setInterval(tell, 1000);

// A list that is added to keeps its newest lines.
document.addEventListener("htmx:sseMessage", (e) => {
	const most = Number(e.target.dataset?.most);
	while (most > 0 && e.target.children.length > most) {
		e.target.firstElementChild.remove();
	}
});

document.addEventListener("change", (e) => {
	const name = e.target.dataset?.all;
	if (name) {
		for (const box of document.querySelectorAll(`input[type=checkbox][name="${name}"]`)) {
			box.checked = e.target.checked;
		}
	}
});

// "/" goes to the search, as in many pages for people with keyboards.
document.addEventListener("keydown", (e) => {
	if (e.key === "/" && !e.target.closest("input, textarea, select")) {
		const search = document.querySelector("input[type=search]");
		if (search) {
			e.preventDefault();
			search.focus();
		}
	}
});
