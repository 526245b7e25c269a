/* Comparison: the answer, metric by metric, with the controls, the null and what can't be concluded. */
"use strict"

const matchings = { all: "all units", rate: "matched on firing rate", strength: "matched on strength" }
const countings = { named: "every named unit", all: "units that abstain count as 0", labelled: "without units that abstain" }

/* Sections by fewer words, for the contents. */
const shortly = {
  "Metric by metric": "Metrics", "How units are spread": "Spread", "Quality against firing rate": "Against rate", "Which scorer names best?": "Scorers", "What was compared": "Selection",
  "Coverage and redundancy": "Coverage", "Do units react to anything that has a name?": "Any name", "Does the comparison itself hold?": "Checks",
}

page(async (run, main) => {
  const chosen = async () => {
    const wanted = decodeURIComponent(location.hash.slice(1))
    const layer = wanted ? run.compared.indexOf(wanted) : 0
    if (layer < 0) return nothing(run, main, `This report has no comparison of a layer ${wanted}; it has ${format.list(run.compared)}.`)
    await drawComparison(run, main, withRunNames(run, await saelab.need(`comparison-${layer}`)))
  }
  addEventListener("hashchange", chosen)
  await chosen()
})

/* The comparison with its bases under their names in the run, so that every piece can colour and link them. */
function withRunNames(run, c) {
  const name = short => inRun(run, c, short)
  const named = object => Object.fromEntries(Object.entries(object ?? {}).map(([key, value]) => [name(key), value]))
  return {
    ...c,
    bases: c.bases.map(b => ({ ...b, name: name(b.name) })),
    groups: c.groups.map(g => ({ ...g, bases: g.bases.map(name) })),
    causal: c.causal ? { ...c.causal, bases: c.causal.bases.map(b => ({ ...b, name: name(b.name) })) } : null,
    distributions: Object.fromEntries(Object.entries(c.distributions ?? {}).map(([key, d]) => [key, { ...d, bases: named(d.bases), shuffled: named(d.shuffled) }])),
  }
}

/* The glossary's key of a metric as it is compared: correlations are above chance here, and as they are on a unit's page. */
const termOf = (c, key) => (c.metrics[key]?.above_chance ? `above:${key}` : key)

async function drawComparison(run, main, c) {
  for (const [key, m] of Object.entries(c.metrics)) terms[termOf(c, key)] ??= { title: m.title, text: m.explanation, source: m.source }
  const axis = sharedAxis([...c.pairs, ...c.causal?.pairs ?? []])
  const saes = new Set(dictionaryGroups(c).map(g => g.name))
  const ofSaes = p => saes.has(p.a) && saes.has(p.b)
  const tablesOf = (key, keep) => pairTables(run, c, c.pairs.filter(keep), axis, key)
  main.replaceChildren(...[
    h("p.kicker", null, [c.setup.host, c.setup.layer, `${format.count(c.setup.images?.count ?? run.images.count)} images`].filter(Boolean).join(" · ")),
    h("h1", null, "The comparison"),
    layers(run, c),
    fold(run, c),
    h("nav.contents", { "aria-label": "On this page" }),
    glance(run, c),
    inWordsOf(c),
    section("Metric by metric", ["Each row is one metric: the dot is the difference of means, the bar its 95 % interval, the dotted line the difference that shuffled labels show. All bars of this page stand on one axis. ", "A side is called better only where the corrected p is below ", String(c.settings.alpha ?? 0.05), " and the interval stays off zero; by another metric of how labels hold, only where the one that decides finds a side better too."],
      tablesOf("of", p => !ofSaes(p))),
    dictionaries(run, c, c.pairs.some(ofSaes) ? tablesOf("of-saes", ofSaes) : null),
    whatUnitsDo(run, c, axis),
    distributions(run, c),
    againstRate(run, c),
    scorers(run, c),
    await sideBySide(run, c),
    selection(run, c),
    reuse(run, c),
    nullTable(run, c),
    checks(run, c),
  ].filter(Boolean))
  contents(main, shortly)
}

/* Tables of pairs under switches for matching and counting; those against controls are folded. `key` names the group of
   switches on the page. */
function pairTables(run, c, pairs, axis, key) {
  const [matching, counting] = [`matching-${key}`, `counting-${key}`]
  const state = { [matching]: "all", [counting]: "named" }
  const [switches, tables] = [h("div"), h("div")]
  let open = false
  const draw = () => {
    switches.replaceChildren(choice("Units", matchings, state, matching, draw), choice("Counting", countings, state, counting, draw))
    const [main, controls] = ["main", "control"].map(role => pairs.filter(p => p.matching === state[matching] && p.role === role).map(p => pairTable(run, c, p, state[counting], axis)))
    tables.replaceChildren(...main, ...controls.length ? [h("details", { open, ontoggle: event => { open = event.target.open } }, h("summary", null, "Against the controls ", h("span.quiet", null, format.plural(controls.length, "table"))), controls)] : [])
  }
  draw()
  return [switches, tables]
}

/* One comparison for each layer: links to the others. */
function layers(run, c) {
  if (run.compared.length < 2) return null
  return h("p.modes", null, h("span.quiet", null, "Layer:"), run.compared.map(layer => h("a.button", { href: `#${encodeURIComponent(layer)}`, "aria-current": layer === c.setup.layer ? "true" : null }, layer)))
}

/* ---- the answer at a glance ---- */

function glance(run, c) {
  const rows = new Map()
  for (const answer of c.answers) {
    const key = `${answer.a}\t${answer.b}\t${answer.family}`
    if (!rows.has(key)) rows.set(key, { ...answer, by: {} })
    rows.get(key).by[answer.matching] = answer
  }
  const used = Object.keys(matchings).filter(m => c.answers.some(a => a.matching === m))
  const role = row => (c.pairs.find(p => p.a === row.a && p.b === row.b)?.role ?? "main")
  const [own, controls] = ["main", "control"].map(wanted => [...rows.values()].filter(row => role(row) === wanted))
  const table = some => h("div.scroll", null, h("table.glance", null,
    h("thead", null, h("tr", null, h("th", null, "Compared"), h("th", null, "Question"), used.map(m => h("th", null, upper(matchings[m]))))),
    h("tbody", null, some.map(row => h("tr", null,
      h("th", { scope: "row" }, groupNamed(run, c, row.a), h("span.quiet", null, " against "), groupNamed(run, c, row.b)),
      h("td.quiet", null, families[row.family] ?? row.family),
      used.map(m => h("td.verdictcell", { "data-title": matchings[m] }, row.by[m] ? verdictChip(run, c, row.by[m]) : "–")))))))
  return section("At a glance", "Does one side come out ahead, and (small) by how many of the metrics that count? “No difference shown” is not “equal”: it means that so few units cannot tell.",
    table(own), controls.length ? h("details", null, h("summary", null, "Against the controls ", h("span.quiet", null, format.plural(controls.length, "row"))), table(controls)) : null)
}

function verdictChip(run, c, answer) {
  const side = better(answer, answer.verdict)
  const text = side ? `${groupWords(c, side)} ahead` : { none: "no difference shown", mixed: "mixed", refused: "too few units" }[answer.verdict]
  const titles = keys => keys.map(k => terms[termOf(c, k)]?.title ?? k).join(", ")
  const detail = [["better_a", groupWords(c, answer.a)], ["better_b", groupWords(c, answer.b)]].filter(([key]) => answer[key]?.length).map(([key, who]) => `${who}: ${titles(answer[key])}`)
  return h("span.chip", { style: side ? `--c:${groupHue(run, c, side)}` : null, title: detail.join("; ") || answer.why || null }, text,
    side ? h("small.quiet", null, ` ${answer[answer.verdict === "a" ? "better_a" : "better_b"].length} of ${answer.better_a.length + answer.better_b.length + answer.none.length}`) : null)
}

/* The generated paragraph, without the cautions that end it, and the cautions as a list. */
function inWordsOf(c) {
  const prose = c.conclusion.split(" What this can't show:")[0].replace(/(^|[\s(])-(?=\d)/g, "$1−").split(/ (?=Compared on layer|Label faithfulness|Unit coherence|Controls: |What units do, )/)
  return h("div.two", { style: "margin-bottom:3rem" },
    h("div", null, h("h3", null, "In words"), h("p", null, prose[0]), prose.length > 1 ? h("details", null, h("summary", null, "In full"), prose.slice(1).map(part => h("p.quiet", null, part))) : null),
    c.cautions.length ? h("div.cautions", null, h("h3", null, "What this cannot show"), h("ul", null, c.cautions.map(t => h("li", null, t)))) : null)
}

/* ---- what units do: detects x uses, and the network's use of them, pair by pair ---- */

const cells = { both: "when and what", detects: "only when it fires", uses: "only what it does", neither: "neither" }

function whatUnitsDo(run, c, axis) {
  const known = (c.causal?.bases ?? []).filter(b => b.chosen)
  if (!known.length) return null
  const own = { ...c, metrics: c.causal.metrics }
  const left = b => Object.entries({ too_few: "on too few pictures", unlabelled: "without a label", no_target: "without an output of that meaning" }).filter(([why]) => b.why[why]).map(([why, text]) => `${format.count(b.why[why])} ${text}`).join(", ")
  return section("What units do", ["Each unit is taken out of the network on the test pictures that fire it most. ", term("uses"), ": does its label say when it fires, and what it does? A row’s four shares are of the units that were looked at."],
    h("div.scroll", null, h("table", null,
      h("thead", null, h("tr", null, h("th", null, "Basis"), Object.values(cells).map(t => h("th.num", null, t)), h("th.num", null, term("uses_corrected")), h("th.num", null, term("causal_net")), h("th.num", null, "Measured"), h("th", null, "Looked at, not measured"))),
      h("tbody", null, known.map(b => h("tr", null, h("th", { scope: "row" }, dot(run, b.name), inFewWords(run, b.name)),
        Object.keys(cells).map(k => h("td.num", null, bar(format.share(b.four_field[k]), b.four_field[k], hue(run, b.name)))),
        h("td.num", null, format.share(b.uses_corrected)), h("td.num", null, meanOf(b.means[c.causal.primary])), h("td.num.together", null, format.count(b.measured), h("small.quiet", null, ` of ${format.count(b.units)}`)), h("td.quiet", null, left(b) || "none")))))),
    c.causal.pairs.filter(p => known.some(b => b.group === p.a) && known.some(b => b.group === p.b)).map(p => pairTable(run, own, p, "named", axis)),
    h("p.note", null, "Outputs are classes: a label that names a colour, a texture or a part may be right and yet have no output. Units that stand in for each other each look unnecessary. Between a late layer and the outputs lies little more than one linear step."))
}

const meanOf = m => (m.mean === null ? "–" : [signed(m.mean), m.low === null ? "" : h("small.quiet.below", null, ` ${signed(m.low)} to ${signed(m.high)}`)])

/* ---- distributions ---- */

function distributions(run, c) {
  const filled = d => Object.values(d.bases).some(counts => counts.some(n => n > 0))
  const keys = Object.keys(c.distributions ?? {}).filter(k => filled(c.distributions[k]))
  if (!keys.length) return null
  const state = { metric: keys[0] }
  const place = h("div")
  const select = h("select", { "aria-label": "Metric", onchange: event => { state.metric = event.target.value; draw() } }, keys.map(k => h("option", { value: k }, terms[termOf(c, k)]?.title ?? k)))
  const draw = () => place.replaceChildren(ridges(run, terms[termOf(c, state.metric)]?.title ?? state.metric, c.distributions[state.metric]))
  draw()
  return section("How units are spread", "The whole distribution, since means hide it: filled, the labels given; outlined, the same labels dealt out anew among the units (shuffled). If labels carry no information, the two look alike.",
    h("p", null, select), place)
}

function ridges(run, title, d) {
  const steps = (counts, name) => {
    const total = Math.max(1, counts.reduce((a, b) => a + b, 0))
    return counts.map((n, i) => ({ name, x1: d.edges[i], x2: d.edges[i + 1], share: n / total }))
  }
  const real = Object.entries(d.bases).flatMap(([name, counts]) => steps(counts, inFewWords(run, name)).map(s => ({ ...s, basis: name })))
  const dealt = Object.entries(d.shuffled ?? {}).flatMap(([name, counts]) => steps(counts, inFewWords(run, name)))
  const outline = dealt.flatMap(s => [{ name: s.name, x: s.x1, share: s.share }, { name: s.name, x: s.x2, share: s.share }])
  const names = Object.keys(d.bases)
  return figure(`${title}: distribution of each basis`, width => Plot.plot({
    width, height: 84 * names.length + 50, marginLeft: 8, marginRight: 22, marginBottom: 40, style: plotStyle,
    x: { label: `${title} →`, grid: true }, y: { axis: null, domain: [0, Math.max(...real.map(s => s.share), ...dealt.map(s => s.share)) * 1.05], insetTop: 20 },
    fy: { domain: names.map(n => inFewWords(run, n)), axis: null },
    marks: [
      Plot.rectY(real, { fy: "name", x1: "x1", x2: "x2", y: "share", fill: s => colour(hue(run, s.basis)), fillOpacity: 0.75, insetLeft: 0.5, insetRight: 0.5, title: s => `${format.share(s.share)} of the units between ${format.number(s.x1)} and ${format.number(s.x2)}` }),
      Plot.line(outline, { fy: "name", x: "x", y: "share", stroke: colour("var(--ink)"), strokeWidth: 1.2, strokeDasharray: "3 2" }),
      Plot.ruleY([0], { stroke: colour("var(--line)") }),
      Plot.text(names, { fy: n => inFewWords(run, n), text: n => inFewWords(run, n), frameAnchor: "top-left", textAnchor: "start", dy: 6, fill: "currentColor" }),
    ],
  }), `Share of the units of each basis.${ownChance(title)}`)
}

/* ---- quality against rate ---- */

function againstRate(run, c) {
  const bases = run.bases.filter(b => b.layer === c.setup.layer)
  const keys = ["truth_r", "caption_r", "scs", "auprc", "clarity", "monosemanticity"].filter(k => bases.some(b => b.quartiles[k]))
  if (!keys.length) return null
  const place = h("div", { style: "min-height:340px" })
  const state = { metric: keys.includes(c.primary) ? c.primary : keys[0] }
  const draw = async () => {
    const rows = (await Promise.all(bases.map(b => load(run, b.name)))).flat()
    const key = state.metric
    place.replaceChildren(scatter(rows, { rate: r => r.firing_rate, value: r => r[key], title: terms[state.metric].title.toLowerCase(), colours: Object.fromEntries(run.bases.map(b => [b.name, hue(run, b.name)])), names: name => inFewWords(run, name), open: r => { location.href = unitLink(r.basis, r.unit) }, height: 360 }))
  }
  new IntersectionObserver(([entry], observer) => { if (entry.isIntersecting) { observer.disconnect(); draw() } }, { rootMargin: "300px" }).observe(place)
  const select = h("select", { "aria-label": "Metric", onchange: event => { state.metric = event.target.value; draw() } }, keys.map(k => h("option", { value: k, selected: k === state.metric }, terms[k].title)))
  return section("Quality against firing rate", "Bases fire at different rates, and quality depends on the rate. So the comparison is repeated on units of equal rates.", h("p", null, select, "  ", legend(run, bases, inFewWords)), place)
}

/* ---- what was compared ---- */

function selection(run, c) {
  const total = key => d3Sum(c.bases.map(b => b[key]))
  return folded("What was compared", `${format.count(total("after"))} of ${format.plural(total("before"), "unit")}`, c.selection, false, h("div.scroll", null, h("table", null,
    h("thead", null, h("tr", null, ["Basis", "Units", "Selected", "Share", "Named", "With confidence", "With truth"].map((t, i) => h(i ? "th.num" : "th", null, t)), h("th", null, "Left out"))),
    h("tbody", null, c.bases.map(b => h("tr", null, h("th", { scope: "row" }, dot(run, b.name), inFewWords(run, b.name)),
      [b.before, b.after].map(n => h("td.num", null, format.count(n))), h("td.num", null, format.share(b.coverage)),
      [b.named, b.labelled, b.with_truth].map(n => h("td.num", null, typeof n === "number" ? format.count(n) : "–")),
      h("td.quiet", null, Object.entries(b.dropped ?? {}).filter(([, n]) => n).map(([s, n]) => `${format.count(n)} ${terms[s]?.title ?? s}`).join(", ") || "none")))))))
}

function reuse(run, c) {
  return folded("Coverage and redundancy", `distinct labels given with confidence, ${c.bases.map(b => `${lower(inFewWords(run, b.name))}: ${format.count(b.labels.distinct)}`).join("; ")}`, "How many different things the basis names, units that abstain left out. Evenness is 1 when every label is used equally often and near 0 when a few labels serve most units.", false, h("div.scroll", null, h("table", null,
    h("thead", null, h("tr", null, h("th", null, "Basis"), h("th.num", null, "Distinct labels"), h("th.num", null, "Units per label"), h("th.num", null, "Evenness"), h("th", null, "Used most"))),
    h("tbody", null, c.bases.map(b => h("tr", null, h("th", { scope: "row" }, dot(run, b.name), inFewWords(run, b.name)), h("td.num", null, format.count(b.labels.distinct)), h("td.num", null, format.number(b.labels.reuse, 1)), h("td.num", null, format.number(b.labels.evenness)),
      h("td.quiet", null, b.labels.most_used.slice(0, 4).map(([label, n]) => `${label} (${n})`).join(", ")))))))) 
}

function nullTable(run, c) {
  const names = [...new Set(c.bases.flatMap(b => Object.keys(b.null_percentile ?? {})))]
  if (!names.length) return null
  const chose = names.includes(run.scorer) ? run.scorer : names[0]
  const says = c.bases.filter(b => b.null_percentile?.[chose]).map(b => `${lower(inFewWords(run, b.name))}: ${format.share(b.null_percentile[chose].share_above_95)}`).join("; ")
  return folded("Do units react to anything that has a name?", `by ${terms[`scorer:${chose}`]?.title ?? chose}, ${says}`, [term("null_percentile"), ": the share of units whose best label scores higher than that of 95 % of shuffles of the same unit; 5 % of units unrelated to any label would. It says that a unit reacts to something, not that this label is right: random directions pass too."], false, h("div.scroll", null, h("table.even", null,
    h("thead", null, h("tr", null, h("th", null, "Basis"), names.map(s => h("th.num", null, term(`scorer:${s}`, terms[`scorer:${s}`]?.title ?? s))))),
    h("tbody", null, c.bases.map(b => h("tr", null, h("th", { scope: "row" }, dot(run, b.name), inFewWords(run, b.name)), names.map(s => h("td.num", null, b.null_percentile[s] ? bar(format.share(b.null_percentile[s].share_above_95), b.null_percentile[s].share_above_95, hue(run, b.name)) : "–"))))))))
}

/* ---- does the comparison itself hold? ---- */

function checks(run, c) {
  if (!c.validity?.length) return null
  const keys = Object.keys(c.metrics).filter(k => c.metrics[k].above_chance && c.bases.some(b => typeof b.shuffled?.[k] === "number"))
  const [fails, tested] = [false, true].map(passed => c.validity.filter(v => v.passed === passed).length)
  const says = fails ? `${format.plural(fails, "check")} of ${fails + tested} ${fails === 1 ? "fails" : "fail"}` : tested ? (tested === 1 ? "the check holds" : `all ${tested} checks hold`) : "not tested"
  return folded("Does the comparison itself hold?", says, "A basis against itself must show no difference, and labels dealt out anew among a basis’s units must score 0. Each check fails by luck in at most about one run of twenty.", fails > 0,
    h("ul", { class: "checks" }, c.validity.map(v => h("li", null, h("strong", null, { true: "holds", false: "fails" }[v.passed] ?? "not tested"), ` · ${v.check}: ${v.detail}`))),
    keys.length ? h("div.scroll", null, h("table", null,
      h("thead", null, h("tr", null, h("th", null, "Shuffled labels of"), keys.map(k => h("th.num", null, term(termOf(c, k)))))),
      h("tbody", null, c.bases.map(b => h("tr", null, h("th", { scope: "row" }, dot(run, b.name), inFewWords(run, b.name)), keys.map(k => h("td.num", null, typeof b.shuffled[k] === "number" ? signed(b.shuffled[k]) : "–"))))))) : null)
}

/* ---- scorers on the same units ---- */

function scorers(run, c) {
  if (!c.methods?.length) return null
  const metrics = [...new Set(c.methods.map(m => m.metric))]
  const state = { metric: metrics[0] }
  const [place, note] = [h("div.scroll"), h("p.note")]
  const words = name => ({ final: "label given", shuffled: "shuffled labels" })[name] ?? terms[`scorer:${name}`]?.title ?? name
  const draw = () => {
    const rows = c.methods.filter(m => m.metric === state.metric)
    const mean = new Map(rows.flatMap(m => [[`${m.group}\t${m.a}`, m.mean_a], [`${m.group}\t${m.b}`, m.mean_b]]))
    const confirmed = new Map(rows.flatMap(m => [[`${m.group}\t${m.a}`, m.confirmed_a], [`${m.group}\t${m.b}`, m.confirmed_b]]))
    const cell = (g, s) => { const key = `${g}\t${s}`; return mean.has(key) ? [bar(format.number(mean.get(key), 3), mean.get(key) / top, groupHue(run, c, g)), typeof confirmed.get(key) === "number" ? h("small.quiet", null, `${format.count(confirmed.get(key))} confirmed`) : null] : "–" }
    const names = [...new Set(rows.flatMap(m => [m.a, m.b]))]
    const groups = [...new Set(rows.map(m => m.group))]
    const top = Math.max(...[...mean.values()].filter(v => v !== null), 1e-9)
    note.textContent = ownChance(terms[termOf(c, state.metric)]?.title ?? "")
    place.replaceChildren(h("table.even", null,
      h("thead", null, h("tr", null, h("th", null, "Scorer"), groups.map(g => h("th.num", null, groupDot(run, c, g), groupWords(c, g))))),
      h("tbody", null, names.map(s => h("tr", null, h("th", { scope: "row" }, term(`scorer:${s}`, words(s)), s === "final" ? h("small.quiet", null, " 0 where it abstains") : null), groups.map(g => h("td.num", null, cell(g, s))))))),
    h("details", null, h("summary", null, "Differences on the same units"), h("table", null,
      h("thead", null, h("tr", null, ["Basis", "Scorers", "Difference (95\u00a0%)", "p, corrected", "Better"].map((t, i) => h(i > 1 && i < 4 ? "th.num" : "th", null, t)))),
      h("tbody", null, rows.map(m => h("tr", null, h("th", { scope: "row" }, groupDot(run, c, m.group), groupWords(c, m.group)), h("td", null, `${words(m.a)} − ${words(m.b)}`), h("td.num", null, m.difference === null ? "–" : `${signed(m.difference)} (${signed(m.low)} to ${signed(m.high)})`), h("td.num", null, m.p_holm === null ? "–" : m.p_holm < 0.001 ? "<0.001" : m.p_holm.toFixed(3)), h("td", null, better(m, m.verdict) ? words(better(m, m.verdict)) : h("span.quiet", null, "none shown"))))))))
  }
  draw()
  return section("Which scorer names best?", "All scorers label the same units, so they are compared pair by pair; a unit that a scorer leaves without a label counts 0. All bars share one scale. Confirmed: labels that people’s words make true of some test image.", h("p", null, h("select", { "aria-label": "Metric", onchange: event => { state.metric = event.target.value; draw() } }, metrics.map(k => h("option", { value: k }, terms[termOf(c, k)]?.title ?? k)))), place, note)
}

/* ---- neurons beside features ---- */

async function sideBySide(run, c) {
  if (!run.sides || !run.sides.bases.every(name => run.bases.find(b => b.name === name)?.layer === c.setup.layer)) return null
  const parts = new Map(await Promise.all(run.sides.bases.map(async name => [name, await load(run, name)])))
  const one = ([name, u, r]) => {
    const row = parts.get(name)[u]
    return h("a.card", { href: unitLink(name, u) }, h("span.mosaic", null, row.thumbs.slice(0, 3).map((id, j) => picture(id, `strongest image ${j + 1}`))),
      h("div.name", null, row.label ?? "no label"), h("div.meta", null, dot(run, name), `${inBrief(run, name, u)}${r === undefined ? "" : ` ·\u00a0r\u00a0${format.number(r)}`}`), h("div", null, marks(row)))
  }
  const block = (title, lead, rows) => (rows.length ? h("div.gallery", null, h("h3", null, title), h("p.lead", null, lead), h("div.rows", null, rows.map(row => h("div.cards.side", { style: `--n:${row.length}` }, row.map(one))))) : null)
  return section("Neurons beside features", "Neurons and the SAE features that fire most with them (r: correlation over images). Drawn by a fixed seed.",
    block("Matched pairs", "Neurons drawn at random, each with the feature that fires most like it.", run.sides.pairs),
    block("Neurons of several meanings, split", "Drawn from the tenth of neurons with the highest polysemanticity: the neuron first, then up to three features that fire with it.", run.sides.splits))
}
