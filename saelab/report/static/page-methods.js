/* Methods: what made this report, to the last setting. */
"use strict"

page((run, main) => {
  const seconds = Object.entries(run.timings ?? {})
  const total = seconds.reduce((sum, [, s]) => sum + s, 0)
  const longest = Math.max(1e-9, ...seconds.map(([, s]) => s))
  const fact = (name, value) => (value ? h("tr", null, h("th", { scope: "row", style: "width:min(11rem, 34vw)" }, name), h("td", null, value)) : null)
  main.replaceChildren(...[
    h("h1", null, "Methods"),
    h("p.lead", null, "Everything you need to judge or repeat this run."),
    section("The run", null, h("table", null, h("tbody", null,
      fact("Run", run.name), fact("saelab", run.version), fact("Report made with", Object.entries(run.made_with).map(([name, v]) => `${name} ${v}`).join(", ")), fact("Made", run.created?.replace("T", " ").replace(/\+00:?00$/, " UTC")), fact("Host model", run.host), fact("Layers", [...new Set(run.bases.map(b => b.layer))].join(", ")),
      fact("Encoder", run.encoder), fact("Images", `${run.images.name}, ${format.count(run.images.count)} (${Object.entries(run.images.splits).map(([s, n]) => `${format.count(n)} ${s}`).join(", ")})`),
      fact("Fingerprint", h("code", null, run.images.fingerprint.slice(0, 16))), fact("Credit", run.images.credit)))),
    takeAway(run),
    cost(run),
    seconds.length ? section("Time", `${format.seconds(total)} in all.`, h("table", null, h("tbody", null,
      seconds.map(([stage, s]) => h("tr", null, h("th", { scope: "row", style: "width:min(11rem, 34vw)" }, stage.replaceAll("_", " ").replace(/\bsae\b/, "SAE")), h("td.whole", null, bar(format.seconds(s), s / longest))))))) : null,
    section("Units by status", "Every unit is counted.", h("div.scroll", null, h("table", null,
      h("thead", null, h("tr", null, h("th", null, "Basis"), statusOrder.map(s => h("th.num", null, term(s))))),
      h("tbody", null, run.bases.map(b => h("tr", null, h("th", { scope: "row" }, dot(run, b.name), inWords(run, b.name)), statusOrder.map(s => h("td.num", null, b.statuses[s] ? format.count(b.statuses[s]) : h("span.quiet", null, "0"))))))))),
    problems(run),
    run.config ? section("Settings", "Every setting of the run, as given.", h("details", null, h("summary", null, "Show all"), h("pre", null, JSON.stringify(run.config, null, 1)))) : null,
    section("Recipes", "Everything each artifact was made from; the folder’s name carries its digest.",
      run.bases.map(b => h("details", null, h("summary", null, dot(run, b.name), inWords(run, b.name)), Object.entries(b.recipes).flatMap(([stage, recipe]) => [h("h3", null, stage), h("pre", null, JSON.stringify(recipe, null, 1))])))),
    glossary(run),
  ].filter(Boolean))
})

/* The files to take away; those that there are of every basis are folded, a list for each program that reads them. */
function takeAway(run) {
  const programs = { neuronpedia: "For Neuronpedia’s importer", saelens: "For SAELens" }
  const of = file => Object.keys(programs).find(name => file.startsWith(`takeaway/${name}/`))
  const list = files => h("ul", null, files.map(([file, what]) => h("li", null, h("a", { href: file, download: true }, file.split("/").at(-1)), ` – ${what}`)))
  return section("Take away", "Files in this report’s folder.", list(run.takeaway.filter(([file]) => !of(file))),
    Object.entries(programs).map(([name, title]) => [title, run.takeaway.filter(([file]) => of(file) === name)]).filter(([, files]) => files.length)
      .map(([title, files]) => h("details", null, h("summary", null, `${title} `, h("span.quiet", null, format.plural(files.length, "file"))), list(files))),
    h("p.note", null, "Blind rating sheets for a human study: ", h("code", null, `saelab view run=runs/${run.name}.json do=sheets raters=5`)))
}

/* What asking models took, for each basis that was put to one. */
function cost(run) {
  const rows = run.bases.filter(b => run.cost[b.name]).map(b => [b, run.cost[b.name]])
  if (!rows.length) return null
  return section("Questions to models", "Tokens and dollars of the answers paid for in this run; cached answers were paid for earlier.", h("div.scroll", null, h("table", null,
    h("thead", null, h("tr", null, h("th", null, "Basis"), ["Answers", "From the cache", "Tokens in", "Tokens out", "Cost"].map(t => h("th.num", null, t)))),
    h("tbody", null, rows.map(([b, c]) => h("tr", null, h("th", { scope: "row" }, dot(run, b.name), inWords(run, b.name)), [c.answers, c.cached, c.prompt_tokens, c.completion_tokens].map(n => h("td.num", null, format.count(n))), h("td.num", null, c.cost === null ? "unknown" : `$${c.cost.toFixed(4)}`)))))))
}

function problems(run) {
  const skipped = run.images.skipped.map(([file, reason]) => `${file}: ${reason}`)
  const all = [["Skipped", skipped], ["Not shown", run.unreadable], ["Reused", run.reused ?? []], ["Notes", run.notes ?? []]].filter(([, list]) => list.length)
  if (!all.length) return null
  return section("Skipped, reused, noted", null, all.map(([title, list]) => h("details", { open: list.length <= 3 }, h("summary", null, `${title} (${format.count(list.length)})`), h("ul", null, list.slice(0, 500).map(t => h("li", null, t))))))
}

function glossary(run) {
  const entries = Object.entries(run.terms).filter(([, t]) => t.text)
  return section("Glossary", null, h("dl", null, entries.map(([, t]) => [h("dt", null, h("strong", null, t.title)), h("dd", { style: "margin:0 0 .8rem" }, t.text, t.source ? h("span.quiet", null, ` (${t.source})`) : null)])))
}
