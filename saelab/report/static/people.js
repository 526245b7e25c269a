/* What people say of units: verdicts, other labels, stars, notes, collections. It lies over the run's own data where
   they arrive, so that every page shows it. Pages from disk keep it in the browser; the live viewer keeps it in files. */
"use strict"

const people = (() => {
  const need = saelab.need
  const states = new Map()
  const seen = new Set()
  const at = (basis, unit) => `${basis}\t${unit}`
  const fields = ["verdict", "star", "note", "collections"]
  let run = null
  let started = null

  /* Add a line to what is known of its unit. */
  function fold(row) {
    const once = JSON.stringify([row.basis, row.unit, row.when, row.new, ...fields.map(f => row[f])])
    if (seen.has(once)) return
    seen.add(once)
    const key = at(row.basis, row.unit)
    const state = states.get(key) ?? { verdict: null, star: false, note: null, collections: [], history: [] }
    for (const field of fields) if (field in row) state[field] = row[field]
    if ("new" in row) state.label = row.new
    state.history.push(row)
    states.set(key, state)
  }

  /* In the browser: lines under the run's name, of this run's units alone. */
  const kept = () => `saelab-people ${run.name}`
  function local() {
    if (source.where !== "browser") return []
    try {
      return JSON.parse(localStorage.getItem(kept()) ?? "[]").filter(row => run.bases.find(b => b.name === row.basis)?.artifact === row.units)
    } catch { return [] }
  }
  const source = {
    where: "browser",
    read: () => need("people"),
    keep: async row => {
      try { localStorage.setItem(kept(), JSON.stringify([...local(), row])) } catch { toast("This browser keeps nothing: download the decisions before you close the page") }
      return row
    },
  }

  function ready() {
    started ??= (async () => {
      const [own, lines] = await Promise.all([need("run"), source.read()])
      run = own
      for (const row of [...lines, ...local()]) fold(row)
    })()
    return started
  }

  /* The run's own label gives way to the one that people gave; what judges the own one goes with it. */
  function dress(record, basis) {
    const state = states.get(at(basis, record.unit))
    if (!state) return record
    record.own ??= { label: record.label, abstained: record.abstained, badge: record.badge }
    state.edited = state.label !== undefined && state.label !== record.own.label
    Object.assign(record, record.own, state.edited ? { label: state.label, abstained: false, badge: null } : {})
    return record
  }

  const amended = new WeakSet()
  function amend(key, value) {
    if (amended.has(value)) return
    amended.add(value)
    if (key === "run") for (const b of value.bases) for (const card of [...b.best, ...b.sample]) dress(card, b.name)
    const [, what, b] = key.match(/^(units|summary)\W(\d+)/) ?? []
    if (!what) return
    const basis = run.bases[b].name
    if (what === "units") for (const record of value) dress(record, basis)
    else for (const [place, state] of states) {
      const [name, unit] = [place.slice(0, place.lastIndexOf("\t")), Number(place.slice(place.lastIndexOf("\t") + 1))]
      if (name !== basis || unit >= value.count || state.label === undefined) continue
      state.edited = state.label !== (value.labels[value.label[unit]] ?? null)
      if (state.edited) { value.badge[unit] = -1; value.label[unit] = state.label === null ? -1 : value.labels.push(state.label) - 1 }
    }
  }

  saelab.need = async key => {
    const value = await need(key)
    if (key === "run" || /^(units|summary)/.test(key)) {
      await ready()
      amend(key, value)
    }
    return value
  }

  /* Keep a change of a unit: any of verdict, star, note, collections; or new, a label (null: none fits). */
  async function say(basis, record, change) {
    const row = { units: basis.artifact, basis: basis.name, unit: record.unit, ...change, ..."new" in change ? { old: record.label } : {}, who: name.value || "unnamed", when: new Date().toISOString() }
    fold(await source.keep(row) ?? row)
    dress(record, basis.name)
  }

  const name = {
    get value() { try { return localStorage.getItem("saelab-name") ?? "" } catch { return "" } },
    set value(text) { try { localStorage.setItem("saelab-name", text) } catch { /* no storage */ } },
  }
  return {
    ready, say, source, name, dress,
    of: (basis, unit) => states.get(at(basis, unit)),
    local: () => (run ? local() : []),
    collections: () => [...new Set([...states.values()].flatMap(s => s.collections))].sort((a, b) => a.localeCompare(b)),
  }
})()

/* What people said of a unit, as marks. */
function saidMarks(said) {
  if (!said) return []
  const chip = (css, text, title) => h(`span.badge.said.${css}`, { title }, text)
  return [
    said.verdict ? chip(said.verdict, said.verdict, "what people decided") : null,
    said.edited ? chip("relabelled", "relabelled", "people gave it this label") : null,
    said.star ? chip("star", "★ starred", "starred") : null,
    said.note ? chip("note", "note", said.note) : null,
  ]
}

const collectionLink = name => `units.html#${new URLSearchParams({ basis: "*", in: name })}`

/* Lines that say what changed, newest first. */
function historyOf(said, own) {
  const what = row => [
    "new" in row ? `label: ${row.new ?? "none fits"}` : null, "verdict" in row ? (row.verdict ?? "undecided again") : null, "star" in row ? (row.star ? "starred" : "star taken off") : null,
    "note" in row ? (row.note ? `note: ${row.note}` : "note taken off") : null, "collections" in row ? `collections: ${row.collections.join(", ") || "none"}` : null,
  ].filter(Boolean).join("; ")
  const day = when => when.slice(0, 16).replace("T", " ")
  return h("details.history", null, h("summary", null, `History (${said.history.length})`),
    h("ol", { reversed: true }, said.history.toReversed().map(row => h("li", null, what(row), h("span.quiet", null, ` · ${row.who}, ${day(row.when)}`)))),
    h("p.note", null, `The run’s own label: ${own ?? "none"}. The numbers on this page belong to it.`))
}
