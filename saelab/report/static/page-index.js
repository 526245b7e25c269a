/* Overview: what was looked at, how the bases fare, a few units of each. */
"use strict"

const overviewNumbers = ["truth_r", "caption_r", "auprc", "scs", "clarity", "monosemanticity", "firing_rate"]

page(async (run, main) => {
  const comparisons = await Promise.all(run.compared.map((_, i) => saelab.need(`comparison-${i}`)))
  main.replaceChildren(...[
    h("p.kicker", null, kicker(run, comparisons)),
    h("h1", null, title(run)),
    h("p.standfirst", null, standfirst(run)),
    ...comparisons.map(c => answered(run, c)),
    caveats(run, comparisons),
    gallery(run, "best", "Best on held-out images", "The labels that hold best on photos that nobody looked at when they were given (lower end of the interval), each label once; first those that captions name, on units of one meaning."),
    basesTable(run),
    saes(run),
    gallery(run, "sample", "Evenly spaced", "Evenly spaced by unit number, not picked by hand or by score. Each with the pictures that excite it most."),
    spread(run),
  ].filter(Boolean))
})

/* Host, layers, pooling and images: what the answers are about. */
function kicker(run, comparisons) {
  const layers = [...new Set(run.bases.map(b => b.layer))]
  const pooling = comparisons[0]?.setup.pooling ?? run.config?.pool
  const test = run.images.splits.test ? `, ${format.count(run.images.splits.test)} of them held out for testing` : ""
  return [run.host, `${layers.length === 1 ? "layer" : "layers"} ${format.list(layers)}`, pooling ? `pooled by ${pooling}` : null, `${run.images.name}: ${format.plural(run.images.count, "image")}${test}`].filter(Boolean).join(" · ")
}

/* The answer for one layer, and the way to how it was reached. */
function answered(run, c) {
  const link = h("a.button", { href: `compare.html#${encodeURIComponent(c.setup.layer)}` }, "See the comparison, and its limits →")
  return h("section.answered", null, run.compared.length > 1 ? h("h2", null, `Layer ${c.setup.layer}`) : null, fold(run, c, link))
}

function title(run) {
  const names = new Set(run.bases.map(b => b.kind))
  return names.has("neuron") && names.has("sae") ? "Neurons or SAE features: which are easier to name?" : "What each unit responds to"
}

function standfirst(run) {
  const own = run.bases.filter(b => b.kind !== "planted")
  const sum = key => own.reduce((total, b) => total + (key(b) ?? 0), 0)
  const judged = own.some(b => b.badges)
  const [units, labelled] = [sum(b => b.units), sum(b => b.labelled)]
  return `${format.plural(units, "unit")} of ${own.length === 1 ? "1 basis" : `${own.length} bases`} went through one pipeline: the same images, contrasts, vocabulary and scorers. ` +
    `${labelled === units ? "All" : format.count(labelled)} were given a label` +
    (judged ? `; on held-out images ${format.count(sum(b => b.badges?.holds))} of these labels hold, ${format.count(sum(b => b.badges?.weak))} are weak, and ${format.count(sum(b => b.badges?.["may be luck"]))} may be luck.` : ".")
}

function basesTable(run) {
  const judged = run.bases.some(b => b.badges)
  const row = b => h("tr", null,
    h("th", { scope: "row" }, h("a", { href: `units.html#basis=${encodeURIComponent(b.name)}` }, dot(run, b.name), inWords(run, b.name)), b.control ? h("span.tag", null, "control") : null),
    h("td.num", null, format.count(b.units)), h("td.num", null, format.count(b.labelled)),
    judged ? [h("td.num", null, b.badges ? bar(`${format.count(b.badges.holds)} (${format.share(b.labelled ? b.badges.holds / b.labelled : 0)})`, b.labelled ? b.badges.holds / b.labelled : 0, hue(run, b.name)) : "–"), h("td", { style: "min-width:7rem" }, badgeBar(b) ?? "–")] : null,
    h("td.num", null, format.count(b.distinct)), h("td.num", null, format.count(b.several)),
    h("td", { style: "min-width:7rem" }, statusBar(b)))
  return section("The bases", "A basis is a set of units of the same layer. Hover over a dotted word, or focus it, for its meaning.",
    h("div.scroll", null, h("table", null,
      h("thead", null, h("tr", null, h("th", null, "Basis"), h("th.num", null, "Units"), h("th.num", null, term("label", "With a label")),
        judged ? [h("th.num", null, term("badge", "Labels that hold")), h("th", null, term("badge", "Holds, weak, luck"))] : null,
        h("th.num", null, "Distinct labels"), h("th.num", null, term("meanings")), h("th", null, "Ok, rare, dense, dead"))),
      h("tbody", null, run.bases.map(row)))),
    h("p.legend", { style: "margin-top:.8rem" }, [[judged ? "holds, ok" : "ok", "--good"], [judged ? "weak, rare, dense" : "rare, dense", "--warn"], [judged ? "may be luck, dead" : "dead", "--faint"]].map(([words, css]) => h("span", null, h("i.dot", { style: `background:var(${css})`, "aria-hidden": "true" }), words))))
}

/* How good the SAEs are, a line each: reconstruction on tokens seen and unseen, sparsity, and what other seeds find too. */
function saes(run) {
  const rows = run.bases.filter(b => b.quality)
  if (!rows.length) return null
  const overfit = q => (q.overfit ? h("small.badge.weak", null, "overfits") : null)
  return section("How good the SAEs are", "Numbers on held-out tokens, unless they say otherwise: those of the test images, which no SAE was trained on.",
    h("div.scroll", null, h("table", null,
      h("thead", null, h("tr", null, h("th", null, "SAE"), h("th.num", null, term("fvu", "Unexplained, training tokens")), h("th.num", null, term("fvu", "Unexplained, held out")), h("th", null, "Overfitting"), h("th.num", null, term("l0")), h("th.num", null, "Dead features"), h("th.num", null, term("stability")), h("th.num", null, "By chance"))),
      h("tbody", null, rows.map(({ name, quality: q }) => h("tr", null,
        h("th", { scope: "row" }, h("a", { href: `units.html#basis=${encodeURIComponent(name)}` }, dot(run, name), inWords(run, name))),
        h("td.num", null, bar(format.number(q.fvu, 3), q.fvu, hue(run, name))), h("td.num", null, bar(format.number(q.fvu_test, 3), q.fvu_test, hue(run, name))), h("td", null, overfit(q) ?? "no"),
        h("td.num", null, format.number(q.l0, 1)), h("td.num", null, format.share(q.dead)), h("td.num", null, format.share(q.shared)), h("td.num", null, format.share(q.by_chance))))))))
}

function spread(run) {
  const keys = overviewNumbers.filter(key => run.bases.filter(b => b.quartiles[key]).length > 1)
  if (!keys.length) return null
  const layers = [...new Set(run.bases.map(b => b.layer))]
  const state = { spread: layers[0] }
  const [switches, plots] = [h("div"), h("div")]
  const draw = () => {
    const bases = run.bases.filter(b => b.layer === state.spread)
    if (layers.length > 1) switches.replaceChildren(choice("Layer", Object.fromEntries(layers.map(layer => [layer, layer])), state, "spread", draw))
    plots.replaceChildren(h("p", null, legend(run, bases, inFewWords)), h("div.multiples", null, keys.map(key => {
      const rows = bases.filter(b => b.quartiles[key]).map(b => ({ name: inFewWords(run, b.name), colour: hue(run, b.name), q: b.quartiles[key] }))
      return rows.length ? h("div", null, h("h3", null, term(key)), ranges(rows, terms[key].title, shares.has(key) ? format.share : format.number)) : null
    })))
  }
  draw()
  return section("How they spread", "Dot: the median unit. Bar: the middle half of the basis.", switches, plots)
}

function gallery(run, key, heading, lead) {
  const bases = run.bases.filter(b => b[key].length && b.kind !== "planted")
  if (!bases.length) return null
  const further = bases.filter(b => bases.find(other => other.layer === b.layer && other.kind === b.kind && other.control === b.control) !== b)
  const one = b => h("div.gallery", null,
      h("h3", null, dot(run, b.name), inWords(run, b.name), h("a", { href: `units.html#basis=${encodeURIComponent(b.name)}` }, `all ${format.count(b.units)}`)),
      h("div.cards", null, b[key].map(u => h("a.card", { href: unitLink(b.name, u.unit) },
        h("span.mosaic", null, u.thumbs.slice(0, 3).map((id, j) => picture(id, `strongest image ${j + 1} of unit ${u.unit}`))),
        h("div.name", null, u.label ?? "no label"), h("div.meta", null, `unit ${u.unit} · fires on ${format.share(u.rate)}`), h("div", null, marks(u))))))
  return section(heading, lead, bases.filter(b => !further.includes(b)).map(one),
    further.length ? h("details.further", null, h("summary", null, `The same of ${further.length === 1 ? "one further basis" : `${further.length} further bases`}`, h("span.quiet", null, " – other seeds and settings")), further.map(one)) : null)
}

/* What the numbers themselves warn of, and the run's notes; the first few in sight. */
function caveats(run, comparisons) {
  const notes = new Set(comparisons.flatMap(c => (c.cautions ?? []).map(note => (comparisons.every(other => other.cautions?.includes(note)) ? note : `Layer ${c.setup.layer}: ${note}`))))
  const overfitted = run.bases.filter(b => b.quality?.overfit)
  if (overfitted.length) notes.add(`${overfitted[0].quality.overfit}${overfitted.length > 1 ? ` So do ${overfitted.length - 1} more.` : ""} Features may describe the training photos rather than the layer.`)
  for (const note of run.notes ?? []) notes.add(note)
  if (run.images.skipped.length) notes.add(`${format.plural(run.images.skipped.length, "file")} could not be used; Methods lists them.`)
  if (run.unreadable.length) notes.add(`${format.plural(run.unreadable.length, "picture")} cannot be shown: the file is missing or unreadable.`)
  const all = [...notes]
  if (!all.length) return null
  const list = some => h("ul", null, some.map(n => h("li", null, n)))
  return h("section.cautions", null, h("h2", null, "Read with care"), list(all.slice(0, 4)), all.length > 4 ? h("details", null, h("summary", null, `${all.length - 4} more`), list(all.slice(4))) : null)
}
