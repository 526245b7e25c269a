/* Who is like a unit: of the same label, fired by the same images, near in meaning or in direction. */
"use strict"

const nearAtOnce = 6

function neighbourhood(run, basis, record) {
  const near = record.near
  const strongest = [...near.links ?? []].sort((a, b) => b[2] - a[2]) // the record has them basis by basis
  const groups = [
    [near.sharing ? `Same label (${format.plural(near.sharing, "other")})` : "Same label", near.same, null, "with the same label"],
    [term("cofire", "Fires together, same basis"), near.cofire, "r", "that fire on the same images"],
    [term("cofire", "Fires together, other bases"), strongest, "r", "that fire on the same images"],
    [term("meaning", "Nearest in meaning"), near.meaning, "cosine", "whose strongest images mean the same"],
    [term("decoder", "Nearest direction"), near.decoder, "cosine", "whose direction is near"],
  ].filter(([, list]) => list?.length)
  if (!groups.length) return null
  return section("Neighbours", `Units ${format.list([...new Set(groups.map(([, , , says]) => says))]).replace(/ and (?!.* and )/, ", or ")}.`,
    h("div.neighbours", null, groups.map(([title, list, word]) => h("div", null, h("h3", null, title), nearList(run, list.slice(0, nearAtOnce), word), nearRest(run, list.slice(nearAtOnce), word)))))
}

/* The list fills itself as it comes near: it reads the index of every basis that it names, of many units the most of
   what a page reads. */
function nearList(run, list, word) {
  const place = h("ul.near")
  const near = new IntersectionObserver(entries => {
    if (!entries.some(entry => entry.isIntersecting)) return
    near.disconnect()
    Promise.all(list.map(entry => neighbour(run, entry, word))).then(items => place.replaceChildren(...items))
  }, { rootMargin: "900px" })
  near.observe(place)
  return place
}

/* Further ones, read when they are asked for. */
function nearRest(run, list, word) {
  if (!list.length) return null
  const fold = h("details", { ontoggle: () => { if (fold.children.length === 1) fold.append(nearList(run, list, word)) } }, h("summary", null, `${format.count(list.length)} more`))
  return fold
}

async function neighbour(run, [name, u, value], word) {
  const row = (await load(run, name))[u]
  return h("li", null, strip(row.thumbs.slice(0, 3)),
    h("div", null, h("a", { href: unitLink(name, u) }, h("span.serif", null, row.label ?? "no label")), " ", marks(row), h("small", null, dot(run, name), `${inWords(run, name)}\u00a0·\u00a0${u}`)),
    h("span.tabular.quiet", null, word ? `${word} ${format.number(value)}` : ""))
}
