/* One unit: its label and what unseen photos say of it, what excites it and what does not, how it was judged, who is
   like it. */
"use strict"

const shownAtOnce = 12

page(async (run, main) => {
  const now = {} // what is shown: {run, basis, record, steps, params}
  const at = () => now
  const link = ([name, u]) => unitLink(name, u) + (now.params.size ? `?${now.params}` : "")
  const go = place => { history.pushState(null, "", link(place)); return draw() }
  const { act, settle } = triage({ at, go, redraw: () => draw(true) })

  async function draw(again = false) {
    const [path, tail] = location.hash.slice(1).split("?")
    const [name, unit] = path.split("/").map(decodeURIComponent)
    const b = path ? number(run, name) : 0
    const basis = run.bases[b]
    const u = unit === undefined || unit === "" ? 0 : Number(unit)
    if (!basis) return nothing(run, main, `This report has no basis ${name}.`)
    if (!Number.isInteger(u) || u < 0 || u >= basis.units) return nothing(run, main, `${inWords(run, basis.name)} have no unit ${unit}.`)
    const params = new URLSearchParams(tail ?? "")
    const [chunk, list] = await Promise.all([saelab.need(`units/${b}/${Math.floor(u / run.chunk)}`), listOf(run, params)])
    if (params.get("view") === "heat") await libraries() // heat maps need D3's colours
    const record = chunk[u % run.chunk]
    Object.assign(now, { run, basis, record, params, steps: stepsOf(basis, u, list), list, link, act, settle })
    document.title = `${record.label ?? "no label"} · ${alone[basis.kind] ?? basis.name} ${u} · ${run.name}`
    main.style.setProperty("--c", hue(run, basis.name))
    const focused = main.contains(document.activeElement) ? document.activeElement.dataset.key : null
    main.replaceChildren(...unitPage(now))
    if (focused) (main.querySelector(`[data-key="${focused}"]`) ?? main.querySelector("[data-key=starred]"))?.focus({ preventScroll: true })
    if (!again) scrollTo(0, 0)
    if (now.steps.next) fetchAhead(run, now.steps.next)
  }
  addEventListener("hashchange", () => draw())
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    if (event.target.closest("input, select, textarea")) return event.key === "Escape" && event.target.blur()
    const pressed = { ArrowLeft: ".previous", k: ".previous", ArrowRight: ".next", j: ".next", r: ".random" }[event.key]
    if (pressed) document.querySelector(pressed)?.click()
    if (!triageKeys[event.key] || !now.record || event.repeat) return // a key held down decides about one unit
    event.preventDefault() // the key must not be typed into the field that it opens
    act(triageKeys[event.key][0])
  })
  await draw()
})

/* The data of the unit that comes next, while this one is looked at. */
function fetchAhead(run, [name, u]) {
  const chunk = saelab.need(`units/${number(run, name)}/${Math.floor(u / run.chunk)}`)
  chunk.then(records => records[u % run.chunk].positives.slice(0, 6).forEach(id => { new Image().src = thumb(id) }), () => null)
}

function unitPage(now) {
  const { run, basis, record } = now
  return [
    crumbs(now),
    lede(now),
    members(record),
    heldOut(run, basis, record),
    labelPictures(record),
    whatItDoes(record),
    meanings(record),
    record.positives.length ? exemplars(now) : null,
    synthesised(record),
    record.histogram.length ? activity(run, basis, record) : null,
    candidates(run, basis, record),
    judged(run, basis, record),
    neighbourhood(run, basis, record),
    verified(record),
    saeQuality(run, basis),
    proposals(run, record),
    triageBar(now),
  ].filter(Boolean)
}

/* The label with its marks and what they rest on; beside it the numbers, and what people said. */
function lede(now) {
  const { run, basis, record } = now
  return h("div.lede", null,
    h("div", null,
      h("h1", { class: record.abstained ? "abstained" : null }, record.label ?? "No label"),
      labelSet(record),
      h("p.marks", null, marks(record, true), saidMarks(people.of(basis.name, record.unit))),
      edited(basis, record),
      h("p.standfirst", null, verdict(run, basis, record)),
      alternatives(record),
      labelForm(record, now.settle)),
    h("div", null, facts(run, basis, record), notebook(now)))
}

/* Who changed the label, and what it was. */
function edited(basis, record) {
  if (!isEdited(record)) return null
  const last = people.of(basis.name, record.unit).history.findLast(row => "new" in row)
  return h("p.edited", null, `Changed by ${last.who} on ${last.when.slice(0, 10)}. The run’s own label is `, record.own.label === null ? "none" : h("b", null, record.own.label), ", and the numbers below belong to it.")
}

/* Every label that the images can't rule out as the best, where the run asked for sets. */
function labelSet(record) {
  const [set, shown] = [record.label_set, 6]
  if (!set) return null
  const rest = set.length - shown
  const text = set.length === 1 ? "no other label" : [...set.slice(0, shown), ...(rest > 0 ? [format.plural(rest, "other")] : [])].join(", or ")
  return h("p", null, term("label_set"), ": ", h("span.serif", null, text))
}

/* The next best labels of the scorer that gave the label. */
function alternatives(record) {
  const found = record.scores[record.scorer]
  const others = [found?.label, ...(found?.runners_up ?? []).map(([label]) => label)].filter(label => label && label !== record.label).slice(0, 4)
  return others.length && record.label ? h("p.quiet", null, "Next best: ", others.join(", "), ".") : null
}

function crumbs({ run, basis, record, steps, list, link, params }) {
  const go = (to, css, text) => h(`a.button.${css}`, { href: to && link(to), "aria-disabled": to ? null : "true", "data-key": css, role: to ? null : "link" }, text)
  const any = () => list?.[Math.floor(Math.random() * list.length)] ?? [basis.name, Math.floor(Math.random() * basis.units)]
  return h("nav.crumbs", { "aria-label": "This unit" },
    h("span", null, dot(run, basis.name), h("a", { href: backTo(basis, params) }, inWords(run, basis.name))),
    inWords(run, basis.name).endsWith(basis.layer) ? null : h("span", null, basis.layer), h("strong", null, `${alone[basis.kind] ?? "unit"} ${record.unit}`), status(record.status),
    h("span.tools", null, go(steps.previous, "previous", "← previous"), go(steps.next, "next", "next →"),
      h("button.random", { type: "button", "data-key": "random", onclick: () => { location.href = link(any()) }, title: "key r" }, "random"),
      h("button", { type: "button", "data-key": "link", onclick: () => copy(location.href, "link") }, "copy link"),
      h("button", { type: "button", "data-key": "json", onclick: () => copy(JSON.stringify({ basis: basis.name, layer: basis.layer, ...record }, null, 1), "JSON") }, "copy as JSON")))
}

/* What unseen photos say of the label, in one or two sentences; then what the permutation test says. */
function verdict(run, basis, record) {
  if (record.status === "dead") return "This unit fires on no image of the set, so there is nothing to name."
  if (!record.label) return "No scorer found a label for it."
  const unsure = record.abstained ? " The scorer abstains: shuffles of the unit’s activations give labels that score as high." : ""
  const key = basis.judge
  if (!record.badge || !key) return `Nothing that people wrote judges this label.${unsure}`
  const [r, two] = [record.measured[key], record.interval[key]]
  const with_ = key === "truth_r" ? "whether the label is true of them" : "what people wrote of them"
  const how = r === null || r === undefined
    ? "On held-out photos no correlation can be computed"
    : `On held-out photos its activation has a correlation of ${format.number(r)} with ${with_}` + (two ? ` (95 % interval ${format.number(two[0])} to ${format.number(two[1])})` : "")
  const so = { holds: ": the label holds", weak: ": above chance, but by little", "may be luck": two ? ": labels dealt out at random may reach as much" : ", on too few photos to tell it from chance" }[record.badge]
  const near = key === "caption_r" && record.badge !== "may be luck" && !record.said_of ? " No caption of a held-out photo names it: the label is near to what people wrote, not their word." : ""
  return `${how}${so}.${near}${unsure}`
}

function facts(run, basis, record) {
  const m = record.measured
  const fact = (key, value, note) => h("div", null, h("dt", null, term(key)), h("dd", null, value, note ? h("small", null, ` ${note}`) : null))
  return h("dl.facts", null,
    fact("firing_rate", format.share(m.firing_rate ?? (record.images - record.silent) / record.images), `${format.count(record.fires_on ?? 0)} of ${format.plural(run.images.splits.mine ?? 0, "mined image")}`),
    basis.judge && m[basis.judge] != null ? fact(basis.judge, format.number(m[basis.judge]), record.interval[basis.judge] ? `${format.number(record.interval[basis.judge][0])} to ${format.number(record.interval[basis.judge][1])}` : null) : null,
    record.label ? fact("score", format.number(m.score, 3), `by ${terms[`scorer:${record.scorer}`]?.title ?? record.scorer}`) : null,
    m.null_percentile !== null ? fact("null_percentile", format.share(m.null_percentile)) : null,
    m.random_percentile != null ? fact("random_percentile", format.share(m.random_percentile)) : null)
}

/* Any activation above zero fires the unit. */
const response = value => (value > 0 ? `fires ${format.number(value)}` : value < 0 ? `silent, ${format.number(value)}` : "silent")

/* ---- photos that nobody looked at when the label was given ---- */

function heldOut(run, basis, record) {
  const found = record.held_out
  if (!found) return null
  const photo = ([id, value]) => h("figure", null, picture(id, record.names[id]), h("figcaption", { title: record.names[id] }, h("span.tabular", null, response(value)), ` · ${record.names[id]}`))
  if (found.strongest) {
    if (!found.strongest.length) return null
    const why = record.label ? "Nobody’s words confirm the label on any of them, which shows neither that it is right nor that it is wrong: judge by eye." : ""
    return section("On photos it was not made from", [term("hits", "Held-out photos"), ` that fire it most, with what people wrote of them. ${why}`], h("div.photos.wide", null, found.strongest.map(photo)))
  }
  const [hits, misses, alarms, rest] = found.counts
  const column = (title, count, what, list) => h("div", null, h("h3", null, `${format.count(count)} ${title} `, h("small", null, what)), list.length ? h("div.photos", null, list.map(photo)) : h("p.quiet", null, "None."), list.length && list.length < count ? h("p.note", null, `${list.length} of ${format.count(count)} shown.`) : null)
  const over = found.threshold === null
    ? ["the unit ", term("fires", "fires"), " on "] // no mined photo has the label: nothing to fit a threshold to
    : ["the unit reaches ", term("threshold", `its threshold, ${format.number(found.threshold)},`), " on "]
  const [on, off] = found.threshold === null ? ["unit fires", "unit silent"] : ["unit reaches its threshold", "unit below its threshold"]
  return section("Does the label hold on photos it was not made from?",
    [`Of ${format.count(hits + misses + alarms + rest)} `, term("hits", "held-out photos"), `, people’s words make the label true of ${format.count(hits + misses)}; `, over, `${format.count(hits + alarms)}. On the other ${format.count(rest)} neither is so.`],
    h("div.confusion", null,
      column(hits === 1 ? "hit" : "hits", hits, `label true, ${on}`, found.hits),
      column(misses === 1 ? "miss" : "misses", misses, `label true, ${off}`, found.misses),
      column(alarms === 1 ? "false alarm" : "false alarms", alarms, `${on}, label not mentioned`, found.alarms)))
}

/* ---- several meanings ---- */

function meanings(record) {
  if (record.meanings.length < 2) return null
  return section("Two meanings", ["The strongest images fall into two groups, each with a label of its own: the unit is ", term("meanings", "polysemantic"), ". The share says how much of the activation of the strongest images a group has."],
    h("div.two", null, record.meanings.map(m => h("div", null,
      h("h3", null, m.label, h("span.tag", null, format.share(m.share))),
      h("div.bar.whole", { style: `--w:${100 * m.share}%;--bar:var(--c)` }),
      h("div.group", null, m.shown.map(id => picture(id, record.names[id]))),
      h("p.note", null, `${format.plural(m.positives.length, "image")}, CSP ${format.number(m.score)}`)))))
}

/* ---- strongest images and their contrasts ---- */

function exemplars({ record, params, link, steps }) {
  const grid = h("div.pairs")
  const switches = h("div")
  const state = { mode: params.get("view") in modes ? params.get("view") : "raw" } // the next unit is shown in the same way
  let limit = shownAtOnce
  const fill = () => {
    if (record.maps) switches.replaceChildren(choice("Show", modes, state, "mode", change))
    if (state.mode === "heat") switches.firstChild.append(heatScale())
    grid.replaceChildren(...record.positives.slice(0, limit).map((_, i) => pair(record, i, state.mode)))
  }
  const change = async () => {
    if (state.mode === "heat") await libraries()
    if (state.mode === "raw") params.delete("view")
    else params.set("view", state.mode)
    history.replaceState(null, "", `${location.hash.split("?")[0]}${params.size ? `?${params}` : ""}`)
    for (const [css, to] of [["previous", steps.previous], ["next", steps.next]]) if (to) document.querySelector(`.crumbs .${css}`).href = link(to)
    fill()
  }
  const more = record.positives.length > limit
    ? h("button", { type: "button", onclick: event => { limit = record.positives.length; fill(); event.target.remove(); grid.tabIndex = -1; grid.focus({ preventScroll: true }) } }, `show all ${record.positives.length}`)
    : null
  fill()
  const fewer = record.fires_on <= record.positives.length ? ` It fires on ${format.plural(record.positives.length, "mined image")} only.` : ""
  return section("What excites it, and what does not",
    [`Large: the strongest mined images, with the activation as a share of the largest on any image. Small: the `, term("contrast", "contrast"), ` of each, the image most like it that leaves the unit below its mean; one that serves several is shown once.${fewer}`],
    switches, grid, more ? h("p", { style: "margin-top:1rem" }, more) : null)
}

function pair(record, i, mode) {
  const [id, other] = [record.positives[i], record.contrasts[i]]
  const share = record.activations[i] / record.max
  const words = record.names[id]
  return h("figure.pair", null,
    heated(record, i, words, mode),
    h("div.level", null, h("i", { style: `width:${100 * share}%` })),
    h("small", null, `${i + 1} · ${format.number(record.activations[i])} · ${format.share(share)}`, h("span.wide-only", null, " of max"), record.alike[i] ? [" · ", term("alike", `+${record.alike[i]}\u00a0alike`)] : null),
    other >= 0 && record.contrasts.indexOf(other) < i
      ? h("small", null, `contrast of photo ${record.contrasts.indexOf(other) + 1}, `, h("span.together", null, `cosine ${format.number(record.similarity[i])}`))
      : other >= 0
      ? h("div.with", null, h("div.contrast", null, h("div.frame", null, picture(other, `contrast: ${record.names[other]}`))),
        h("small", null, `cosine ${format.number(record.similarity[i])}`, h("br"), response(record.contrast_activations[i])))
      : h("small", null, "no contrast"))
}

/* ---- candidates ---- */

function candidates(run, basis, record) {
  const scorers = run.scorers.filter(s => record.scores[s])
  if (!scorers.length) return null
  const labels = new Map() // label -> scorer -> [rank, score]
  for (const s of scorers) {
    const found = record.scores[s]
    ;[[found.label, found.score], ...(found.runners_up ?? [])].forEach(([label, score], i) => {
      if (!labels.has(label)) labels.set(label, {})
      labels.get(label)[s] = [i + 1, score]
    })
  }
  const sources = Object.keys(record.sources).length > 0
  const kept = Object.fromEntries(scorers.map(s => [s, Math.max(...[...labels.values()].map(row => Math.abs(row[s]?.[1] ?? 0))) < 10 ? 3 : 2])) // digits: of one column alike
  const weight = row => scorers.reduce((sum, s) => sum + (row[s] ? 1 / row[s][0] : 0), 0)
  const ranked = [...labels].sort((a, b) => (b[0] === record.label) - (a[0] === record.label) || weight(b[1]) - weight(a[1]))
  const few = new Set([...new Set([...ranked.filter(([, row]) => row[record.scorer]), ...ranked])].slice(0, 12)) // the head of the page names the next best of the scorer that chose
  const rows = ranked.filter(row => few.has(row))
  const m = record.measured
  const chosen = record.label ? h("p.note", null, "The label ", record.source ? [term("source", "comes from"), ` ${format.list(record.source.split("+"))} and `] : null, `was chosen by ${terms[`scorer:${record.scorer}`]?.title ?? record.scorer}`, m.margin === null ? "." : [", ", term("margin", "ahead of the next label by"), ` ${format.number(m.margin, 3)}.`]) : null
  return section("Candidate labels", "The scorers’ best labels, twelve at most; all of the scorer that chose are there. Scores of different scorers are on different scales: compare the ranks, shown small. An empty cell: not among this scorer’s best.", chosen,
    h("div.scroll", null, h("table.candidates", null,
      h("thead", null, h("tr", null, h("th", null, "Label"), sources ? h("th.from", null, term("source", "From")) : null, scorers.map(s => h("th.num", { scope: "col" }, term(`scorer:${s}`))))),
      h("tbody", null, rows.map(([label, row]) => h("tr", null,
        h(`th${label === record.label ? ".chosen" : ""}`, { scope: "row", style: label === record.label ? "color:var(--ink)" : null }, label),
        sources ? h("td.quiet.from", null, record.sources[label]?.replaceAll("+", ", ") ?? "") : null,
        scorers.map(s => h(`td.num${row[s]?.[0] === 1 ? ".best" : ""}`, null, row[s] ? [format.number(row[s][1], kept[s]), h("small.quiet", null, `  ${row[s][0]}`)] : ""))))),
      h("tfoot", null,
        h("tr", null, h("th", { scope: "row" }, term("null_percentile", "Best label beats shuffles")), sources ? h("td.from") : null, scorers.map(s => h("td.num", null, format.share(record.scores[s].null_percentile)))),
        record.label ? h("tr", null, h("th", { scope: "row" }, "Rank of the chosen label"), sources ? h("td.from") : null, scorers.map(s => h("td.num", null, format.count(record.scores[s].rank ?? NaN)))) : null))))
}

/* ---- activity ---- */

function activity(run, basis, record) {
  const bands = record.bands.map((ids, i) => [i < 10 ? `${100 - 10 * i}–${90 - 10 * i} %` : "silent", ids]).filter(([, ids]) => ids.length)
  return section("How often and how strongly it fires", null, h("div.two", null,
    h("div", null, h("h3", null, "Activations over all images"), activationHistogram(record, hue(run, basis.name)),
      h("p.note", null, `${record.silent ? `Silent on ${format.count(record.silent)} of ${format.count(record.images)} images (not drawn).` : `It is silent on none of the ${format.count(record.images)} images.`} The height is on a square-root scale, to make single images visible.`)),
    enriched(record)),
    h("h3", null, term("band", "From its maximum down to silence")), h("div.bands", null, bands.map(([text, ids]) => h("div", null, h("span", null, text), strip(ids, record.names)))))
}

function enriched(record) {
  if (!record.enriched.length) return null
  return h("div", null, h("h3", null, term("enrichment")), h("table", null,
    h("thead", null, h("tr", null, h("th", null, "Class"), h("th", null, "Among the strongest"), h("th.num", null, "Among all"), h("th.num", null, "Chance"))),
    h("tbody", null, record.enriched.map(([name, among, of, all, every, p]) => h("tr", null, h("td", null, name), h("td", null, bar(`${among} of ${of}`, among / of, "var(--c)")), h("td.num", null, format.share(all / every)), h("td.num", null, format.p(p)))))))
}

/* ---- what it does to the network's outputs ---- */

const axes = { // named as the comparison's table names its columns
  both: ["when and what", "its label says both when it fires and what it does."],
  detects: ["only when it fires", "other labels name what it raises as well or better."],
  uses: ["only what it does", "what it raises is what its label says, but shuffles of its activations give labels that score as high."],
  neither: ["neither", "its label says neither when it fires nor what it does."],
}

function whatItDoes(record) {
  const d = record.does
  if (!d) return null
  const reach = Math.max(...[...d.raised, ...d.lowered].map(([, value]) => Math.abs(value)), 1e-9)
  const table = (title, rows) => h("div", null, h("h3", null, title), h("table.effects", null, h("tbody", null, rows.map(([name, value, own]) => h("tr", null,
    h(`th${own ? ".chosen" : ""}`, { scope: "row" }, name, own ? h("span.tag", null, "its label") : null), h("td.num", null, bar(`${value > 0 ? "+" : ""}${format.number(value, 3)}`, Math.abs(value) / reach, "var(--c)")))))))
  const row = (key, value) => h("div", null, h("dt", null, term(key)), h("dd", null, value))
  const meant = d.own.length ? ` Its label means the ${d.own.length === 1 ? "output" : "outputs"} ${format.list(d.own)}: ${d.drop > 0 ? "+" : ""}${format.number(d.drop, 3)}.` : " No output of the network means its label, so what it does can’t be held against it."
  return section("What it does", `The outputs that lose most when the unit is taken out (it raises them) and those that gain most (it lowers them): changes of the logit, centred over all ${format.count(d.outputs)} outputs, mean over the ${format.plural(d.pictures, "test picture")} that fire it most.${meant}`,
    h("div.two", null, table("It raises", d.raised), table("It lowers", d.lowered)),
    d.cell ? h("p.cell", null, "The comparison sorts labels by whether they say when the unit fires, and what it does. This one is in ", h("strong", null, axes[d.cell][0]), `: ${axes[d.cell][1]}`) : null,
    d.causal_pct === null ? null : h("dl.facts", null, row("causal_pct", format.number(d.causal_pct)), d.causal_net === null ? null : row("causal_net", format.number(d.causal_net)), row("causal_p", format.share(d.causal_p)), row("causal_q", format.number(d.causal_q, 3))),
    h("p.note", null, "Nearly every unit nudges nearly every output: that one is raised most does not make the unit specific to it. Units that stand in for each other each look unnecessary."))
}

/* ---- faithfulness and coherence ---- */

function judged(run, basis, record) {
  if (record.status === "dead") return null // no label, and no images that could belong together
  const range = two => (two ? `${format.number(two[0])} to ${format.number(two[1])}` : "–")
  const numbers = keys => {
    const have = keys.filter(k => record.measured[k] !== null && record.measured[k] !== undefined)
    if (!have.length) return h("p.quiet", null, "Undefined for this unit.")
    const bounded = have.some(k => record.interval[k])
    return h("table", null, h("thead", null, h("tr", null, h("th", null, "Measure"), h("th.num", null, "Value"), bounded ? h("th.num", null, term("interval")) : null, h("th", null, term("percentile", "Among its basis")))),
      h("tbody", null, have.map(k => h("tr", null, h("td", null, term(k)), h("td.num", null, shown(k, record.measured[k])), bounded ? h("td.num.quiet", null, range(record.interval[k])) : null, h("td", null, standing(record.percentile[k]))))))
  }
  return section("How well the label holds", "Faithfulness asks whether the label predicts the unit on images held out from mining and labelling. Coherence asks whether the strongest images belong together, whatever the label.",
    h("div.two", null,
      h("div", null, h("h3", null, "Faithfulness of the label"), numbers(["truth_r", "caption_r", "auprc", "f1", "iou", "auroc", "scs"]), byScorer(run, record)),
      h("div", null, h("h3", null, "Coherence of the unit"), numbers(["clarity", "caption_clarity", "monosemanticity", "polysemanticity", "redundancy"]))))
}

function byScorer(run, record) {
  const scorers = run.scorers.filter(s => record.evaluation[s])
  const key = ["truth_r", "caption_r", "scs"].find(k => scorers.some(s => typeof record.evaluation[s][k] === "number"))
  if (!key || scorers.length < 2) return null
  return h("details", { style: "border:0" }, h("summary", null, "The same for every scorer’s label"), h("table", null,
    h("thead", null, h("tr", null, h("th", null, "Scorer"), h("th", null, "Its label"), h("th.num", null, term(key)))),
    h("tbody", null, scorers.map(s => h("tr", null, h("td", null, term(`scorer:${s}`)), h("td", null, record.evaluation[s].label ?? "–"), h("td.num", null, format.number(record.evaluation[s][key])))))))
}

/* ---- the SAE that it belongs to ---- */

function saeQuality(run, basis) {
  const q = basis.quality
  if (!q) return null
  const row = (key, title, value) => h("tr", null, h("th", { scope: "row" }, key ? term(key, title) : title), h("td.num", null, value))
  return section("Its SAE", [`All ${format.count(basis.units)} features share it, whatever this one is worth.`, q.overfit ? ` It overfits: of held-out tokens it leaves ${format.number(q.fvu_test / q.fvu, 1)} times as much unexplained as of those that trained it.` : ""],
    h("div.two", null,
      h("table", null, h("tbody", null,
        row("fvu", "Unexplained, training tokens", format.number(q.fvu, 3)), row("fvu", "Unexplained, held out", format.number(q.fvu_test, 3)),
        row("l0", null, format.number(q.l0, 1)), row(null, "Dead on held-out tokens", format.share(q.dead)), row(null, "Dense: fires on 80 % or more", format.share(q.dense)),
        q.shared === null ? null : row("stability", "Found again by another seed", `${format.share(q.shared)} (chance ${format.share(q.by_chance)})`),
        q.recovered === null || q.recovered === undefined ? null : row(null, "Host’s loss recovered", format.share(q.recovered)))),
      h("div", null, h("h3", null, "How often its features fire"), densityHistogram(q.density, hue(run, basis.name)))))
}
