/* Pictures of the label that are not the run's own, and what the unit does on them: CoSy's question. */
"use strict"

const painters = { diffusers: "Generated", openai: "Generated", folder: "From a folder" }

function labelPictures(record) {
  const found = record.label_pictures
  if (!found) return null
  const from = `${painters[found.source] ?? "Made"}${found.by ? ` by ${found.by}` : ""}, not chosen by what the unit does.`
  const black = found.black ? ` ${format.plural(found.black, "black picture")} of a safety checker ${found.black === 1 ? "is" : "are"} left out.` : ""
  const says = found.auc_half === null
    ? found.images ? "There are too few other photos to hold them against." : "All of its pictures are black, so there is nothing to measure."
    : `A picture of the label fires it more than another photo does in ${format.share(found.auc_half)} of pairs (chance 50 %; ${format.plural(found.images, "picture")} against ${format.plural(found.controls, "photo")}, ${found.mann_whitney_p < .001 ? "p < .001" : `p = ${format.number(found.mann_whitney_p, 3)}`}, not corrected for many units).`
  return section("Pictures of its label", `${from} ${says}${black}`,
    found.shown.length ? h("div.photos", null, found.shown.map(([place, value]) => h("figure", null,
      h("img.photo", { src: place, alt: `picture of ${record.label}, fires ${format.number(value)}`, loading: "lazy", decoding: "async" }),
      h("figcaption", null, h("span.tabular", null, `fires ${format.number(value)}`))))) : null)
}
