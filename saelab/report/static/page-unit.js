/* One unit: its label and how sure it is, what excites it and what does not, how it was judged, who is like it. */
"use strict"

const shownAtOnce = 12

page(async (run, main) => {
  const draw = async () => {
    const [name, unit] = location.hash.slice(1).split("/").map(decodeURIComponent)
    const b = Math.max(0, number(run, name))
    const basis = run.bases[b]
    const u = Math.min(Math.max(0, Number(unit) || 0), basis.units - 1)
    const chunk = await saelab.need(`units/${b}/${Math.floor(u / run.chunk)}`)
    const record = chunk[u % run.chunk]
    document.title = `${record.label ?? "no label"} · ${alone[basis.kind] ?? basis.name} ${u} · ${run.name}`
    main.style.setProperty("--c", hue(run, basis.name))
    main.replaceChildren(...unitPage(run, basis, record))
    scrollTo(0, 0)
  }
  addEventListener("hashchange", draw)
  addEventListener("keydown", event => {
    if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return
    const link = { ArrowLeft: ".previous", ArrowRight: ".next", r: ".random" }[event.key]
    if (link) document.querySelector(link)?.click()
  })
  await draw()
})

function unitPage(run, basis, record) {
  return [
    crumbs(run, basis, record),
    h("h1", { class: record.abstained ? "abstained" : null }, record.label ?? "No label"),
    additions.unit(run, basis, record),
    h("p.standfirst", null, verdict(run, record)),
    facts(record),
    meanings(record),
    record.positives.length ? exemplars(run, basis, record) : null,
    candidates(run, basis, record),
    record.histogram.length ? activity(run, basis, record) : null,
    judged(run, basis, record),
    verified(record),
    neighbourhood(run, basis, record),
    proposals(run, record),
  ].filter(Boolean)
}

function crumbs(run, basis, record) {
  const u = record.unit
  const go = (to, css, text) => h(`a.button.${css}`, { href: to === null ? null : unitLink(basis.name, to), "aria-disabled": to === null }, text)
  const random = h("button.random", { type: "button", onclick: () => { location.href = unitLink(basis.name, Math.floor(Math.random() * basis.units)) }, title: "key r" }, "random")
  return h("nav.crumbs", { "aria-label": "This unit" },
    h("span", null, dot(run, basis.name), h("a", { href: `units.html#basis=${encodeURIComponent(basis.name)}` }, inWords(run, basis.name))),
    h("span", null, basis.layer), h("strong", null, `${alone[basis.kind] ?? "unit"} ${u}`), status(record.status),
    h("span.tools", null, go(u > 0 ? u - 1 : basis.units - 1, "previous", "← previous"), go(u + 1 < basis.units ? u + 1 : 0, "next", "next →"), random,
      h("button", { type: "button", onclick: () => copy(location.href, "link") }, "copy link"),
      h("button", { type: "button", onclick: () => copy(JSON.stringify({ basis: basis.name, layer: basis.layer, ...record }, null, 1), "JSON") }, "copy as JSON")))
}

/* The label's standing in one or two sentences. */
function verdict(run, record) {
  const m = record.measured
  if (record.status === "dead") return "This unit fires on no image of the set, so there is nothing to name."
  if (!record.label) return "No scorer found a label for it."
  const sure = m.null_percentile === null ? "" : m.null_percentile > 0.95
    ? ` The label scores higher than the best one in ${format.share(m.null_percentile)} of shuffles.`
    : ` In ${format.share(1 - m.null_percentile)} of shuffles some label scores as high: this one may be luck.`
  const rate = m.firing_rate === null ? `${format.count(record.fires_on)} images` : `${format.share(m.firing_rate)} of the images`
  return `Fires on ${rate}.${sure}`
}

function facts(record) {
  const m = record.measured
  const fact = (key, value, note) => h("div", null, h("dt", null, term(key)), h("dd", null, value, note ? h("small", null, ` ${note}`) : null))
  return h("dl.facts", null,
    record.label ? fact("score", format.number(m.score, 3), `by ${terms[`scorer:${record.scorer}`]?.title ?? record.scorer}`) : null,
    m.margin !== null ? fact("margin", format.number(m.margin, 3)) : null,
    m.null_percentile !== null ? fact("null_percentile", format.share(m.null_percentile)) : null,
    fact("firing_rate", format.share(m.firing_rate ?? (record.images - record.silent) / record.images)),
    record.label && record.source ? h("div", null, h("dt", null, "Named by"), h("dd", null, record.source)) : null)
}

/* ---- several meanings ---- */

function meanings(record) {
  if (record.meanings.length < 2) return null
  return section("Two meanings", ["The strongest images fall into two groups, each with a label of its own: the unit is ", term("meanings", "polysemantic"), ". The share says how much of the activation of the strongest images a group has."],
    h("div.two", null, record.meanings.map(m => h("div", null,
      h("h3", null, m.label, h("span.tag", null, format.share(m.share))),
      h("div.bar.whole", { style: `--w:${100 * m.share}%;--bar:var(--c)` }),
      h("div.group", null, m.positives.slice(0, 8).map(id => picture(id, record.names[id]))),
      h("p.note", null, `${format.plural(m.positives.length, "image")}, CSP ${format.number(m.score)}`)))))
}

/* ---- strongest images and their contrasts ---- */

function exemplars(run, basis, record) {
  const grid = h("div.pairs")
  const switches = h("div")
  const state = { mode: "raw" }
  let limit = shownAtOnce
  const fill = () => {
    if (record.maps) switches.replaceChildren(choice("Show", modes, state, "mode", fill))
    if (state.mode === "heat") switches.firstChild.append(heatScale())
    grid.replaceChildren(...record.positives.slice(0, limit).map((_, i) => pair(record, i, state.mode)))
  }
  const more = record.positives.length > limit
    ? h("button", { type: "button", onclick: event => { limit = record.positives.length; fill(); event.target.remove() } }, `show all ${record.positives.length}`)
    : null
  fill()
  const fewer = record.fires_on <= record.positives.length ? ` It fires on ${format.plural(record.positives.length, "image")} only.` : ""
  return section("What excites it, and what does not",
    [`Large: the strongest images, with the activation as a share of the largest. Small: the `, term("contrast", "contrast"), ` of each, the image most like it that leaves the unit below its mean.${fewer}`],
    switches, grid, more ? h("p", { style: "margin-top:1rem" }, more) : null)
}

function pair(record, i, mode) {
  const [id, other] = [record.positives[i], record.contrasts[i]]
  const share = record.activations[i] / record.max
  const words = record.names[id]
  return h("figure.pair", null,
    heated(record, i, words, mode),
    h("div.level", null, h("i", { style: `width:${100 * share}%` })),
    h("small", null, `${format.number(record.activations[i])} · ${format.share(share)} of max`),
    other >= 0
      ? h("div.with", null, h("div.contrast", null, h("div.frame", null, picture(other, `contrast: ${record.names[other]}`))),
        h("small", null, `cosine ${format.number(record.similarity[i])}`, h("br"), `fires ${format.number(record.contrast_activations[i])}`))
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
  const weight = row => scorers.reduce((sum, s) => sum + (row[s] ? 1 / row[s][0] : 0), 0)
  const rows = [...labels].sort((a, b) => (b[0] === record.label) - (a[0] === record.label) || weight(b[1]) - weight(a[1])).slice(0, 12)
  return section("Candidate labels", "Each scorer's best labels. Scores of different scorers are on different scales: compare the ranks, shown small. An empty cell: not among this scorer's best.",
    h("div.scroll", null, h("table.candidates", null,
      h("thead", null, h("tr", null, h("th", null, "Label"), sources ? h("th", null, "From") : null, scorers.map(s => h("th.num", { scope: "col" }, term(`scorer:${s}`))))),
      h("tbody", null, rows.map(([label, row]) => h("tr", null,
        h(`th${label === record.label ? ".chosen" : ""}`, { scope: "row", style: label === record.label ? "color:var(--ink)" : null }, label),
        sources ? h("td.quiet", null, record.sources[label] ?? "") : null,
        scorers.map(s => h(`td.num${row[s]?.[0] === 1 ? ".best" : ""}`, null, row[s] ? [format.number(row[s][1], 3), h("small.quiet", null, `  ${row[s][0]}`)] : ""))))),
      h("tfoot", null,
        h("tr", null, h("th", { scope: "row", colspan: sources ? 2 : null }, term("null_percentile", "Best label beats chance")), scorers.map(s => h("td.num", null, format.share(record.scores[s].null_percentile)))),
        record.label ? h("tr", null, h("th", { scope: "row", colspan: sources ? 2 : null }, "Rank of the chosen label"), scorers.map(s => h("td.num", null, format.count(record.scores[s].rank ?? NaN)))) : null))))
}

/* ---- activity ---- */

function activity(run, basis, record) {
  const bands = record.bands.map((ids, i) => [i < 10 ? `${100 - 10 * i}–${90 - 10 * i} %` : "silent", ids]).filter(([, ids]) => ids.length)
  return section("How often and how strongly it fires", null, h("div.two", null,
    h("div", null, h("h3", null, "Activations over all images"), activationHistogram(record, hue(run, basis.name)),
      h("p.note", null, `Silent on ${format.count(record.silent)} of ${format.count(record.images)} images (not drawn). The height is on a square-root scale, to make single images visible.`),
      enriched(record)),
    h("div", null, h("h3", null, term("band", "From its maximum down to silence")), h("div.bands", null, bands.map(([text, ids]) => h("div", null, h("span", null, text), strip(ids, record.names)))))))
}

function enriched(record) {
  if (!record.enriched.length) return null
  return h("div", { style: "margin-top:1.6rem" }, h("h3", null, term("enrichment")), h("table", null,
    h("thead", null, h("tr", null, h("th", null, "Class"), h("th", null, "Among the strongest"), h("th.num", null, "Among all"), h("th.num", null, "Chance"))),
    h("tbody", null, record.enriched.map(([name, among, of, all, p]) => h("tr", null, h("td", null, name), h("td", null, bar(`${among} of ${of}`, among / of, "var(--c)")), h("td.num", null, format.share(all / record.images)), h("td.num", null, format.p(p)))))))
}

/* ---- faithfulness and coherence ---- */

function judged(run, basis, record) {
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
  return h("details", { style: "margin-top:1rem" }, h("summary", null, "The same for every scorer's label"), h("table", null,
    h("thead", null, h("tr", null, h("th", null, "Scorer"), h("th", null, "Its label"), h("th.num", null, term(key)))),
    h("tbody", null, scorers.map(s => h("tr", null, h("td", null, term(`scorer:${s}`)), h("td", null, record.evaluation[s].label ?? "–"), h("td.num", null, format.number(record.evaluation[s][key])))))))
}

/* ---- neighbours ---- */

function neighbourhood(run, basis, record) {
  const near = record.near
  const groups = [
    [near.sharing ? `Same label (${format.count(near.sharing)} others)` : "Same label", near.same, null],
    [term("cofire", "Fires together, same basis"), near.cofire, "r"],
    [term("cofire", "Fires together, other bases"), near.links, "r"],
    [term("decoder", "Nearest direction"), near.decoder, "cosine"],
  ].filter(([, list]) => list?.length)
  if (!groups.length) return null
  return section("Neighbours", "Units of any basis with the same label, or that fire on the same images.",
    h("div.two", null, groups.map(([title, list, word]) => {
      const place = h("ul.near")
      Promise.all(list.map(entry => neighbour(run, entry, word))).then(items => place.replaceChildren(...items))
      return h("div", null, h("h3", null, title), place)
    })))
}

async function neighbour(run, [name, u, value], word) {
  const s = await saelab.need(`summary-${number(run, name)}`)
  const label = s.label[u] < 0 ? "no label" : s.labels[s.label[u]]
  return h("li", null, strip(s.thumbs[u].slice(0, 3)), h("a", { href: unitLink(name, s.units[u]) }, h("span.serif", null, label), h("small", null, dot(run, name), `${inWords(run, name)} · ${s.units[u]}`)),
    h("span.tabular.quiet", null, word ? `${word} ${format.number(value)}` : ""))
}
