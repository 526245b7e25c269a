/* What the pages say of a comparison (comparison.json): groups in words, the answers in a line each. */
"use strict"

const families = { faithfulness: "Do labels hold?", coherence: "Do images belong together?" }

const groupOf = (c, name) => c.groups.find(g => g.name === name) ?? { name, kind: name, bases: [name], seeds: [] }

function groupWords(c, name) {
  const group = groupOf(c, name)
  const alike = c.groups.filter(g => g.kind === group.kind)
  return alike.length === 1 ? (terms[group.kind]?.title ?? name) : name
}

const groupHue = (run, c, name) => hue(run, inRun(run, c, groupOf(c, name).bases[0]))
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
    const faithful = a.family === "faithfulness"
    const text = {
      none: faithful ? `No difference shown in how well labels hold on ${lower(x)} and ${lower(y)}` : `No difference shown in how alike the images of ${lower(x)} and ${lower(y)} are`,
      mixed: `${faithful ? "Label faithfulness" : "Coherence"} is mixed: some metrics favour ${lower(x)}, some ${lower(y)}`,
      refused: `${faithful ? "Label faithfulness" : "Coherence"} of ${lower(x)} and ${lower(y)} cannot be compared: too few units have a number${faithful ? " (pictures need captions or classes)" : ""}`,
    }[a.verdict] ?? (faithful ? `Labels hold better on ${lower(x)} than on ${lower(y)}` : `Images of ${lower(x)} belong together more than those of ${lower(y)}`)
    return { ...a, side, text }
  })
}

const lower = text => (text.startsWith("SAE") || text.startsWith("PCA") ? text : text[0].toLowerCase() + text.slice(1))

/* Headlines as cards, each with what became of it among units matched on firing rate. */
function headlineCards(run, c) {
  const cards = headlines(run, c).map(a => {
    const matched = c.answers.find(m => m.matching === "rate" && m.a === a.a && m.b === a.b && m.family === a.family)
    const same = matched && { [a.verdict]: "the same", refused: "too few units to say", none: "no difference shown", mixed: "mixed", a: `${groupWords(c, a.a)} ahead`, b: `${groupWords(c, a.b)} ahead` }[matched.verdict]
    const all = a.better_a.length + a.better_b.length + a.none.length
    const won = a.side ? `On ${a.verdict === "a" ? a.better_a.length : a.better_b.length} of ${all} metrics. ` : ""
    return h("div.headline", { style: a.side ? `--c:${groupHue(run, c, a.side)}` : null }, h("p.question", null, families[a.family]), h("p.serif", null, a.text, "."), h("p.note", null, won, matched ? `Among units that fire equally often: ${same}.` : ""))
  })
  return cards.length ? h("div.headlines", null, cards) : null
}

/* Whether the real bases beat the controls, in a sentence; a basis that does not has no claim to be special. */
function controlsLine(run, c) {
  const found = headlines(run, c, "control").filter(a => a.family === "faithfulness")
  if (!found.length) return null
  return h("p.note", null, "Against the controls: ", found.map((a, i) => [i ? "; " : "", a.text[0].toLowerCase() + a.text.slice(1)]), ".")
}
