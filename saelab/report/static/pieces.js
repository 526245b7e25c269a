/* Pieces that several pages show. */
"use strict"

const statusOrder = ["ok", "rare", "dense", "dead", "constant", "invalid", "no_contrast"]

function picture(id, name, attributes) {
  return h("img.photo", { src: thumb(id), alt: name ?? `image ${id}`, title: name, loading: "lazy", decoding: "async", ...attributes })
}

function strip(ids, names) {
  return h("span.strip", null, ids.map((id, i) => picture(id, names ? names[id] : `strongest image ${i + 1}`)))
}

function dot(run, name) { return h("i.dot", { style: `background:${hue(run, name)}`, "aria-hidden": "true" }) }

function status(name) { return h(`span.status.${name}`, null, term(name)) }

/* A mark in words. Inside links and rows it is plain text with a title; by itself (`explained`) it can be focused. */
function mark(word, key, explained) {
  const css = word.replaceAll(" ", "-")
  return h(`span.badge.${css}`, explained ? { "data-term": key, tabindex: 0 } : { title: terms[key]?.text }, word)
}

/* What is known of a label in words: that the unit abstains, and what held-out images say of it. */
const marks = (row, explained = false) => (row.label === null || row.label === undefined ? [] : [row.abstained ? mark("abstains", "abstains", explained) : null, row.badge ? mark(row.badge, "badge", explained) : null])

/* A label and its marks as plain text. */
const inWordsOfMarks = row => [row.label ?? "no label", ...(row.label === null || row.label === undefined ? [] : [row.abstained ? "abstains" : null, row.badge])].filter(Boolean).join(" · ")

/* holds / weak / may be luck of a basis as one stacked bar; null where nothing was judged. */
function badgeBar(basis) {
  if (!basis.badges) return null
  const parts = Object.entries(basis.badges).filter(([, n]) => n)
  const words = parts.map(([word, n]) => `${format.count(n)} ${word}`)
  return h("span.stack", { role: "img", "aria-label": words.join(", ") || "no label" },
    parts.map(([word, n]) => h(`i.${word.replaceAll(" ", "-")}`, { style: `flex:${n}`, title: `${format.count(n)} ${word}` })))
}

/* A number with a short bar behind it, for tables: its place between 0 and 1. */
function bar(text, share, css) {
  const width = Math.round(100 * Math.max(0, Math.min(1, share ?? 0)))
  return h("span.bar", { style: `--w:${width}%;--bar:${css ?? "var(--accent)"}` }, text)
}

/* Where a unit stands among its basis: a dot on a line from 0 to 100. */
function standing(percentile) {
  if (percentile === null || percentile === undefined) return h("span.quiet", { title: "no number" }, "–")
  const text = `better than ${Math.round(percentile)} % of its basis`
  return h("span.standing", { role: "img", "aria-label": text, title: text }, h("i", { style: `left:${percentile}%` }))
}

/* alive / rare / dense / dead as one stacked bar with its legend. */
function statusBar(basis) {
  const parts = statusOrder.filter(s => basis.statuses[s])
  const words = parts.map(s => `${format.count(basis.statuses[s])} ${terms[s].title}`)
  return h("span.stack", { role: "img", "aria-label": words.join(", ") },
    parts.map(s => h(`i.${s}`, { style: `flex:${basis.statuses[s]}`, title: `${format.count(basis.statuses[s])} ${terms[s].title}` })))
}

const legend = (run, bases = run.bases, words = inWords) => h("span.legend", null, bases.map(b => h("span", null, dot(run, b.name), words(run, b.name))))

/* A row of buttons of which one is pressed; `state[key]` keeps which. */
function choice(title, options, state, key, draw) {
  return h("div.modes", { role: "group", "aria-label": title }, h("span.quiet", null, `${title}:`),
    Object.entries(options).map(([value, text]) => h("button", { type: "button", "aria-pressed": String(state[key] === value), "data-choice": `${key} ${value}`, onclick: async () => { state[key] = value; await draw(); document.querySelector(`[data-choice="${key} ${value}"]`)?.focus() } }, text)))
}

function toast(text) {
  for (const older of document.querySelectorAll(".toast")) older.remove()
  const note = h("div.toast", { role: "status" }, text)
  document.body.append(note)
  setTimeout(() => note.remove(), 2200)
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text)
  } catch { // pages from disk may lack the clipboard interface
    const area = h("textarea", { style: "position:fixed;opacity:0" })
    area.value = text
    document.body.append(area)
    area.select()
    document.execCommand("copy")
    area.remove()
  }
  toast(`${what} copied`)
}

/* A section with a heading that says what is seen. */
function section(title, lead, ...children) {
  return h("section", null, h("h2", null, title), lead ? h("p.lead", null, lead) : null, ...children)
}

/* A section of second rank: its heading says what it found, its tables are folded. */
function folded(title, says, lead, open, ...children) {
  return h("section.folded", null, h("details", { open }, h("summary", null, h("h2", null, title), h("span.quiet", null, says)), h("p.lead", null, lead), ...children))
}

/* Links to the sections, `shortly` some of their names in fewer words; the one that is read is marked. An address may name
   what the page shows, so a link scrolls and moves the focus. */
function contents(main, shortly) {
  const nav = main.querySelector(".contents")
  const links = new Map([...main.querySelectorAll("section h2")].map(heading => [heading, h("button", { type: "button", onclick: () => {
    heading.closest("details")?.setAttribute("open", "")
    heading.tabIndex = -1
    heading.focus({ preventScroll: true })
    heading.scrollIntoView()
  } }, shortly[heading.textContent] ?? heading.textContent)]))
  nav.append(...links.values())
  const mark = () => {
    const edge = nav.getBoundingClientRect().bottom + 24
    const read = [...links.keys()].findLast(heading => heading.getBoundingClientRect().top <= edge)
    for (const [heading, link] of links) heading === read ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")
    const link = links.get(read)
    if (nav.scrollWidth > nav.clientWidth) nav.scrollTo({ left: link ? link.offsetLeft - nav.clientWidth / 3 : 0 })
  }
  let waiting = 0
  addEventListener("scroll", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(mark) }, { passive: true })
  mark()
}

/* In place of a page for something that the report doesn't have: says so, and leads to what there is. */
function nothing(run, main, what) {
  main.replaceChildren(h("h1", null, "Not in this report"), h("p.standfirst", { role: "alert" }, what), h("p", null, "The report has:"),
    h("ul", null, run.bases.map(b => h("li", null, dot(run, b.name), h("a", { href: `units.html#basis=${encodeURIComponent(b.name)}` }, inWords(run, b.name)), h("span.quiet", null, `: units 0 to ${b.units - 1}, in addresses `, h("code", null, b.name))))))
}
