/* What the pages say of a comparison (comparison.json): groups in words, the answers in a line each. */
"use strict"

const families = { faithfulness: "Do labels hold?", coherence: "Do images belong together?", causal: "Does the network use it so?" }

const groupOf = (c, name) => c.groups.find(g => g.name === name) ?? { name, kind: name, bases: [name], seeds: [] }

function groupWords(c, name) {
  const group = groupOf(c, name)
  const alike = c.groups.filter(g => g.kind === group.kind)
  return alike.length === 1 ? (terms[group.kind]?.title ?? name) : name
}

const groupHue = (run, c, name) => hue(run, inRun(run, c, groupOf(c, name).bases[0]))
const groupNamed = (run, c, name) => h("span.together", null, groupDot(run, c, name), groupWords(c, name))
const groupDot = (run, c, name) => h("i.dot", { style: `background:${groupHue(run, c, name)}`, "aria-hidden": "true" })
/* The name of the side that a verdict calls better; undefined where none is. */
const better = (pair, verdict) => ({ a: pair.a, b: pair.b })[verdict]

/* The answers of one kind (role main or control, matching all) as sentences that can stand as headlines. */
function headlines(run, c, role = "main") {
  const pairs = new Set(c.pairs.filter(p => p.role === role).map(p => `${p.a} ${p.b}`))
  return c.answers.filter(a => a.matching === "all" && pairs.has(`${a.a} ${a.b}`)).map(a => {
    const side = better(a, a.verdict)
    const other = side === a.a ? a.b : a.a
    const [x, y] = [groupWords(c, side ?? a.a), groupWords(c, side ? other : a.b)]
    if (a.family === "causal") return { ...a, side, text: ofUse(a, x, y) }
    const faithful = a.family === "faithfulness"
    const text = {
      none: faithful ? `No difference shown in how well labels hold on ${lower(x)} and ${lower(y)}` : `No difference shown in how alike the images of ${lower(x)} and ${lower(y)} are`,
      mixed: `${faithful ? "Label faithfulness" : "Coherence"} is mixed: some metrics favour ${lower(x)}, some ${lower(y)}`,
      refused: `${faithful ? "Label faithfulness" : "Coherence"} of ${lower(x)} and ${lower(y)} cannot be compared: too few units have a number${faithful ? " (pictures need captions or classes)" : ""}`,
    }[a.verdict] ?? (faithful && a.above === false ? `Labels on ${lower(x)} and ${lower(y)} differ, ${lower(x)} ahead, but neither is shown to hold above chance` : faithful ? `Labels hold better on ${lower(x)} than on ${lower(y)}` : `Images of ${lower(x)} belong together more than those of ${lower(y)}`)
    return { ...a, side, text }
  })
}

/* What a comparison of effects says: y is behind x where one side is ahead. */
function ofUse(a, x, y) {
  const both = `${lower(x)} and ${lower(y)}`
  if (a.verdict === "refused") return `What ${both} do cannot be compared: ${a.why}`
  if (a.above === false) return `Neither ${lower(x)} nor ${lower(y)} are shown to be used for what their labels say; ${lower(x)} come closer`
  return a.verdict === "none" ? `No difference shown in how much the network uses ${both} for what their labels say` : `The network uses ${lower(x)} more than ${lower(y)} for what their labels say`
}

const upper = text => text[0].toUpperCase() + text.slice(1)
const lower = text => (text.startsWith("SAE") || text.startsWith("PCA") ? text : text[0].toLowerCase() + text.slice(1))

/* ---- the answer of a layer: one plot of the metric that decides, and the verdict in a few lines ---- */

/* Pairs of all selected units in the metric that decides, every named unit counted: {pair, row}. */
const decisive = c => c.pairs.filter(p => p.matching === "all").map(pair => ({ pair, row: pair.results.find(r => r.metric === c.primary && r.counting === "named") })).filter(x => x.row && x.row.difference !== null)

function fold(run, c, link) {
  const means = meansOfAll(run, c)
  return h("div.fold", null, means || link ? h("div", null, means, link ? h("p", null, link) : null) : null, verdictOf(run, c))
}

/* The forest plot: every group's mean as the neurons' (or the first group's) plus its difference from them. */
function meansOfAll(run, c) {
  const pairs = decisive(c)
  if (!pairs.length) return null
  const anchor = (c.groups.find(g => g.kind === "neuron" && !g.control) ?? c.groups.find(g => !g.control)).name
  const of = pairs.filter(({ pair }) => [pair.a, pair.b].includes(anchor))
  if (!of.length) return null
  const main = of.find(({ pair }) => pair.role === "main") ?? of[0]
  const at = main.pair.a === anchor ? main.row.mean_a : main.row.mean_b
  const reference = { name: lower(groupWords(c, anchor)), css: groupHue(run, c, anchor) }
  const rows = of.map(({ pair, row }) => {
    const [name, sign] = pair.a === anchor ? [pair.b, -1] : [pair.a, 1]
    const ends = row.low === null ? [null, null] : [at + sign * row.low, at + sign * row.high].sort((x, y) => x - y)
    return { name: groupWords(c, name), note: row.low === null ? "no interval" : "", css: groupHue(run, c, name), mean: at + sign * row.difference, low: ends[0], high: ends[1], control: groupOf(c, name).control }
  })
  const own = { name: groupWords(c, anchor), note: "", css: reference.css, mean: at, low: null, high: null, control: false }
  return forest([...rows.filter(r => !r.control), own, ...rows.filter(r => r.control)], { title: c.metrics[c.primary].title, reference, at })
}

/* All units; where other ways to look at them say something else; coherence; use, where it was measured. */
function verdictOf(run, c) {
  const pairs = new Map(decisive(c).map(x => [`${x.pair.a}\t${x.pair.b}`, x.row]))
  const line = (question, css, ...text) => h("div.headline", { style: css ? `--c:${css}` : null }, h("p.question", null, question), ...text)
  const answered = headlines(run, c).filter(a => a.family === "faithfulness")
  const hold = answered.map(a => {
    const row = pairs.get(`${a.a}\t${a.b}`)
    const numbers = row && row.low !== null ? `${groupWords(c, a.a)} less ${lower(groupWords(c, a.b))}: ${format.number(row.difference, 3)}, 95 % interval ${format.number(row.low, 3)} to ${format.number(row.high, 3)}, corrected ${format.p(row.p_holm)}.` : a.why ? `${upper(a.why)}.` : ""
    return line("Do labels hold? All units", a.side ? groupHue(run, c, a.side) : null, h("p.serif", null, a.text, "."), numbers ? h("p.note", null, numbers) : null)
  })
  const coherent = headlines(run, c).filter(a => a.family === "coherence").map(a => line(families.coherence, a.side ? groupHue(run, c, a.side) : null, h("p.plainly", null, a.text, ".")))
  const used = headlines(run, c).filter(a => a.family === "causal").map(a => line(families.causal, a.side ? groupHue(run, c, a.side) : null, h("p.plainly", null, a.text, ".")))
  return h("div.verdict", null, hold, answered.some(a => a.verdict !== "refused") ? line("Looked at in other ways", null, otherWays(c)) : null, coherent, used, controlsLine(run, c))
}

/* Where another counting, matching, judge, layer or pooling says something else, in its words. */
function otherWays(c) {
  const says = d => ({ a: `${lower(groupWords(c, d.a))} are ahead`, b: `${lower(groupWords(c, d.b))} are ahead`, none: "no difference is shown", mixed: "metrics disagree", refused: "too few units are left" })[d.verdict]
  const found = new Map()
  for (const d of c.disagreements ?? []) found.set(says(d), [...(found.get(says(d)) ?? []), d.way])
  if (!found.size) return h("p.plainly", null, "The other countings, matchings, judges, layers and poolings that were run don’t contradict this.")
  return h("p.plainly", null, "It depends on the choice: ", [...found].map(([what, ways]) => `${what} ${ways.join(", ")}`).join("; "), ".")
}

/* Whether the real bases beat the controls, in a sentence; a basis that does not has no claim to be special. */
function controlsLine(run, c) {
  const found = headlines(run, c, "control").filter(a => a.family === "faithfulness")
  if (!found.length) return null
  return h("p.note", null, "Against the controls: ", found.map((a, i) => [i ? "; " : "", a.text[0].toLowerCase() + a.text.slice(1)]), ".")
}
