/* The units that a group consists of. */
"use strict"

function members(record) {
  const found = record.members
  if (!found) return null
  const one = ([unit, label]) => {
    const words = [`${unit}`, label ? ` · ${label}` : " · no label"]
    return h("li", null, found.basis ? h("a", { href: unitLink(found.basis, unit) }, words) : words)
  }
  return section("The units of this group", `It fires where all of them do. They are high together on ${format.plural(found.support, "photo")} for mining, near-duplicates counted once, which is more than chance gives any two of them.`,
    h("ul.members", null, found.units.map(one)))
}
