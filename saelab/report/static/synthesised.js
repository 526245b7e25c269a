/* Pictures that were made to raise a unit: below its photos, never instead of them, with what each is worth. */
"use strict"

const methods = {
  pixel: "pixels, free",
  fourier: "photos’ frequencies",
  maco: "photos’ magnitudes",
  accentuate: "the strongest photo, changed",
}

function synthesised(record) {
  const made = record.synthesised
  if (!made.length || !record.positives.length) return null // without photos beside them nobody can judge them
  const [reached, rest] = [made.filter(m => m.reached), made.filter(m => !m.reached)]
  return section("Pictures made to raise it", "No photos: each was changed step by step until it fired the unit more. People tell what a unit looks for better from photos (Borowski et al. 2021), and such pictures can excite a unit in ways that no photo does (Geirhos et al. 2024), so read the notes beside each. Right: faded where the unit never depended on it.",
    reached.length ? h("div.made", null, reached.map(drawMade)) : h("p.quiet", null, "None of them reaches what half of the unit’s photos do."),
    rest.length ? h("details", null, h("summary", null, `${format.plural(rest.length, "picture")} that did not get there`), h("div.made", null, rest.map(drawMade))) : null)
}

function drawMade(m) {
  const image = (place, what) => h("img.photo", { src: `${place}.webp`, alt: `${what}, made by ${methods[m.method] ?? m.method}`, loading: "lazy", decoding: "async" })
  return h("figure", null,
    h("div.both", null, image(m.place, "picture"), image(`${m.place}-faded`, "the same picture, faded where it does not count")),
    h("figcaption", null, h("span.tag", null, methods[m.method] ?? m.method), h("ul", null, m.said.map(text => h("li", null, text)))))
}
