/* The SAEs of a comparison beside each other: sizes and other settings, and what another seed would have said. */
"use strict"

/* What is known of each SAE of a layer: {name, group, seed, numbers by key}; `numbers` explains the keys. */
const dictionaryNumbers = {
  latents: { title: "Features", of: b => b.units, show: n => format.count(Math.round(n)) },
  l0: { term: "l0", title: "L0", of: b => b.quality?.l0, show: x => format.number(x, 1) },
  fvu: { term: "fvu", title: "Unexplained, held out", of: b => b.quality?.fvu_test, show: x => format.number(x, 3) },
  dead: { title: "Dead features", of: b => b.quality?.dead, show: format.share },
  shared: { term: "stability", title: "Found again by another seed", of: b => b.quality?.shared, show: format.share },
  holds: { term: "badge", title: "Labels that hold", of: b => (b.badges && b.labelled ? b.badges.holds / b.labelled : null), show: format.share },
  distinct: { title: "Distinct labels", of: b => b.distinct, show: n => format.count(Math.round(n)) },
}

const dictionaryGroups = c => c.groups.filter(g => g.kind === "sae" && !g.control)

function dictionariesOf(run, c) {
  const compared = new Map(c.bases.map(b => [b.name, b]))
  return dictionaryGroups(c).flatMap(g => g.bases.map(name => {
    const basis = run.bases.find(b => b.name === name)
    const means = Object.fromEntries(Object.keys(c.metrics).map(key => [key, compared.get(name)?.means[key]?.named ?? null]))
    const numbers = Object.fromEntries(Object.entries(dictionaryNumbers).map(([key, n]) => [key, (basis && n.of(basis)) ?? null]))
    return { name, group: groupWords(c, g.name), seed: compared.get(name)?.seed, css: groupHue(run, c, g.name), ...numbers, ...means }
  }))
}

/* A section for runs with several SAEs of a layer; `tables` are those of SAEs against SAEs. */
function dictionaries(run, c, tables) {
  const rows = dictionariesOf(run, c)
  if (rows.length < 2) return null
  const groups = dictionaryGroups(c)
  const several = groups.length > 1
  const seeds = groups.some(g => g.bases.length > 1)
  const lead = [several ? "SAEs of other sizes and settings name other things: smaller ones explain less, larger ones split what they explain. " : "", seeds ? "Seeds differ by their random start alone: where they differ as much as two bases do, the difference between the bases says little." : ""]
  return section(several ? (seeds ? "SAE sizes and seeds" : "SAE sizes") : "Seeds of the SAE", lead, dictionaryTable(c, rows, groups), h("div.two", null, seedPlot(run, c, rows, groups), several ? sizePlot(c, rows, groups) : null), tables)
}

/* A line for each SAE, below the mean of its recipe; numbers that nobody measured are left out. */
function dictionaryTable(c, rows, groups) {
  const keys = Object.keys(dictionaryNumbers).filter(key => rows.some(r => r[key] !== null))
  const cells = (r, css) => [
    keys.map(key => h("td.num", null, r[key] === null ? "–" : dictionaryNumbers[key].show(r[key]))),
    c.primary ? h("td.num", null, r[c.primary] === null ? "–" : bar(format.number(r[c.primary], 3), r[c.primary], css)) : null]
  const mean = (of, key) => { const known = of.map(r => r[key]).filter(x => x !== null); return known.length ? d3Sum(known) / known.length : null }
  const body = groups.flatMap(g => {
    const own = rows.filter(r => r.group === groupWords(c, g.name))
    const whole = Object.fromEntries([...keys, c.primary].filter(Boolean).map(key => [key, mean(own, key)]))
    const of = own.length > 1 ? `, mean of ${own.length} seeds` : ""
    return [
      h("tr.whole", null, h("th", { scope: "row" }, h("i.dot", { style: `background:${own[0].css}`, "aria-hidden": "true" }), groupWords(c, g.name), h("span.quiet", null, of)), cells(whole, own[0].css)),
      ...(own.length > 1 ? own.map(r => h("tr", null, h("th.seed", { scope: "row" }, h("a", { href: `units.html#basis=${encodeURIComponent(r.name)}` }, r.seed === null || r.seed === undefined ? r.name : `seed ${r.seed}`)), cells(r, r.css))) : [])]
  })
  return h("div.scroll", null, h("table.dictionaries", null,
    h("thead", null, h("tr", null, h("th", null, "SAE"), keys.map(key => h("th.num", null, term(dictionaryNumbers[key].term, dictionaryNumbers[key].title))), c.primary ? h("th.num", null, term(termOf(c, c.primary))) : null)),
    h("tbody", null, body)))
}

/* Of one basis alone, "above chance" counts from another chance than a pair's two sides do. */
const ownChance = title => (title.includes("above chance") ? " Chance is here what the basis’s own labels reach when dealt out anew; the two sides of a comparison are counted above one reference, so their levels differ from these." : "")

const chooser = (title, options, now, change) => h("select", { "aria-label": title, onchange: event => change(event.target.value) }, Object.entries(options).map(([value, text]) => h("option", { value, selected: value === now }, text)))
const metricTitles = c => Object.fromEntries(Object.keys(c.metrics).map(key => [key, c.metrics[key].title]))

/* One number of every seed, a line a recipe, the other bases beside them. */
function seedPlot(run, c, rows, groups) {
  const state = { metric: c.primary ?? Object.keys(c.metrics)[0] }
  const others = c.groups.filter(g => !groups.includes(g)).flatMap(g => g.bases.map(name => ({ group: groupWords(c, g.name), css: groupHue(run, c, g.name), other: true, name, ...Object.fromEntries(Object.keys(c.metrics).map(key => [key, c.bases.find(b => b.name === name)?.means[key]?.named ?? null])) })))
  const place = h("div")
  const draw = () => {
    const drawn = [...rows, ...others].filter(r => r[state.metric] !== null)
    const names = [...new Set(drawn.map(r => r.group))]
    place.replaceChildren(figure(`${c.metrics[state.metric].title}: ${names.map(name => `${name} ${drawn.filter(r => r.group === name).map(r => format.number(r[state.metric], 3)).join(", ")}`).join("; ")}`, width => Plot.plot({
      width, height: 40 * names.length + 52, marginLeft: 18, marginRight: 24, marginTop: 12, marginBottom: 44, style: plotStyle,
      x: { label: `${c.metrics[state.metric].title} →`, labelAnchor: "right", ticks: 5, grid: true, nice: true }, y: { axis: null, domain: names, padding: 0.5 },
      marks: [
        Plot.ruleY(names, { stroke: colour("var(--line)"), y: name => name }),
        Plot.dot(drawn, { x: state.metric, y: "group", r: 4.5, fill: r => (r.other ? "var(--paper)" : colour(r.css)), fillOpacity: 0.8, stroke: r => colour(r.css), strokeWidth: 1.6, title: r => `${r.name} ${format.number(r[state.metric], 3)}` }),
        Plot.text(names, { y: name => name, text: name => name, dy: -13, frameAnchor: "left", textAnchor: "start", fill: "currentColor", stroke: "var(--paper)", strokeWidth: 4 }),
      ],
    }), `A dot for each seed: its mean over all named units. Hollow: the other bases.${ownChance(c.metrics[state.metric].title)}`))
  }
  draw()
  return h("div", null, h("h3", null, "What another seed says"), h("p", null, chooser("Number of each seed", metricTitles(c), state.metric, value => { state.metric = value; draw() })), place)
}

/* Every SAE as a dot: one of its numbers against another, the seeds of a recipe in one colour. */
function sizePlot(c, rows, groups) {
  const across = Object.fromEntries(Object.entries(dictionaryNumbers).filter(([key]) => new Set(rows.map(r => r[key])).size > 1 && rows.every(r => r[key] !== null)).map(([key, n]) => [key, n.title]))
  const up = { ...metricTitles(c), ...across }
  const state = { x: ["latents", "l0", "fvu"].find(key => key in across) ?? Object.keys(across)[0], y: c.primary ?? "distinct" }
  if (!state.x) return null
  const place = h("div")
  const draw = () => {
    const drawn = rows.filter(r => r[state.y] !== null)
    const last = groups.map(g => drawn.filter(r => r.group === groupWords(c, g.name)).at(-1)).filter(Boolean)
    place.replaceChildren(figure(`${up[state.y]} against ${across[state.x]}: ${drawn.map(r => `${r.name} ${format.number(r[state.x])}, ${format.number(r[state.y], 3)}`).join("; ")}`, width => Plot.plot({
      width, height: 300, marginLeft: 48, marginRight: 20, marginTop: 26, marginBottom: 44, style: plotStyle,
      x: { label: `${across[state.x]} →`, ticks: 5, grid: true, nice: true, inset: 18 }, y: { label: `↑ ${up[state.y]}`, ticks: 5, grid: true, nice: true, inset: 14 },
      marks: [
        Plot.dot(drawn, { x: state.x, y: state.y, r: 5, fill: r => colour(r.css), fillOpacity: 0.75, title: r => r.name }),
        Plot.text(last, { x: state.x, y: state.y, text: r => r.group.replace(/^SAE features, /, ""), dy: -13, fill: "currentColor", stroke: "var(--paper)", strokeWidth: 4 }),
      ],
    })))
  }
  draw()
  return h("div", null, h("h3", null, "What a size buys"), h("p", null, chooser("Height", up, state.y, value => { state.y = value; draw() }), " against ", chooser("Across", across, state.x, value => { state.x = value; draw() })), place)
}
