/* Overview: what was looked at, how the bases fare, a few units of each. */
"use strict"

const overviewNumbers = ["truth_r", "caption_r", "auprc", "scs", "clarity", "monosemanticity", "firing_rate"]

page(async (run, main) => {
  const layers = [...new Set(run.bases.map(b => b.layer))]
  const total = run.bases.reduce((sum, b) => sum + b.units, 0)
  const comparisons = await Promise.all(run.compared.map((_, i) => saelab.need(`comparison-${i}`)))
  main.replaceChildren(
    h("p.kicker", null, `${run.images.name} · ${format.count(run.images.count)} images · ${layers.join(", ")}`),
    h("h1", null, title(run)),
    h("p.standfirst", null, standfirst(run, total)),
    ...comparisons.flatMap(c => answered(run, c)),
    basesTable(run),
    spread(run) ?? "",
    gallery(run),
    caveats(run) ?? "",
  )
})

/* The answer for one layer, and the way to how it was reached. */
function answered(run, c) {
  const link = h("a.button", { href: `compare.html#${encodeURIComponent(c.setup.layer)}` }, "See the comparison, and its limits →")
  const layer = run.compared.length > 1 ? h("h3", null, c.setup.layer) : ""
  return [layer, headlineCards(run, c) ?? "", controlsLine(run, c) ?? "", h("p", { style: "margin-bottom:3rem" }, link)]
}

function title(run) {
  const names = new Set(run.bases.map(b => b.kind))
  return names.has("neuron") && names.has("sae") ? "Neurons or SAE features: which are easier to name?" : "What each unit responds to"
}

function standfirst(run, total) {
  const sure = run.bases.reduce((sum, b) => sum + b.sure, 0)
  return `${format.count(total)} units of ${format.plural(run.bases.length, "basis").replace("basiss", "bases")} went through one pipeline: ` +
    `the same images, contrasts, vocabulary and scorers. ${format.count(sure)} of them carry a label that beats chance; the others abstain. `
}

function basesTable(run) {
  const row = (b, i) => h("tr", null,
    h("th", { scope: "row" }, h("a", { href: `units.html#basis=${encodeURIComponent(b.name)}` }, dot(run, b.name), inWords(run, b.name))),
    h("td.num", null, format.count(b.units)),
    h("td.num", null, format.count(b.labelled)), h("td.num", null, bar(format.count(b.sure), b.sure / b.units, hue(run, b.name))),
    h("td.num", null, format.count(b.distinct)),
    h("td.num", null, format.count(b.several)),
    h("td.num", null, format.share(b.quartiles.null_percentile?.[1])),
    h("td", { style: "min-width:9rem" }, statusBar(b)))
  return section("The bases", "A basis is a set of units of the same layer. Hover over a dotted word, or focus it, for its meaning.",
    h("div.scroll", null, h("table", null,
      h("thead", null, h("tr", null, h("th", null, "Basis"), h("th.num", null, "Units"), h("th.num", null, term("label", "With a label")), h("th.num", null, term("null_percentile", "Better than chance")),
        h("th.num", null, "Distinct labels"), h("th.num", null, term("meanings")), h("th.num", null, term("null_percentile", "Median null")), h("th", null, "Alive, rare, dense, dead"))),
      h("tbody", null, run.bases.map(row)))))
}

function spread(run) {
  const keys = overviewNumbers.filter(key => run.bases.filter(b => b.quartiles[key]).length > 1)
  if (!keys.length) return null
  return section("How they spread", "Dot: the median unit. Bar: the middle half of the basis.",
    h("p", null, legend(run)),
    h("div.multiples", null, keys.map(key => {
      const rows = run.bases.filter(b => b.quartiles[key]).map(b => ({ name: inWords(run, b.name), colour: hue(run, b.name), q: b.quartiles[key] }))
      return h("div", null, h("h3", null, term(key)), ranges(rows, terms[key].title))
    })))
}

function gallery(run) {
  return section("A few of each", "Evenly spaced by unit number, not picked by hand or by score. Each with the pictures that excite it most.",
    run.bases.map(b => h("div.gallery", null,
      h("h3", null, dot(run, b.name), inWords(run, b.name), h("a", { href: `units.html#basis=${encodeURIComponent(b.name)}` }, `all ${format.count(b.units)}`)),
      h("div.cards", null, b.sample.map(u => h("a.card", { href: unitLink(b.name, u.unit) },
        h("span.mosaic", null, u.thumbs.slice(0, 3).map((id, j) => picture(id, `strongest image ${j + 1} of unit ${u.unit}`))),
        h("div.name", null, u.label), h("div.meta", null, `unit ${u.unit} · fires on ${format.share(u.rate)}`)))))))
}

function caveats(run) {
  const notes = [...(run.notes ?? [])]
  if (run.images.skipped.length) notes.push(`${format.plural(run.images.skipped.length, "file")} could not be used; Methods lists them.`)
  if (run.unreadable.length) notes.push(`${format.plural(run.unreadable.length, "picture")} cannot be shown: the file is missing or unreadable.`)
  return notes.length ? section("Read with care", null, h("ul", null, notes.map(n => h("li", null, n)))) : null
}
