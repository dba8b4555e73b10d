// What the pages do by themselves, beside htmx: say how long ago something was, choose all
// rows of a list at once, and let go of old lines.

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
