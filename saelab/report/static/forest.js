/* Differences of two groups, metric by metric: the same columns in every table, all bars of the page on one axis. */
"use strict"

const signed = (x, digits = 3) => (x >= 0.5 * 10 ** -digits ? "+" : "") + format.number(x, digits)

/* The axis that all tables share: {reach, ticks}. It holds every interval of all selected units; a longer one, as of
   the few units that a matching leaves, is cut and marked. */
function sharedAxis(pairs) {
  const told = pairs.filter(p => p.matching === "all").flatMap(p => p.results.filter(r => r.counting === "named"))
  const reach = Math.max(...told.flatMap(r => [r.low, r.high, r.difference]).filter(x => typeof x === "number").map(Math.abs), 0.02) * 1.04
  const power = 10 ** Math.floor(Math.log10(reach / 3))
  const step = [1, 2, 5, 10].map(x => x * power).find(x => reach / x <= 3)
  const several = Math.floor(reach / step)
  return { reach, ticks: Array.from({ length: 2 * several + 1 }, (_, i) => (i - several) * step) }
}

const onAxis = (axis, x) => 50 + (50 * x) / axis.reach

/* The tables of a page: `axis` as of `sharedAxis`, `c` the comparison that explains the metrics. */
function pairTable(run, c, pair, counting, axis) {
  const heading = h("h3", null, groupNamed(run, c, pair.a), h("span.quiet", null, " against "), groupNamed(run, c, pair.b), pair.role === "control" ? h("span.tag", null, "control") : null)
  if (pair.refused) return h("div.pairing", null, heading, h("p.note", null, `${upper(pair.refused)}.`))
  const rows = pair.results.filter(r => r.counting === counting)
  const [a, b] = [groupWords(c, pair.a), groupWords(c, pair.b)]
  return h("div.pairing", null, heading,
    h("p.note", null, `${format.count(d3Sum(pair.units_a))} and ${format.count(d3Sum(pair.units_b))} units${pair.interval ? `; ${pair.interval}` : ""}.`, balance(pair)),
    h("div.scroll", null, h("table.forest", { style: `--grid:${axis.ticks.map(x => `linear-gradient(var(--line) 0 0) ${onAxis(axis, x)}% 0 / 1px 100% no-repeat`)}` },
      h("colgroup", null, ["metric", "better", "axis", "difference", "mean", "mean", "p", "delta"].map(css => h(`col.${css}`))),
      h("thead", null, h("tr", null, h("th", null, "Metric"), h("th", null, "Better"), axisHead(axis, a, b),
        h("th.num", null, "Difference (95\u00a0%)"), h("th.num", null, a), h("th.num", null, b), h("th.num", null, "p, corrected"), h("th.num", null, term("cliffs_delta", "δ")))),
      h("tbody", null, Object.keys(c.metrics).flatMap(key => rows.filter(r => r.metric === key)).map(r => resultRow(run, c, pair, r, axis))))))
}

function axisHead(axis, a, b) {
  const digits = Math.max(0, -Math.floor(Math.log10(axis.ticks.at(-1) - axis.ticks.at(-2)) + 1e-9))
  return h("th.axis", null,
    h("span.sides", null, h("span", null, `←\u00a0${b} more`), h("span", null, `${a} more\u00a0→`)),
    h("span.ticks", null, axis.ticks.map(x => h("i", { style: `left:${onAxis(axis, x)}%` }, format.number(x, digits)))))
}

function balance(pair) {
  if (!pair.balance) return ""
  const [before, after] = [pair.balance.before, pair.balance.after].map(two => two.map(x => format.number(x, 3)).join(" and "))
  return ` Means of what was matched: ${before} before, ${after} after.`
}

/* What a row's metric has to do with the verdict. */
const roles = { primary: "decides", shown: "shown only" }

function resultRow(run, c, pair, r, axis) {
  const side = better(pair, r.verdict)
  const notes = [roles[r.role], c.metrics[r.metric].higher_is_better === false ? "lower is better" : null].filter(Boolean).join(", ")
  const shuffled = typeof r.null_difference === "number" ? `; with shuffled labels ${format.number(r.null_difference, 3)}` : ""
  const cell = (title, ...content) => h("td.num", { "data-title": title }, ...content)
  return h("tr", null,
    h("th", { scope: "row" }, term(termOf(c, r.metric)), notes ? h("small.quiet", null, ` ${notes}`) : null),
    h("td.verdictcell", null, side ? h("strong", null, groupDot(run, c, side), groupWords(c, side)) : h("span.quiet", null, r.difference === null ? "–" : r.role === "shown" ? "not judged" : "none shown")),
    h("td.axis", null, whisker(r, axis, side ? groupHue(run, c, side) : "var(--soft)", shuffled)),
    cell("Difference (95 %)", r.difference === null ? "–" : [signed(r.difference), r.low === null ? "" : h("small.quiet", null, ` ${signed(r.low)} to ${signed(r.high)}`)]),
    cell(groupWords(c, pair.a), format.number(r.mean_a, 3)), cell(groupWords(c, pair.b), format.number(r.mean_b, 3)),
    cell("p, corrected", r.p_holm === null ? "–" : r.p_holm < 0.001 ? "<0.001" : r.p_holm.toFixed(3)),
    cell("Cliff’s δ", r.cliffs_delta === null ? "–" : signed(r.cliffs_delta, 2)))
}

/* One difference: dot, interval, what shuffled labels show; a wedge where the axis cuts it. */
function whisker(r, axis, css, shuffled) {
  if (r.difference === null) return h("span.quiet", null, "undefined")
  const at = x => Math.max(0, Math.min(100, onAxis(axis, x)))
  const text = `difference ${signed(r.difference)}${r.low === null ? "" : `, interval ${signed(r.low)} to ${signed(r.high)}`}${shuffled}`
  const [low, high] = [r.low ?? r.difference, r.high ?? r.difference]
  return h("span.whisker", { role: "img", "aria-label": text, title: text, style: `--c:${css}` },
    r.low === null ? null : h("b", { style: `left:${at(low)}%;right:${100 - at(high)}%` }),
    typeof r.null_difference === "number" && Math.abs(r.null_difference) <= axis.reach ? h("u", { style: `left:${at(r.null_difference)}%` }) : null,
    Math.abs(r.difference) <= axis.reach ? h("i", { style: `left:${at(r.difference)}%` }) : null,
    low < -axis.reach ? h("s.left", null, "◂") : null, high > axis.reach ? h("s.right", null, "▸") : null)
}
