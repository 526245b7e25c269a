/* The browser of units: a plot, and a table or a gallery, under the same filters; the state lives in the address. */
"use strict"

const perPage = 40
const defaults = { ...listDefaults, y: "", cols: "", view: "", page: "1" }
const chosen = new Set() // codes of the units that are ticked

if (!location.hash) saelab.need("summary-0-first").catch(() => null) // what is shown first, beside the run

page(async (run, main) => {
  const state = { ...defaults, basis: run.bases[0].name, ...fromAddress() }
  if (state.basis !== "*" && number(run, state.basis) < 0) return nothing(run, main, `This report has no basis ${state.basis}.`)
  const table = h("div")
  const chart = h("div.chart")
  const tally = h("p.lead", { role: "status" })
  const download = h("button", { type: "button", onclick: () => save(`${run.name}-units.csv`, asCsv(run, rows), "text/csv") }, "Download these units (CSV)")
  const controls = h("form.controls", { onsubmit: event => event.preventDefault() })
  const more = h("div.more")
  const picked = h("div.picked", { role: "region", "aria-label": "Ticked units" })
  let rows = []

  async function change(changes, keepPage) {
    Object.assign(state, keepPage ? {} : { page: "1" }, changes)
    history.replaceState(null, "", toAddress(state))
    await draw()
    if (!keepPage) drawChart()
  }
  async function read() { rows = sorted(filtered(run, await load(run, state.basis), state), state) }
  async function draw() {
    await read()
    show(rows, rows.length)
  }
  function show(some, count) {
    download.disabled = !count
    tally.textContent = `${format.plural(count, "unit")} ${count === 1 ? "matches" : "match"}.`
    const focused = table.contains(document.activeElement) ? document.activeElement.dataset.key : null
    table.replaceChildren(state.view === "gallery" ? galleryOf(run, some, state) : tableOf(run, some, columnsOf(run, state), state, change), pager(count, state, change))
    if (focused) (table.querySelector(`[data-key="${focused}"]:not(:disabled)`) ?? table.querySelector("nav button:not(:disabled)"))?.focus({ preventScroll: true })
    drawControls()
    drawPicked()
  }
  const judge = () => run.bases.find(b => (state.basis === "*" || b.name === state.basis) && b.judge)?.judge // units that it judges are most
  const y = () => state.y || judge() || faithful.find(key => present(run, state.basis).includes(key)) || "score"
  const drawChart = () => {
    const key = y()
    chart.replaceChildren(...state.basis === "*" ? [h("p", null, legend(run, oneAColour(run), inFewWords))] : [], scatter(rows, {
      rate: r => r.firing_rate, value: r => r[key],
      title: (terms[y()]?.title ?? y()).toLowerCase(), colours: Object.fromEntries(run.bases.map(b => [b.name, hue(run, b.name)])), names: name => inWords(run, name), height: 240,
      open: r => { location.href = unitLink(r.basis, r.unit) + along(state) },
      brushed: (rate, value) => change({ range: withBounds(state.range, { firing_rate: rate, [y()]: value }) }),
    }))
  }
  const drawControls = controlsOf(controls, more, run, state, change, y)
  const drawPicked = () => picked.replaceChildren(...pickedOf(run, state, change, () => show(rows, rows.length)))
  table.addEventListener("change", event => {
    const one = event.target.dataset.code
    if (!one) return
    chosen[event.target.checked ? "add" : "delete"](one)
    drawPicked()
  })

  main.replaceChildren(...[
    h("h1", null, "Units"), h("div.tally", null, tally, download), controls, more,
    h("details.plotted", { open: innerWidth > 720 }, h("summary", null, "Rate against quality", h("span.quiet", null, " – of the units that match; drag over dots to keep those")), chart),
    h("div.scroll.wide", null, table), picked, decisions(run),
  ].filter(Boolean))
  addEventListener("hashchange", () => { Object.assign(state, defaults, { basis: run.bases[0].name }, fromAddress()); if (state.basis !== "*" && number(run, state.basis) < 0) return location.reload(); draw().then(drawChart) })
  addEventListener("keydown", event => keys(event, state, rows, change))
  if (untouched(state)) { // draw the first page before reading the whole basis
    const first = await saelab.need(`summary-${number(run, state.basis)}-first`)
    show(rowsOf(state.basis, first), run.bases[number(run, state.basis)].units)
    await painted()
    await read() // whose first rows are there already
  } else await draw()
  drawChart()
})

/* Is it the first page of one basis by number, with no filter? */
const untouched = state => plain(state) && state.page === "1"
const painted = () => new Promise(done => requestAnimationFrame(() => setTimeout(done)))

/* The numbers that a basis has, of faithfulness the two that judge it. */
function present(run, which) {
  const bases = which === "*" ? run.bases : run.bases.filter(b => b.name === which)
  const have = key => bases.some(b => b.quartiles[key])
  const judge = faithful.filter(have).slice(0, 2)
  return ["score", "null_percentile", "firing_rate", ...faithful, "clarity", "monosemanticity"].filter(key => have(key) && (!faithful.includes(key) || judge.includes(key))).slice(0, 6)
}

const available = (run, which) => numberColumns.filter(key => run.bases.some(b => (which === "*" || b.name === which) && b.quartiles[key]))
const columnsOf = (run, state) => (state.cols ? available(run, state.basis).filter(key => state.cols.split(",").includes(key)) : present(run, state.basis))

/* The text of ranges with some of them set anew: {key: [low, high]}, null to drop one. */
function withBounds(text, changes) {
  const all = Object.fromEntries(boundsOf(text).map(([key, ...two]) => [key, two]))
  const end = x => (Number.isFinite(x) ? String(+x.toPrecision(3)) : "")
  return Object.entries({ ...all, ...changes }).filter(([, two]) => two && two.some(Number.isFinite)).map(([key, two]) => `${key}:${two.map(end).join(":")}`).join(",")
}

/* ---- drawing ---- */

/* Of the bases that have one colour and one name, in several layers, the first. */
const oneAColour = run => [...new Map(run.bases.toReversed().map(b => [`${hue(run, b.name)} ${inFewWords(run, b.name)}`, b])).values()].toReversed()

function controlsOf(form, more, run, state, change, y) {
  const option = (value, text, now) => h("option", { value, selected: value === now }, text)
  const opened = {} // which of the details below the filters are open
  const folded = (key, title, ...content) => h("details", { open: opened[key], ontoggle: event => { opened[key] = event.target.open } }, h("summary", { "data-key": key }, title), content)
  const ranges = () => {
    const now = Object.fromEntries(boundsOf(state.range).map(([key, ...two]) => [key, two]))
    const end = (key, i, word) => h("input", { type: "number", step: "any", name: `${key}-${i}`, "data-key": `${key}-${i}`, "aria-label": `${terms[key].title}, ${word}`, placeholder: word, value: Number.isFinite(now[key]?.[i]) ? now[key][i] : "",
      oninput: later(e => { const two = [...now[key] ?? [-Infinity, Infinity]]; two[i] = e.target.value === "" ? [-Infinity, Infinity][i] : Number(e.target.value); change({ range: withBounds(state.range, { [key]: two }) }) }, 300) })
    return h("div.ranges", null, available(run, state.basis).map(key => h("div", { role: "group", "aria-label": terms[key].title }, h("span", null, term(key), shares.has(key) ? " (0 to 1)" : ""), end(key, 0, "least"), end(key, 1, "most"))))
  }
  const boxes = () => h("div.boxes", null, available(run, state.basis).map(key => h("label", null, h("input", { type: "checkbox", "data-key": `col-${key}`, checked: columnsOf(run, state).includes(key), onchange: e => {
    const cols = new Set(columnsOf(run, state))
    cols[e.target.checked ? "add" : "delete"](key)
    change({ cols: [...cols].join(",") || "none" }, true)
  } }), terms[key].title)), state.cols ? h("button", { type: "button", "data-key": "col-reset", "aria-label": "the usual columns", onclick: () => change({ cols: "" }, true) }, "the usual ones") : null)
  const chips = () => boundsOf(state.range).map(([key, low, high]) => h("button", { type: "button", "data-key": `drop-${key}`, title: "take this range away", onclick: () => change({ range: withBounds(state.range, { [key]: null }) }) }, `${terms[key]?.title ?? key} ${low === -Infinity ? `≤ ${bound(key, high)}` : high === Infinity ? `≥ ${bound(key, low)}` : `${bound(key, low)} to ${bound(key, high)}`} ×`))
  return () => {
    const inside = [form, more].find(box => box.contains(document.activeElement))
    const focused = inside ? document.activeElement.name || document.activeElement.dataset.key : null
    const typed = inside && document.activeElement.matches("input[type=number]") ? document.activeElement.value : null
    const at = focused === "q" ? form.q.selectionStart : null
    const statuses = statusOrder.filter(s => run.bases.some(b => (state.basis === "*" || b.name === state.basis) && b.statuses[s]))
    const collections = people.collections()
    form.replaceChildren(...[
      h("label", null, "Search labels", h("input", { type: "search", name: "q", value: state.q, placeholder: innerWidth > 720 ? "cat OR dog -wild ( / )" : "cat OR dog", title: "All words must be found. OR separates alternatives, NOT or - excludes, \"quotes\" keep words together; a number is a unit.", oninput: later(e => change({ q: e.target.value }), 40) })),
      h("label", null, "Basis", h("select", { name: "basis", onchange: e => change({ basis: e.target.value, status: "" }) },
        run.bases.map(b => option(b.name, `${inWords(run, b.name)} (${format.count(b.units)})`, state.basis)), option("*", "all bases", state.basis))),
      h("label", null, "Status", h("select", { name: "status", onchange: e => change({ status: e.target.value }) },
        option("", "any", state.status), statuses.map(s => option(s, `${terms[s].title} (${count(run, state, s)})`, state.status)))),
      h("label", null, "Fires on", h("select", { name: "least", onchange: e => change({ least: e.target.value }) },
        option("", "any share", state.least), option("rare", "up to 1 %", state.least), option("some", "1–10 %", state.least), option("often", "10–80 %", state.least), option("dense", "over 80 %", state.least))),
      h("label", null, "Label", h("select", { name: "chance", onchange: e => change({ chance: e.target.value }) },
        option("", "any", state.chance), run.bases.some(b => b.badges) ? [option("holds", "holds", state.chance), option("weak", "weak", state.chance), option("luck", "may be luck", state.chance)] : null,
        option("1", "given with confidence", state.chance), option("abstains", "abstains", state.chance), option("2", "two meanings", state.chance))),
      h("label", null, "Your verdict", h("select", { name: "said", onchange: e => change({ said: e.target.value }) },
        option("", "any", state.said), Object.keys(saying).map(word => option(word, word, state.said)))),
      collections.length ? h("label", null, "Collection", h("select", { name: "in", onchange: e => change({ in: e.target.value, ...e.target.value ? { basis: "*" } : {} }) }, option("", "any", state.in), collections.map(name => option(name, name, state.in)))) : null,
      h(`label${state.view === "gallery" ? "" : ".narrow"}`, null, "Sort by", h("select", { name: "sort", onchange: e => change({ sort: e.target.value, down: rising.has(e.target.value) ? "" : "1" }) },
        ["unit", "label", ...available(run, state.basis), "status"].map(k => option(k, terms[k]?.title ?? k, state.sort)))),
      h("label", null, "Height in the plot", h("select", { name: "y", onchange: e => change({ y: e.target.value }) },
        available(run, "*").filter(k => k !== "firing_rate").map(k => option(k, terms[k].title, y())))),
      h("label", null, "Show as", h("select", { name: "view", onchange: e => change({ view: e.target.value }, true) }, option("", "table", state.view), option("gallery", "gallery", state.view))),
    ].filter(Boolean))
    more.replaceChildren(...[
      folded("ranges", "Ranges", ranges()), state.view === "gallery" ? null : folded("columns", "Columns", boxes()),
      h("span.chips", null, chips(), state.only ? h("button", { type: "button", "data-key": "drop-only", onclick: () => change({ only: "" }) }, `${format.plural(codes(state.only).length, "chosen unit")} ×`) : null),
      Object.keys(listDefaults).some(key => !["basis", "sort", "down"].includes(key) && state[key]) ? h("button", { type: "button", "data-key": "reset", onclick: () => change({ ...listDefaults, basis: state.basis }) }, "clear all filters") : null,
    ].filter(Boolean))
    if (!focused) return
    const again = form[focused] ?? more.querySelector(`[data-key="${focused}"]`)
    if (again && typed !== null) again.value = typed
    ;(again ?? form.q).focus({ preventScroll: true }) // what was taken away leaves the focus to the search
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

const pagesOf = count => Math.max(1, Math.ceil(count / perPage))
/* The page that an address names, as far as the list still has it: decisions and new runs make lists shorter. */
const pageOf = (count, state) => Math.min(Math.max(1, Math.floor(Number(state.page)) || 1), pagesOf(count))
const onPage = (rows, state) => rows.slice((pageOf(rows.length, state) - 1) * perPage, pageOf(rows.length, state) * perPage)

function tick(run, r) {
  const one = code(run, r.basis, r.unit)
  return h("input.tick", { type: "checkbox", "data-code": one, "data-key": `tick-${one}`, checked: chosen.has(one), "aria-label": `tick unit ${r.unit}` })
}

function tableOf(run, rows, columns, state, change) {
  const head = (key, text, css) => {
    const now = state.sort === key
    const next = { sort: key, down: now ? (state.down ? "" : "1") : rising.has(key) ? "" : "1" }
    return h(`th${css ? `.${css}` : ""}`, { scope: "col", "aria-sort": now ? (state.down ? "descending" : "ascending") : null },
      h("button", { type: "button", "data-key": key, "data-term": terms[key] ? key : null, onclick: () => change(next) }, text ?? terms[key].title, now ? (state.down ? " ↓" : " ↑") : ""))
  }
  const link = r => unitLink(r.basis, r.unit) + along(state)
  const body = onPage(rows, state).map(r => h("tr", { onclick: event => { if (!event.target.closest("a, [data-term], input")) location.href = link(r) } },
    h("td.id", null, tick(run, r), dot(run, r.basis), r.unit, state.basis === "*" ? h("small", null, inWords(run, r.basis)) : null),
    h("td.pics", null, strip(r.thumbs)),
    h("td.name", null, h("a", { href: link(r), class: r.abstained ? "abstained" : null }, r.label ?? "no label"), r.several ? [" ", h("span.tag", { "data-term": "meanings", tabindex: 0 }, "two meanings")] : null, h("div.marks", null, marks(r), saidMarks(r.said))),
    columns.map(key => h("td.num", { "data-title": terms[key].title }, shown(key, r[key]))),
    h("td.state", null, status(r.status))))
  return h("table.units", null,
    h("thead", null, h("tr", null, head("unit", "Unit"), h("th", { scope: "col" }, "Strongest images"), head("label", "Label"), columns.map(key => head(key, null, "num")), head("status", "Status"))),
    h("tbody", null, body.length ? body : h("tr", null, h("td", { colspan: columns.length + 4 }, "No unit matches. Widen the filters."))))
}

function galleryOf(run, rows, state) {
  const cards = onPage(rows, state).map(r => h("div.unitcard", null, h("a.card", { href: unitLink(r.basis, r.unit) + along(state) },
    h("span.mosaic", null, r.thumbs.slice(0, 3).map((id, j) => picture(id, `strongest image ${j + 1} of unit ${r.unit}`))),
    h("div.name", null, r.label ?? "no label"), h("div.meta", null, dot(run, r.basis), `${state.basis === "*" ? `${inWords(run, r.basis)} · ` : ""}unit ${r.unit} · fires on ${format.share(r.firing_rate)}`, numberColumns.includes(state.sort) && state.sort !== "firing_rate" ? ` · ${terms[state.sort].title.toLowerCase()} ${shown(state.sort, r[state.sort])}` : ""), h("div", null, marks(r), saidMarks(r.said))), tick(run, r)))
  return cards.length ? h("div.cards.units-gallery", null, cards) : h("p", null, "No unit matches. Widen the filters.")
}

function pager(count, state, change) {
  const [now, pages] = [pageOf(count, state), pagesOf(count)]
  const go = to => change({ page: String(to) }, true)
  return h("nav.pager", { "aria-label": "Pages of the table" },
    h("button", { type: "button", "data-key": "back", disabled: now <= 1, onclick: () => go(now - 1) }, "← Back"),
    `page ${now} of ${format.count(pages)}`,
    h("button", { type: "button", "data-key": "next", disabled: now >= pages, onclick: () => go(now + 1) }, "Next →"))
}

function keys(event, state, rows, change) {
  if (event.target.closest("input:not([type=checkbox]), select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return
  const [now, pages] = [pageOf(rows.length, state), pagesOf(rows.length)]
  if (event.key === "/") { event.preventDefault(); document.querySelector("input[type=search]").focus() }
  if (event.key === "ArrowRight" && now < pages) change({ page: String(now + 1) }, true)
  if (event.key === "ArrowLeft" && now > 1) change({ page: String(now - 1) }, true)
}

/* ---- what can be done with ticked units ---- */

function pickedOf(run, state, change, redraw) {
  if (!chosen.size) return []
  const list = [...chosen].join("_")
  const name = h("input", { maxlength: 60, placeholder: "a collection", "aria-label": "Collection", list: "collections" })
  const add = async event => {
    event.preventDefault()
    const given = name.value.trim().replace(/\s+/g, " ")
    if (!given) return name.focus()
    for (const [b, unit] of codes(list)) {
      const mine = people.of(run.bases[b].name, unit)?.collections ?? []
      if (!mine.includes(given)) await people.say(run.bases[b], { unit }, { collections: [...mine, given] })
    }
    toast(`${format.plural(chosen.size, "unit")} in ${given}`)
    chosen.clear()
    redraw()
  }
  return [
    h("b", null, format.plural(chosen.size, "unit")),
    chosen.size > 1 && chosen.size < 5 ? h("a.button", { href: `beside.html#${list}` }, "Side by side") : h("span.quiet", null, chosen.size < 2 ? "tick two to four to put them side by side" : "four at most stand side by side"),
    h("form", { onsubmit: add }, name, h("button", null, "Add to collection")), h("datalist", { id: "collections" }, people.collections().map(value => h("option", { value }))),
    h("button", { type: "button", onclick: () => change({ ...listDefaults, basis: "*", only: list }) }, "Only these (an address to share)"),
    h("button", { type: "button", onclick: () => { chosen.clear(); redraw(); document.querySelector(".tick")?.focus({ preventScroll: true }) } }, "Clear"),
  ]
}

/* ---- to take away: the units that match, in the order shown; what was decided in this browser ---- */

function asCsv(run, rows) {
  const numbers = [...new Set(run.bases.flatMap(b => Object.keys(b.quartiles ?? {})))]
  const own = { verdict: r => r.said?.verdict, relabelled: r => (r.said?.edited ? true : null), star: r => r.said?.star || null, note: r => r.said?.note, collections: r => r.said?.collections.join("; ") || null }
  const said = rows.some(r => r.said) ? Object.keys(own) : []
  const head = ["basis", "unit", "label", "abstained", "badge", "status", "several", ...numbers, ...said]
  const cell = x => (x === null || x === undefined ? "" : /[",\n\r]/.test(String(x)) ? `"${String(x).replaceAll('"', '""')}"` : String(x))
  return [head, ...rows.map(r => head.map(key => (key in own ? own[key](r) : r[key])))].map(line => line.map(cell).join(",")).join("\r\n") + "\r\n"
}

function decisions(run) {
  const rows = people.local()
  if (!rows.length) return null
  const text = () => `${people.local().map(row => JSON.stringify(row)).join("\n")}\n`
  return h("section.decisions", null, h("h2", null, "Your decisions"),
    h("p.lead", null, `${format.plural(rows.length, "decision")} ${rows.length === 1 ? "is" : "are"} kept in this browser alone. Download them, and add the lines to `, h("code", null, `live/${run.name}/judgements.jsonl`), " beside the run: the next ", h("code", null, "saelab report"), " has them on its pages and among the files to take away."),
    h("button", { type: "button", onclick: () => save("judgements.jsonl", text(), "application/x-ndjson") }, "Download your decisions (JSONL)"))
}

function save(name, text, type) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name })
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
