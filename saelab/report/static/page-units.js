/* The browser of units: a table and a scatter plot under the same filters; the state lives in the address. */
"use strict"

const perPage = 40
const numberColumns = ["score", "null_percentile", "firing_rate", "truth_r", "caption_r", "auprc", "scs", "clarity", "monosemanticity"]
const faithful = ["truth_r", "caption_r", "auprc", "scs"]
const rising = new Set(["unit", "label", "status"]) // sorted upwards first; numbers from the largest down
const defaults = { basis: "", status: "", q: "", sort: "unit", down: "", least: "", chance: "", floor: "", y: "", page: "1" }

page(async (run, main) => {
  const state = { ...defaults, basis: run.bases[0].name, ...fromAddress() }
  if (state.basis !== "*" && number(run, state.basis) < 0) return nothing(run, main, `This report has no basis ${state.basis}.`)
  const table = h("div")
  const chart = h("div")
  const tally = h("p.lead", { role: "status" })
  const download = h("button", { type: "button", onclick: () => save(`${run.name}-units.csv`, asCsv(run, rows)) }, "Download these units (CSV)")
  const controls = h("form.controls", { onsubmit: event => event.preventDefault() })
  let rows = []

  async function change(changes, keepPage) {
    Object.assign(state, keepPage ? {} : { page: "1" }, changes)
    history.replaceState(null, "", toAddress(state, run))
    await draw()
  }
  async function draw() {
    rows = sorted(filtered(await load(run, state.basis), state), state)
    show(rows, rows.length)
  }
  function show(some, count) {
    tally.textContent = `${format.plural(count, "unit")} ${count === 1 ? "matches" : "match"}.`
    const focused = table.contains(document.activeElement) ? document.activeElement.dataset.key : null
    table.replaceChildren(tableOf(run, some, present(run, state.basis), state, change), pager(count, state, change))
    if (focused) (table.querySelector(`[data-key="${focused}"]:not(:disabled)`) ?? table.querySelector("nav button:not(:disabled)"))?.focus({ preventScroll: true })
    drawControls()
  }
  const y = () => state.y || faithful.find(key => present(run, state.basis).includes(key)) || "score"
  const drawChart = () => chart.replaceChildren(scatter(rows.map(r => ({ ...r, rate: r.firing_rate, value: r[y()] })), {
    title: (terms[y()]?.title ?? y()).toLowerCase(), colours: Object.fromEntries(run.bases.map(b => [b.name, hue(run, b.name)])),
    open: r => { location.href = unitLink(r.basis, r.unit) },
  }))
  const drawControls = controlsOf(controls, run, state, async changes => { await change(changes); drawChart() }, y)

  main.replaceChildren(
    h("h1", null, "Units"), h("div.tally", null, tally, download), controls, h("div.scroll.wide", null, table),
    section("Rate against quality", "Each dot is a unit that matches the filters; click it to open its page. Units that fire on few images and units that fire on many are different things, so compare like with like.", chart),
  )
  addEventListener("hashchange", () => { Object.assign(state, defaults, { basis: run.bases[0].name }, fromAddress()); if (state.basis !== "*" && number(run, state.basis) < 0) return location.reload(); draw().then(drawChart) })
  addEventListener("keydown", event => keys(event, state, rows, change))
  if (untouched(state)) { // draw the first page before reading the whole basis
    const first = await saelab.need(`summary-${number(run, state.basis)}-first`)
    show(unpack(state.basis, first), run.bases[number(run, state.basis)].units)
    await painted()
  }
  await draw()
  drawChart()
})

/* Is it the first page of one basis by number, with no filter? */
const untouched = state => state.basis !== "*" && Object.keys(defaults).every(key => ["basis", "y"].includes(key) || state[key] === defaults[key])
const painted = () => new Promise(done => requestAnimationFrame(() => setTimeout(done)))

/* ---- rows ---- */

const loaded = new Map()

async function load(run, which) {
  const names = which === "*" ? run.bases.map(b => b.name) : [which]
  const parts = await Promise.all(names.map(async name => {
    if (!loaded.has(name)) loaded.set(name, unpack(name, await saelab.need(`summary-${number(run, name)}`)))
    return loaded.get(name)
  }))
  return parts.flat()
}

function unpack(basis, s) {
  const [doubtful, several] = [new Set(s.abstained), new Set(s.several)]
  return s.units.map((unit, i) => {
    const row = { basis, unit, label: s.label[i] < 0 ? null : s.labels[s.label[i]], status: s.statuses[s.status[i]], thumbs: s.thumbs[i], abstained: doubtful.has(i), badge: s.badges[s.badge[i]] ?? null, several: several.has(i) }
    for (const key in s.measured) row[key] = s.measured[key][i]
    return row
  })
}

/* What the choice "Label" keeps. */
const keeps = {
  holds: r => r.badge === "holds", weak: r => r.badge === "weak", luck: r => r.badge === "may be luck",
  1: r => r.label !== null && !r.abstained, abstains: r => r.label !== null && r.abstained, 2: r => r.several,
}

function filtered(rows, state) {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean)
  const [low, high] = { "": [-1, 2], rare: [0, 0.01], some: [0.01, 0.1], often: [0.1, 0.8], dense: [0.8, 2] }[state.least] ?? [-1, 2]
  return rows.filter(r =>
    (!state.status || r.status === state.status) &&
    (!state.floor || r.score >= Number(state.floor)) &&
    (!state.chance || keeps[state.chance]?.(r)) &&
    (!state.least || (r.firing_rate > low && r.firing_rate <= high)) &&
    words.every(w => (r.label ?? "").toLowerCase().includes(w) || String(r.unit) === w))
}

function sorted(rows, state) {
  const sign = state.down ? -1 : 1
  const key = state.sort
  const missing = r => r[key] === null || r[key] === undefined
  return [...rows].sort((a, b) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b) // what has no number comes last either way
    const order = typeof a[key] === "string" ? a[key].localeCompare(b[key]) : a[key] - b[key]
    return sign * order || a.unit - b.unit
  })
}

function present(run, which) {
  const bases = which === "*" ? run.bases : run.bases.filter(b => b.name === which)
  const have = key => bases.some(b => b.quartiles[key])
  const judge = faithful.filter(have).slice(0, 2)
  return numberColumns.filter(key => have(key) && (!faithful.includes(key) || judge.includes(key))).slice(0, 6)
}

/* ---- drawing ---- */

function controlsOf(form, run, state, change, y) {
  const option = (value, text, now) => h("option", { value, selected: value === now }, text)
  return () => {
    const focused = form.contains(document.activeElement) ? document.activeElement.name : null
    const at = focused === "q" ? form.q.selectionStart : null
    const statuses = statusOrder.filter(s => run.bases.some(b => (state.basis === "*" || b.name === state.basis) && b.statuses[s]))
    form.replaceChildren(
      h("label", null, "Search labels", h("input", { type: "search", name: "q", value: state.q, placeholder: "cat, 1032 …  ( / )", oninput: later(e => change({ q: e.target.value })) })),
      h("label", null, "Basis", h("select", { name: "basis", onchange: e => change({ basis: e.target.value, status: "" }) },
        run.bases.map(b => option(b.name, `${inWords(run, b.name)} (${format.count(b.units)})`, state.basis)), option("*", "all bases", state.basis))),
      h("label", null, "Status", h("select", { name: "status", onchange: e => change({ status: e.target.value }) },
        option("", "any", state.status), statuses.map(s => option(s, `${terms[s].title} (${count(run, state, s)})`, state.status)))),
      h("label", null, "Fires on", h("select", { name: "least", onchange: e => change({ least: e.target.value }) },
        option("", "any share", state.least), option("rare", "up to 1 %", state.least), option("some", "1–10 %", state.least), option("often", "10–80 %", state.least), option("dense", "over 80 %", state.least))),
      h("label", null, "Label", h("select", { name: "chance", onchange: e => change({ chance: e.target.value }) },
        option("", "any", state.chance), run.bases.some(b => b.badges) ? [option("holds", "holds", state.chance), option("weak", "weak", state.chance), option("luck", "may be luck", state.chance)] : null,
        option("1", "given with confidence", state.chance), option("abstains", "abstains", state.chance), option("2", "two meanings", state.chance))),
      h("label", null, "Score at least", h("input", { type: "number", name: "floor", step: "any", value: state.floor, style: "width:5.5rem", oninput: later(e => change({ floor: e.target.value })) })),
      h("label.narrow", null, "Sort by", h("select", { name: "sort", onchange: e => change({ sort: e.target.value, down: rising.has(e.target.value) ? "" : "1" }) },
        ["unit", "label", ...present(run, state.basis), "status"].map(k => option(k, terms[k]?.title ?? k, state.sort)))),
      h("label", null, "Height in the plot", h("select", { name: "y", onchange: e => change({ y: e.target.value }) },
        numberColumns.filter(k => k !== "firing_rate" && run.bases.some(b => b.quartiles[k])).map(k => option(k, terms[k].title, y())))),
    )
    if (focused) form[focused].focus()
    if (at !== null) form.q.setSelectionRange(at, at)
  }
}

function count(run, state, s) {
  return format.count(run.bases.filter(b => state.basis === "*" || b.name === state.basis).reduce((sum, b) => sum + (b.statuses[s] ?? 0), 0))
}

function later(action, wait = 120) {
  let timer
  return event => { clearTimeout(timer); timer = setTimeout(() => action(event), wait) }
}

function tableOf(run, rows, columns, state, change) {
  const start = (Number(state.page) - 1) * perPage
  const head = (key, text, css) => {
    const now = state.sort === key
    const next = { sort: key, down: now ? (state.down ? "" : "1") : rising.has(key) ? "" : "1" }
    return h(`th${css ? `.${css}` : ""}`, { scope: "col", "aria-sort": now ? (state.down ? "descending" : "ascending") : null },
      h("button", { type: "button", "data-key": key, "data-term": terms[key] ? key : null, onclick: () => change(next) }, text ?? terms[key].title, now ? (state.down ? " ↓" : " ↑") : ""))
  }
  const body = rows.slice(start, start + perPage).map(r => h("tr", { onclick: event => { if (!event.target.closest("a, [data-term]")) location.href = unitLink(r.basis, r.unit) } },
    h("td.id", null, dot(run, r.basis), state.basis === "*" ? `${r.basis} ${r.unit}` : r.unit),
    h("td.pics", null, strip(r.thumbs)),
    h("td.name", null, h("a", { href: unitLink(r.basis, r.unit), class: r.abstained ? "abstained" : null }, r.label ?? "no label"), r.several ? h("span.tag", { "data-term": "meanings", tabindex: 0 }, "two meanings") : null, h("div.marks", null, marks(r))),
    columns.map(key => h("td.num", { "data-title": terms[key].title }, shown(key, r[key]))),
    h("td.state", null, status(r.status))))
  return h("table.units", null,
    h("thead", null, h("tr", null, head("unit", "Unit"), h("th", { scope: "col" }, "Strongest images"), head("label", "Label"), columns.map(key => head(key, null, "num")), head("status", "Status"))),
    h("tbody", null, body.length ? body : h("tr", null, h("td", { colspan: columns.length + 4 }, "No unit matches. Widen the filters."))))
}

function pager(count, state, change) {
  const pages = Math.max(1, Math.ceil(count / perPage))
  const now = Math.min(Number(state.page), pages)
  const go = to => change({ page: String(to) }, true)
  return h("nav.pager", { "aria-label": "Pages of the table" },
    h("button", { type: "button", "data-key": "back", disabled: now <= 1, onclick: () => go(now - 1) }, "← Back"),
    `${now} of ${format.count(pages)}`,
    h("button", { type: "button", "data-key": "next", disabled: now >= pages, onclick: () => go(now + 1) }, "Next →"))
}

function keys(event, state, rows, change) {
  if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return
  const pages = Math.ceil(rows.length / perPage)
  if (event.key === "/") { event.preventDefault(); document.querySelector("input[type=search]").focus() }
  if (event.key === "ArrowRight" && Number(state.page) < pages) change({ page: String(Number(state.page) + 1) }, true)
  if (event.key === "ArrowLeft" && Number(state.page) > 1) change({ page: String(Number(state.page) - 1) }, true)
}

/* ---- to take away: the units that match, in the order shown ---- */

function asCsv(run, rows) {
  const numbers = Object.keys(run.bases[0].quartiles ?? {}).length ? [...new Set(run.bases.flatMap(b => Object.keys(b.quartiles)))] : []
  const head = ["basis", "unit", "label", "abstained", "badge", "status", "several", ...numbers]
  const cell = x => (x === null || x === undefined ? "" : /[",\n\r]/.test(String(x)) ? `"${String(x).replaceAll('"', '""')}"` : String(x))
  return [head, ...rows.map(r => head.map(key => r[key]))].map(line => line.map(cell).join(",")).join("\r\n") + "\r\n"
}

function save(name, text) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name })
  document.body.append(link)
  link.click()
  link.remove()
  setTimeout(() => URL.revokeObjectURL(link.href), 10000)
}

/* ---- the address ---- */

function fromAddress() { return Object.fromEntries(new URLSearchParams(location.hash.slice(1))) }

function toAddress(state) {
  const kept = Object.entries(state).filter(([key, value]) => key === "basis" || value !== defaults[key])
  return `#${new URLSearchParams(kept)}`
}
