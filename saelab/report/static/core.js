/* What every page uses: data that is loaded on demand, building elements, numbers in words, terms on hover, the theme.
   Everything hangs on one global, `saelab`; pages opened from disk can't use modules. */
"use strict"

const saelab = (() => {
  const arrived = new Map() // key -> promise of a value
  const settle = new Map() // key -> [resolve, reject]

  /* The value written by `write.put(out, key, ...)`: its script is added to the page the first time it is asked for. */
  function need(key) {
    if (!arrived.has(key)) {
      arrived.set(key, new Promise((resolve, reject) => settle.set(key, [resolve, reject])))
      script(`data/${key}.js`).catch(settle.get(key)[1])
    }
    return arrived.get(key)
  }

  /* Run a script of the report. Scripts that are asked for in a row and `ordered` run in that order. */
  function script(address, ordered = false) {
    return new Promise((done, failed) => {
      const element = document.createElement("script")
      Object.assign(element, { src: address, async: !ordered, onload: done })
      element.onerror = () => failed(new Error(`${address} is missing: the report's folder is incomplete`))
      document.head.append(element)
    })
  }

  function put(key, text) {
    const value = JSON.parse(text)
    settle.get(key)[0](key.startsWith("summary") ? new Columns(value) : value)
  }

  need("run").catch(() => null) // every page starts with it; `page` says what went wrong
  return { need, put, script }
})()

/* ---- elements ---- */

/* h("a.button", {href}, child, ...): an element; null children are left out, text is never parsed as HTML. */
function h(what, attributes, ...children) {
  const [tag, ...classes] = what.split(".")
  const element = document.createElement(tag || "div")
  if (classes.length) element.className = classes.join(" ")
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value)
    else if (name === "style") element.style.cssText = value
    else element.setAttribute(name, value === true ? "" : value)
  }
  element.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false))
  return element
}

/* ---- numbers ---- */

const format = {
  count: n => n.toLocaleString("en"),
  number: (x, digits = 2) => (x === null || x === undefined ? "–" : (Math.abs(x) < 0.5 * 10 ** -digits ? 0 : x).toFixed(Math.abs(x) < 10 ** (4 - digits) ? digits : Math.max(0, 3 - Math.floor(Math.log10(Math.abs(x))))).replace("-", "−")), // no more than the four digits that a page keeps
  share: x => {
    if (x === null || x === undefined) return "–"
    const percent = 100 * x
    if (percent > 99.5 && percent < 100) return percent > 99.94 ? ">99.9 %" : `${percent.toFixed(1)} %` // not all
    return `${percent === 0 || percent >= 9.95 ? percent.toFixed(0) : percent < 0.1 ? "<0.1" : percent.toFixed(1)} %`
  },
  p: p => (p < 0.001 ? "p\u00a0<\u00a00.001" : `p\u00a0=\u00a0${p.toFixed(3)}`),
  seconds: s => (s < 60 ? `${s.toFixed(1)} s` : `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`),
  list: words => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`),
  plural: (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`,
}

const shares = new Set(["null_percentile", "firing_rate"])
const shown = (key, x) => (shares.has(key) ? format.share(x) : format.number(x, key === "margin" ? 3 : 2)) // margins are small: 0.00 would look like none

/* ---- terms: each metric is explained on hover and focus ---- */

const terms = {}

function term(key, text) {
  const entry = terms[key]
  if (!entry || !entry.text) return h("span", null, text ?? entry?.title ?? key)
  return h("span.term", { tabindex: 0, "data-term": key }, text ?? entry.title)
}

function explainTerms() {
  const tip = h("div.tip", { role: "tooltip", id: "tip", hidden: true })
  document.body.append(tip)
  let owner = null
  let used = null // what was just pressed: its result must not be covered until it is left
  const hide = () => { tip.hidden = true; owner?.removeAttribute("aria-describedby"); owner = null }
  const show = event => {
    const target = event.target.closest?.("[data-term]")
    if (used !== null && target?.dataset.term !== used) used = null
    if (!target || used !== null) return hide()
    if (target === owner) return
    hide()
    owner = target
    const { title, text, source } = terms[target.dataset.term]
    tip.replaceChildren(h("strong", null, title), h("p", null, text), source ? h("p.source", null, source) : "")
    tip.hidden = false
    target.setAttribute("aria-describedby", "tip")
    const box = target.getBoundingClientRect()
    const left = Math.min(Math.max(8, box.left), innerWidth - tip.offsetWidth - 8)
    const above = box.top - tip.offsetHeight > 8
    const below = box.bottom + tip.offsetHeight + 14 < innerHeight && !(above && target.closest("thead")) // rows are what a head is about
    tip.style.left = `${left + scrollX}px`
    tip.style.top = `${(below ? box.bottom + 8 : box.top - tip.offsetHeight - 8) + scrollY}px`
  }
  document.addEventListener("mouseover", show)
  document.addEventListener("focusin", show)
  document.addEventListener("keydown", event => event.key === "Escape" && hide())
  document.addEventListener("click", event => { used = event.target.closest?.("button[data-term]")?.dataset.term ?? null; if (used !== null) hide() }, true)
}

/* ---- bases ---- */

const kinds = ["neuron", "sae", "pca", "random_rotation"]

/* The CSS colour of a basis: one hue per kind; SAEs in related hues, one a seed, or one a recipe where there are several. */
function hue(run, name) {
  const basis = run.bases.find(b => b.name === name)
  if (!basis) return "var(--soft)"
  const kind = kinds.includes(basis.kind) && !strange(basis) ? basis.kind : "other"
  if (kind !== "sae") return `var(--${kind})`
  const alike = run.bases.filter(b => b.kind === "sae" && b.layer === basis.layer && !strange(b))
  const recipe = b => b.short.replace(/ ?seed \d+/, "")
  const recipes = [...new Set(alike.map(recipe))]
  const place = recipes.length > 1 ? recipes.indexOf(recipe(basis)) : alike.indexOf(basis)
  return `var(--sae${1 + (place % 3)})`
}

/* An SAE that is a control (on a random host) is not one of the run's SAEs. */
const strange = basis => basis.kind === "sae" && basis.control
const colour = css => (css.startsWith("var(") ? getComputedStyle(document.documentElement).getPropertyValue(css.slice(4, -1)).trim() : css)
const number = (run, name) => run.bases.findIndex(b => b.name === name)
const alone = { planted: "planted unit", neuron_groups: "group", sae_groups: "group", untrained: "untrained feature", frozen_decoder: "feature", soft_frozen: "feature",  neuron: "neuron", sae: "SAE feature", pca: "component", random_rotation: "random direction" }

/* A basis in words: "Neurons", "SAE features, seed 1"; with its layer where the run has several (saelab.report.called). */
const inWords = (run, name) => unbroken(run.bases.find(b => b.name === name)?.words ?? name)
const unbroken = words => words.replace(/(?<=seed) (?=\d)/g, "\u00a0") // no seed stands apart from its number

/* The same where the page says of which layer it speaks. */
const inFewWords = (run, name) => unbroken(run.bases.find(b => b.name === name)?.few_words ?? name)

/* A unit where space is short: "SAE features, seed 1 · 27", which breaks before the seed, so that no unit stands alone. */
const inBrief = (run, name, unit) => `${inFewWords(run, name).replace(/ (\d+)$/, "\u00a0$1")}\u00a0·\u00a0${unit}`

/* A basis of a comparison (which knows only its own layer) under its name in the run. */
const inRun = (run, c, short) => run.bases.find(b => b.short === short && b.layer === c.setup.layer)?.name ?? short

const unitLink = (basis, unit) => `unit.html#${encodeURIComponent(basis)}/${unit}`
const thumb = id => `thumbs/${Math.floor(id / 1000)}/${id}.webp`

/* ---- the page ---- */

function theme() {
  const root = document.documentElement
  const dark = () => root.dataset.theme === "dark" || (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches)
  document.querySelector(".theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark"
    try { localStorage.setItem("saelab-theme", root.dataset.theme) } catch { /* pages from disk may have no storage */ }
    document.dispatchEvent(new Event("themechange"))
  })
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("themechange")))
}

/* What is larger than its box can be scrolled by keyboard: it can be focused, and has a name of its own. */
function reachable(main) {
  const mend = () => {
    const named = new Map()
    const headings = [...main.querySelectorAll("h2, h3, summary")]
    for (const box of main.querySelectorAll(".scroll, pre")) {
      const wide = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1
      const heading = headings.findLast(x => x.compareDocumentPosition(box) & Node.DOCUMENT_POSITION_FOLLOWING)?.textContent ?? "Table"
      const before = named.get(heading) ?? 0
      if (wide) named.set(heading, before + 1)
      const name = before ? `${heading} (${before + 1})` : heading
      for (const [key, value] of Object.entries({ tabindex: "0", role: "region", "aria-label": name })) wide ? box.setAttribute(key, value) : box.removeAttribute(key)
    }
  }
  let waiting = 0
  const soon = () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(mend) }
  new MutationObserver(soon).observe(main, { childList: true, subtree: true })
  main.addEventListener("toggle", soon, true)
  addEventListener("resize", soon)
  soon()
}

/* Load the run and hand it to the page's own function; errors appear on the page. */
async function page(draw) {
  theme()
  explainTerms()
  const main = document.getElementById("main")
  try {
    const run = await saelab.need("run")
    for (const entry of Object.values(run.terms)) for (const part of ["title", "text"]) entry[part] = entry[part]?.replaceAll("'", "’") // as in the pages' own words
    Object.assign(terms, run.terms)
    document.getElementById("foot").append(...foot(run))
    await draw(run, main)
  } catch (error) {
    main.replaceChildren(h("p.fault", { role: "alert" }, `This page could not be drawn: ${error.message}`))
    console.error(error)
  }
  reachable(main)
  main.removeAttribute("aria-busy")
}

function foot(run) {
  const made = run.created ? ` on ${run.created.slice(0, 10)}` : ""
  return [
    h("p", null, "“–” stands for a number that does not exist here: too few images, nothing that people wrote, or not measured."),
    h("p", null, `Made by saelab ${run.version ?? ""}${made}. `, run.images.credit ? `Pictures: ${run.images.credit.replace(/[^.]$/, "$&.")}` : ""),
  ]
}
