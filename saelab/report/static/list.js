/* Lists of units: rows of the summaries, filters and sorting that live in an address. The browser of units shows such a
   list; a unit's page walks along it. */
"use strict"

const numberColumns = ["score", "null_percentile", "margin", "firing_rate", "truth_r", "caption_r", "auprc", "f1", "iou", "auroc", "scs", "clarity", "caption_clarity", "monosemanticity", "polysemanticity", "redundancy"]
const faithful = ["truth_r", "caption_r", "auprc", "scs"]
const rising = new Set(["unit", "label", "status"]) // sorted upwards first; numbers from the largest down
/* What makes a list; the browser of units has more in its address (page, columns, view). */
const listDefaults = { basis: "", status: "", q: "", sort: "unit", down: "", least: "", chance: "", range: "", said: "", in: "", only: "" }

/* ---- rows ---- */

const loaded = new Map()

async function load(run, which) {
  await people.ready()
  const names = which === "*" ? run.bases.map(b => b.name) : [which]
  const parts = await Promise.all(names.map(async name => {
    if (!loaded.has(name)) loaded.set(name, rowsOf(name, await saelab.need(`summary-${number(run, name)}`)))
    return loaded.get(name)
  }))
  return parts.length === 1 ? parts[0] : parts.flat()
}

/* ---- filters ---- */

/* What the choice "Label" keeps. */
const keeps = {
  holds: r => r.badge === "holds", weak: r => r.badge === "weak", luck: r => r.badge === "may be luck",
  1: r => r.label !== null && !r.abstained, abstains: r => r.label !== null && r.abstained, 2: r => r.several,
}

/* What the choice "Your verdict" keeps. */
const saying = {
  undecided: r => !r.said?.verdict && !r.said?.edited, accepted: r => r.said?.verdict === "accepted", rejected: r => r.said?.verdict === "rejected",
  relabelled: r => r.said?.edited, starred: r => r.said?.star, noted: r => r.said?.note,
}

/* Words to a test of a row. All words must be found; OR separates alternatives, NOT or - excludes, "..." keeps words
   together (also while its end is still to be typed), a number is also a unit. */
function query(text) {
  const found = [...text.matchAll(/(-?)(?:"([^"]*)(?:"|$)|(\S+))/g)].map(([, minus, phrase, word]) => ({ minus: minus === "-", word: (phrase ?? word).toLowerCase(), quoted: phrase !== undefined, raw: word }))
  const alternatives = [[]]
  let not = false
  for (const { minus, word, quoted, raw } of found) {
    if (!quoted && raw === "OR") alternatives.push([])
    else if (!quoted && raw === "NOT") not = true
    else if (quoted || raw !== "AND") {
      alternatives.at(-1).push({ word, without: not || minus })
      not = false
    }
  }
  const some = alternatives.filter(terms => terms.length)
  if (!some.length) return () => true
  const has = wordIn(some.flat().map(({ word }) => word))
  return r => some.some(terms => terms.every(({ word, without }) => has(r, word) !== without))
}

/* Is a word in a unit's label, or the unit's number? Units share labels, so each label is read once. */
function wordIn(words) {
  const unit = new Map(words.map(word => [word, String(Number(word)) === word ? Number(word) : null]))
  const holding = new Map(words.map(word => [word, new Map()])) // columns -> the places of the labels that hold it
  const places = (columns, word) => {
    const known = holding.get(word)
    if (!known.has(columns)) known.set(columns, Uint8Array.from(columns.labels, label => label.toLowerCase().includes(word)))
    return known.get(columns)
  }
  return (r, word) => r.unit === unit.get(word) || places(r.columns, word)[r.columns.label[r.unit]] === 1 || word === ""
}

/* "score:0.2:,clarity::0.5" as [[column, least, most]]; what is no number bounds nothing. */
const boundsOf = text => text.split(",").filter(Boolean).map(part => {
  const [key, low, high] = part.split(":")
  const end = (text, open) => (text && !Number.isNaN(Number(text)) ? Number(text) : open)
  return [key, end(low, -Infinity), end(high, Infinity)]
})

/* A bound in words: a share in per cent, as the tables have it. */
const bound = (key, x) => (shares.has(key) ? format.share(x) : x)

const code = (run, basis, unit) => `${number(run, basis)}.${unit}`
const codes = text => text.split("_").filter(Boolean).map(part => part.split(".").map(Number))

function filtered(run, rows, state) {
  const wanted = query(state.q)
  const bounds = boundsOf(state.range)
  const only = state.only ? new Set(state.only.split("_")) : null
  const [low, high] = { "": [-1, 2], rare: [0, 0.01], some: [0.01, 0.1], often: [0.1, 0.8], dense: [0.8, 2] }[state.least] ?? [-1, 2]
  return rows.filter(r =>
    (!state.status || r.status === state.status) &&
    (!state.chance || keeps[state.chance]?.(r)) &&
    (!state.said || saying[state.said]?.(r)) &&
    (!state.in || r.said?.collections.includes(state.in)) &&
    (!only || only.has(code(run, r.basis, r.unit))) &&
    (!state.least || (r.firing_rate > low && r.firing_rate <= high)) &&
    bounds.every(([key, least, most]) => r[key] !== null && r[key] !== undefined && r[key] >= least && r[key] <= most) &&
    wanted(r))
}

const collator = new Intl.Collator("en") // several times as fast as asking each text to compare itself

/* The rows in the order that is asked for: what has no value comes last either way, equals stand by number. */
function sorted(rows, state) {
  const sign = state.down ? -1 : 1
  const keys = keysOf(rows, state.sort)
  const missing = i => Number.isNaN(keys[i])
  const order = Uint32Array.from(rows.keys()).sort((i, j) => {
    if (missing(i) || missing(j)) return missing(i) - missing(j) || rows[i].unit - rows[j].unit
    return sign * (keys[i] - keys[j]) || rows[i].unit - rows[j].unit
  })
  return Array.from(order, i => rows[i])
}

/* What rows are sorted by, as numbers: words by their place in the alphabet, each word looked up once; NaN: no value. */
function keysOf(rows, key) {
  const values = rows.map(r => r[key] ?? null)
  if (!values.some(value => typeof value === "string")) return Float64Array.from(values, value => value ?? NaN)
  const words = [...new Set(values)].filter(value => value !== null).sort(collator.compare)
  const place = new Map()
  words.forEach((word, i) => place.set(word, i && collator.compare(words[i - 1], word) === 0 ? place.get(words[i - 1]) : i))
  return Float64Array.from(values, value => place.get(value) ?? NaN)
}

/* ---- the address ---- */

/* Is it one basis by unit number, with no filter? */
const plain = state => state.basis !== "*" && Object.keys(listDefaults).every(key => key === "basis" || (state[key] ?? listDefaults[key]) === listDefaults[key])

/* What a link to a unit carries, so that its page walks along the list: "?q=cat&sort=score", or nothing. */
function along(state, more) {
  const kept = plain(state) ? [] : Object.keys(listDefaults).filter(key => key === "basis" || (state[key] ?? "") !== listDefaults[key]).map(key => [key, state[key]])
  const text = new URLSearchParams([...kept, ...Object.entries(more ?? {})]).toString()
  return text ? `?${text}` : ""
}

const walked = new Map() // list in an address -> its units: a list stays as it was opened, whatever is decided on the way

/* The units of the list that an address names, [[basis, unit]]; null for a basis in its own order. */
async function listOf(run, params) {
  const state = { ...listDefaults, ...Object.fromEntries(params) }
  if (!state.basis || plain(state) || (state.basis !== "*" && number(run, state.basis) < 0)) return null
  const key = along(state)
  if (!walked.has(key)) walked.set(key, sorted(filtered(run, await load(run, state.basis), state), state).map(r => [r.basis, r.unit]))
  return walked.get(key)
}

/* A list in words: "“cat”, by score". */
function listWords(run, params) {
  const state = { ...listDefaults, ...Object.fromEntries(params) }
  const part = {
    q: q => `“${q}”`, in: name => `collection ${name}`, only: () => "chosen units", said: word => word, chance: word => ({ luck: "may be luck", 1: "confident", 2: "two meanings" })[word] ?? word,
    status: word => word, least: word => ({ rare: "fires on up to 1 %", some: "fires on 1–10 %", often: "fires on 10–80 %", dense: "fires on over 80 %" })[word],
    range: text => boundsOf(text).map(([key, low, high]) => `${terms[key]?.title ?? key} ${low === -Infinity ? `up to ${bound(key, high)}` : high === Infinity ? `from ${bound(key, low)}` : `${bound(key, low)} to ${bound(key, high)}`}`).join(", "),
  }
  const words = Object.keys(part).filter(key => state[key]).map(key => part[key](state[key]))
  const order = state.sort === "unit" ? [] : [`by ${(terms[state.sort]?.title ?? state.sort).toLowerCase()}${state.down ? "" : ", rising"}`]
  return [state.basis === "*" ? "all bases" : inWords(run, state.basis), ...words, ...order].join(", ")
}
