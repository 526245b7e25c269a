/* Pictures of the label that are not the run's own, and what the unit does on them: CoSy's question. */
"use strict"

const painters = { diffusers: "Generated", openai: "Generated", folder: "From a folder", prompts: "Made from descriptions by a text model" }

function labelPictures(record) {
  const found = record.label_pictures
  if (!found) return null
  const described = found.source === "prompts"
  const [own, other] = described ? ["A picture described for the label", "picture described to show no such thing"] : ["A picture of the label", "photo"]
  const from = `${painters[found.source] ?? "Made"}${found.by ? `${described ? ", painted" : ""} by ${found.by}` : ""}, not chosen by what the unit does.`
  const black = found.black ? ` ${format.plural(found.black, "black picture")} of a safety checker ${found.black === 1 ? "is" : "are"} left out.` : ""
  const says = found.auc_half === null
    ? found.images ? `There are too few other ${described ? "pictures" : "photos"} to hold them against.` : "All of its pictures are black, so there is nothing to measure."
    : `${own} fires it more than ${described ? "a" : "another"} ${other} does in ${format.share(found.auc_half)} of pairs (chance 50 %; ${format.plural(found.images, "picture")} against ${format.plural(found.controls, described ? "picture" : "photo")}, ${found.mann_whitney_p < .001 ? "p < .001" : `p = ${format.number(found.mann_whitney_p, 3)}`}, not corrected for many units).`
  return section("Pictures of its label", `${from} ${says}${black}`,
    found.shown.length ? h("div.photos", null, found.shown.map(([place, value]) => h("figure", null,
      h("img.photo", { src: place, alt: `picture of ${record.label}, fires ${format.number(value)}`, loading: "lazy", decoding: "async" }),
      h("figcaption", null, h("span.tabular", null, `fires ${format.number(value)}`))))) : null)
}
