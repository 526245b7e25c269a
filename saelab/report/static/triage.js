/* Deciding about one unit after another: the keys, the bar at the foot of a unit's page, what people said of the unit. */
"use strict"

/* key -> [action, its word on the bar, what it does] */
const triageKeys = {
  a: ["accept", "Accept", "accept the label, go on"], x: ["reject", "Reject", "reject the label, go on"], e: ["relabel", "Relabel", "write another label, go on"],
  s: ["skip", "Skip", "go on without a verdict"], u: ["undo", "Undo", "take the last verdict back"], f: ["star", "Star", "star the unit"],
  n: ["note", "Note", "write a note"], c: ["collect", "Collect", "put it into a collection"], v: ["beside", "Side by side", "put it beside others (2 to 4)"],
}
const verdicts = { accept: "accepted", reject: "rejected" }

/* Where a unit stands in a list of units (null: its basis in order), and who is before and after it. Numbers of units begin
   at 0 and places at 1, so that in its basis in order a unit has its number and no place beside it. */
function stepsOf(basis, unit, list) {
  if (!list) return { where: `${alone[basis.kind] ?? "unit"} ${unit} of 0–${format.count(basis.units - 1)}`, previous: unit > 0 ? [basis.name, unit - 1] : null, next: unit + 1 < basis.units ? [basis.name, unit + 1] : null }
  const place = list.findIndex(([name, u]) => name === basis.name && u === unit)
  if (place < 0) return { where: "not in this list", previous: list.at(-1) ?? null, next: list[0] ?? null }
  return { where: `place ${format.count(place + 1)} of ${format.count(list.length)}`, previous: list[place - 1] ?? null, next: list[place + 1] ?? null }
}

/* What acts on the unit that is shown. `at()` tells {run, basis, record, steps}; `go` and `redraw` draw, and can be awaited. */
function triage({ at, go, redraw }) {
  const undone = []
  let turn = Promise.resolve() // keys wait for each other: a fast reader's second key is for the next unit

  async function settle(change, words, advance) {
    const { basis, record, steps } = at()
    const said = people.of(basis.name, record.unit)
    const before = { place: [basis.name, record.unit], verdict: said?.verdict ?? null, label: "new" in change ? record.label : undefined }
    await people.say(basis, record, change)
    if ("verdict" in change || "new" in change) undone.push(before)
    if (advance && steps.next) await go(steps.next)
    else await redraw()
    toast(advance && !steps.next ? `${words}. That was the last unit of this list.` : words)
  }

  const acts = {
    accept: () => settle({ verdict: "accepted" }, `Accepted: ${at().record.label ?? "no label"}`, true),
    reject: () => settle({ verdict: "rejected" }, `Rejected: ${at().record.label ?? "no label"}`, true),
    skip: () => (at().steps.next ? go(at().steps.next) : toast("That was the last unit of this list.")),
    async undo() {
      const last = undone.pop()
      if (!last) return toast("Nothing to undo")
      await go(last.place)
      const { basis, record } = at()
      await people.say(basis, record, { verdict: last.verdict, ...last.label === undefined ? {} : { new: last.label } })
      await redraw()
      toast("Taken back")
    },
    async star() {
      const { basis, record } = at()
      const star = !people.of(basis.name, record.unit)?.star
      await settle({ star }, star ? "Starred" : "Star taken off", false)
    },
    relabel() {
      const form = document.querySelector("details.edit")
      form.open = true
      form.dataset.advance = "true"
      form.querySelector("input[name=label]").select()
    },
    note: () => document.querySelector("input[name=note]").focus(),
    collect: () => document.querySelector("input[name=collection]").focus(),
    beside() {
      const { run, basis, record } = at()
      toast(beside.toggle(code(run, basis.name, record.unit)))
      return redraw()
    },
  }
  const act = name => {
    turn = turn.then(() => acts[name]()).catch(error => toast(`Not kept: ${error.message}`))
    return turn
  }
  return { act, settle: (...given) => { turn = turn.then(() => settle(...given)).catch(error => toast(`Not kept: ${error.message}`)); return turn } }
}

/* The units that stand side by side, kept while the window is open. */
const beside = {
  get codes() { try { return (sessionStorage.getItem("saelab-beside") ?? "").split("_").filter(Boolean) } catch { return [] } },
  set codes(list) { try { sessionStorage.setItem("saelab-beside", list.join("_")) } catch { /* no storage */ } },
  toggle(one) {
    const now = this.codes
    if (now.includes(one)) { this.codes = now.filter(c => c !== one); return "No longer side by side" }
    if (now.length === 4) return "Four units at most stand side by side: take one out first"
    this.codes = [...now, one]
    return now.length ? `${now.length + 1} units side by side` : "Side by side: add one more unit"
  },
}

function triageBar({ run, basis, record, steps, params, act }) {
  const said = people.of(basis.name, record.unit)
  const compared = beside.codes
  const pressed = { accept: said?.verdict === "accepted", reject: said?.verdict === "rejected", star: Boolean(said?.star), beside: compared.includes(code(run, basis.name, record.unit)) }
  const button = ([key, [name, text, what]]) => h("button", { type: "button", "data-key": `triage-${name}`, title: `${what} (key ${key})`, "aria-keyshortcuts": key, "aria-pressed": name in pressed ? String(pressed[name]) : null, onclick: () => act(name) }, text, h("kbd", { "aria-hidden": "true" }, key))
  const all = Object.entries(triageKeys)
  return h("div.triage", { role: "group", "aria-label": "Triage" },
    h("span.place", null, h("b", null, steps.where), " ", h("a.quiet", { href: backTo(basis, params) }, listWords(run, new URLSearchParams([["basis", basis.name], ...params])))),
    h("span.acts", null, all.map(button), compared.length > 1 ? h("a.button", { href: `beside.html#${compared.join("_")}`, "data-key": "compared" }, `See ${compared.length} side by side`) : null))
}

const backTo = (basis, params) => {
  const kept = [...params].filter(([key]) => key in listDefaults)
  return `units.html#${new URLSearchParams(kept.length ? kept : [["basis", basis.name]])}`
}

/* The form that gives a unit another label; from disk as from the viewer. */
function labelForm(record, settle) {
  const label = h("input", { name: "label", value: record.label ?? "", maxlength: 200, size: 32, autocomplete: "off", list: "candidates" })
  const who = h("input", { name: "who", value: people.name.value, maxlength: 60, size: 16, autocomplete: "name", placeholder: "unnamed" })
  const given = [...new Set(Object.values(record.scores).flatMap(s => [s.label, ...(s.runners_up ?? []).map(([text]) => text)]))].filter(Boolean)
  const own = record.own?.label
  const save = text => {
    people.name.value = who.value.trim()
    return settle({ new: text }, text === null ? "No label fits" : `Label: ${text}`, whole.dataset.advance === "true")
  }
  const other = (text, value) => h("button", { type: "button", "aria-label": text, onclick: () => save(value) }, text)
  const whole = h("details.edit", { ontoggle: () => { if (!whole.open) delete whole.dataset.advance } }, h("summary", null, "Change the label"),
    h("form.controls", { onsubmit: event => { event.preventDefault(); if (label.value.trim()) save(label.value.trim().replace(/\s+/g, " ")) } },
      h("label", null, "Label", label), h("label", null, "Your name", who), h("button", { "aria-label": "Save the label" }, "Save"), other("No label fits", null),
      isEdited(record) ? other("Back to the run’s label", own) : null),
    h("datalist", { id: "candidates" }, given.map(value => h("option", { value }))))
  return whole
}

const isEdited = record => Boolean(record.own) && record.label !== record.own.label

/* Star, note, collections and history of a unit. */
function notebook({ basis, record, settle, act }) {
  const said = people.of(basis.name, record.unit)
  const mine = said?.collections ?? []
  const note = h("input", { name: "note", value: said?.note ?? "", maxlength: 500, placeholder: "a note", autocomplete: "off" })
  const collection = h("input", { name: "collection", maxlength: 60, placeholder: "add to a collection", list: "collections", autocomplete: "off" })
  const keepNote = event => { event.preventDefault(); note.blur(); settle({ note: note.value.trim().replace(/\s+/g, " ") || null }, note.value.trim() ? "Note kept" : "Note taken off", false) }
  const add = event => {
    event.preventDefault()
    const name = collection.value.trim().replace(/\s+/g, " ")
    collection.blur()
    if (name && !mine.includes(name)) settle({ collections: [...mine, name] }, `In ${name}`, false)
  }
  return h("div.notebook", null,
    h("button.starred", { type: "button", "data-key": "starred", "aria-pressed": String(Boolean(said?.star)), onclick: () => act("star") }, said?.star ? "★ starred" : "☆ star"),
    h("form", { onsubmit: keepNote }, h("label", null, "Note ", note)),
    h("form", { onsubmit: add }, h("label", null, "Collection ", collection)),
    h("datalist", { id: "collections" }, people.collections().map(value => h("option", { value }))),
    mine.length ? h("ul.chips", { "aria-label": "Its collections" }, mine.map((name, i) => h("li", null, h("a", { href: collectionLink(name) }, name),
      h("button", { type: "button", "data-key": `out-${i}`, "aria-label": `take out of ${name}`, onclick: () => settle({ collections: mine.filter(n => n !== name) }, `Out of ${name}`, false) }, "×")))) : null,
    said ? historyOf(said, record.own?.label ?? record.label) : null)
}
