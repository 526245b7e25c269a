/* A model's answers about a unit: proposals with the pictures that were sent, and verification. */
"use strict"

/* Tokens, money and time of an answer in words; null where nothing was counted. */
function spent(p) {
  const tokens = p.prompt_tokens === undefined ? null : `${format.count(p.prompt_tokens)} + ${format.count(p.completion_tokens ?? 0)} tokens`
  const money = p.cost !== undefined ? `$${p.cost < 0.01 ? p.cost.toPrecision(2) : p.cost.toFixed(2)}` : tokens ? "cost unknown" : null
  const rest = [p.model, tokens, money, p.seconds === undefined ? null : format.seconds(p.seconds), p.attempts > 1 ? `${p.attempts} attempts` : null, p.cached ? "from the cache" : null]
  return rest.filter(Boolean).join(" · ") || null
}

function proposals(run, record) {
  if (!record.proposals.length) return null
  return section("Proposals", "Candidate labels from a proposer that saw the unit’s images. The scorers judge them like any other label.", record.proposals.map(p => proposal(run, p)))
}

function proposal(run, p) {
  const outcome = { none: "nothing in common", unparsed: "an answer without a label", failed: "no answer", no_positives: "no image to show" }[p.status]
  const more = (title, ...content) => h("details", null, h("summary", null, title), content)
  return h("div.answer", null,
    h("h3", null, (p.labels ?? []).join(", ") || outcome, h("span.tag", null, p.proposer)),
    spent(p) ? h("p.note", null, spent(p)) : null,
    p.evidence ? h("p", null, h("q", null, p.evidence), p.confidence === undefined ? null : h("span.quiet", null, ` (its own confidence: ${format.share(p.confidence)})`)) : null,
    p.error ? h("p.fault", null, p.error) : null,
    p.sheets ? h("div.sheets", null, p.sheets.map(place => h("a", { href: place, "aria-label": `${shownAs(place)}, larger` }, h("img", { src: place, alt: sheetOf(place), loading: "lazy", decoding: "async" }), h("small", null, shownAs(place))))) : null,
    p.raw ? more("The full answer", h("pre", null, p.raw)) : null,
    p.talk ? more(`The talk (${p.talk.length} ${p.talk.length === 1 ? "round" : "rounds"})`, h("ol.talk", null, p.talk.map(talkRound))) : null,
    p.prompt !== undefined ? more("The prompt", h("pre", null, run.prompts[p.prompt])) : null)
}

/* A round of an agent's talk: what it said, its calls, and what they were answered. */
function talkRound(round) {
  const call = c => h("div", null, h("code", null, `${c.tool} ${c.arguments}`), h("pre", null, c.answer))
  return h("li", null, round.said ? h("p", null, round.said) : null, round.error ? h("p.fault", null, round.error) : null, round.calls.map(call))
}

/* A sheet in words, by its file's name. */
const askedFor = place => place.match(/-asked-(\d+)\./)?.[1]
const sheetOf = place => (askedFor(place) ? `photos that it asked for, ${askedFor(place)}` : `sheet of the ${place.includes("contrast") ? "contrasts" : "strongest photos"}`)
const shownAs = place => (askedFor(place) ? `asked for, ${askedFor(place)}` : place.includes("contrast") ? "contrasts, as sent" : "positives, as sent")

/* ---- verification ---- */

function verified(record) {
  if (!record.verified.length) return null
  return section("A model’s second look", null, record.verified.map(v => looks[v.test](record, v)))
}

const looks = { detect: detection, fuzzing: detection, second_look: (record, v) => choiceMade(v), intruder: intruders, embedding: (record, v) => embedded(v) }

function detection(record, v) {
  const seen = new Set(v.said)
  const right = v.fires.filter((on, i) => on === seen.has(i + 1)).length
  const framed = v.test === "fuzzing"
  const verdict = v.status === "answered" ? `${right} of ${v.images.length} photos judged correctly` : { unparsed: "the answer is unreadable and counts as all wrong", failed: "no answer" }[v.status]
  const word = (on, i) => `${framed ? (on ? "framed where it fires" : "framed elsewhere") : on ? "strong" : "weak"}, ${seen.has(i + 1) ? "label seen" : "label not seen"}`
  return h("div.answer", null,
    h("h3", null, framed ? `Which framed regions show “${v.label}”?` : `Which photos show “${v.label}”?`),
    h("p.note", null, "Photos that neither the label nor its proposal was made from."),
    h("p", null, `${verdict}. `, v.balanced_accuracy === undefined ? null : [term(framed ? "fuzzing" : "detection", "Balanced accuracy"), ` ${format.number(v.balanced_accuracy)}, F1 ${format.number(v.f1)}.`]),
    v.status === "answered" ? h("div.looked", null, v.images.map((id, i) => h("figure", { class: v.fires[i] === seen.has(i + 1) ? "right" : "wrong" }, picture(id, `${record.names[id]}: ${word(v.fires[i], i)}`), h("figcaption", null, word(v.fires[i], i))))) : null,
    spent(v) ? h("p.note", null, spent(v)) : null,
    v.raw ? h("details", null, h("summary", null, "The full answer"), h("pre", null, v.raw)) : null)
}

/* Trials: each photo's place, the intruder and the one that the model named. */
function intruders(record, v) {
  const word = (t, i) => [i + 1 === t.intruder ? "intruder" : "strong", i + 1 === t.said ? "named" : null].filter(Boolean).join(", ")
  const outcome = t => ({ none: "named none", unparsed: "the answer is unreadable", failed: "no answer" }[t.status] ?? (t.said === t.intruder ? "found" : "another was named"))
  return h("div.answer", null,
    h("h3", null, "Which photo is not one of the unit’s strongest?"),
    h("p.note", null, "No label was shown. Each intruder is a look-alike of one of the strongest images."),
    v.trials ? h("p", null, term("intruder", "Intruder found"), ` in ${v.correct} of ${v.trials} trials (95 % interval ${format.share(v.interval[0])} to ${format.share(v.interval[1])}; chance ${format.share(v.chance)}).`) : null,
    v.rounds.map(t => h("div", null,
      h("p.note", null, `Trial ${t.trial + 1}: ${outcome(t)}.`, spent(t) ? ` ${spent(t)}` : null),
      h("div.looked", null, t.images.map((id, i) => h("figure", { class: i + 1 === t.said ? (t.said === t.intruder ? "right" : "wrong") : "plain" }, picture(id, `${record.names[id]}: ${word(t, i)}`), h("figcaption", null, word(t, i))))),
      t.raw ? h("details", null, h("summary", null, "The full answer"), h("pre", null, t.raw)) : null)))
}

function embedded(v) {
  return h("div.answer", null,
    h("h3", null, "Do held-out photos look like the exemplars?"),
    v.auroc === undefined ? h("p", null, "Undefined: no exemplar, or only photos above the unit’s mean, or only photos below it.") : h("p", null, term("embedding_score", "Embedding score"), ` ${format.number(v.auroc)} (chance 0.5; likeness to the usual photo gives ${format.number(v.typical)}), on ${format.count(v.fires)} photos above the unit’s mean and ${format.count(v.silent)} below it. No model was asked.`))
}

function choiceMade(v) {
  const outcome = { answered: null, none: "none of them fits", unparsed: "the answer is unreadable", failed: "no answer" }[v.status]
  return h("div.answer", null,
    h("h3", null, "Which of the scorer’s best labels fits?"),
    h("p.note", null, "The model saw the unit’s images and these labels, in this order."),
    h("p", null, v.candidates.map((c, i) => [i ? ", " : "", c === v.label ? h("strong", null, c) : h("span.quiet", null, c)]), ". ", outcome ? `Its answer: ${outcome}.` : ["It chose ", h("strong", null, v.label), "."]),
    spent(v) ? h("p.note", null, spent(v)) : null,
    v.raw ? h("details", null, h("summary", null, "The full answer"), h("pre", null, v.raw)) : null)
}
