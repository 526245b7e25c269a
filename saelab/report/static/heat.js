/* Heat maps over pictures: where on the image the unit fires, on one colour scale for all pictures of a unit. */
"use strict"

const modes = { raw: "pictures", heat: "heat map", crop: "crop to the peak" }

/* Levels 0..255 of the i-th picture, row by row; null where the unit has no maps. */
function levels(record, i) {
  if (!record.maps) return null
  const [height, width] = record.maps.grid
  record.maps.bytes ??= Uint8Array.from(atob(record.maps.cells), c => c.charCodeAt(0))
  return { height, width, cells: record.maps.bytes.subarray(i * height * width, (i + 1) * height * width), box: record.maps.boxes[i] }
}

/* A canvas over a square picture that colours what the host saw of it. */
function overlay(map) {
  const canvas = h("canvas", { width: map.width, height: map.height, "aria-hidden": "true", style: `left:${50 - 50 * map.box[0]}%;top:${50 - 50 * map.box[1]}%;width:${100 * map.box[0]}%;height:${100 * map.box[1]}%` })
  const context = canvas.getContext("2d")
  const pixels = context.createImageData(map.width, map.height)
  map.cells.forEach((level, j) => {
    const c = d3.rgb(d3.interpolateInferno(0.12 + (0.83 * level) / 255))
    pixels.data.set([c.r, c.g, c.b, 205 * (level / 255) ** 0.8], 4 * j) // silent cells leave the picture as it is
  })
  context.putImageData(pixels, 0, 0)
  return canvas
}

/* The CSS that zooms a square picture to the cells that fire at half the peak or more. */
function zoomed(map) {
  const peak = Math.max(...map.cells)
  const hot = [...map.cells.keys()].filter(j => map.cells[j] >= peak / 2 && map.cells[j] > 0)
  if (!hot.length) return null
  const span = (numbers, cells, share) => {
    const [low, high] = [Math.min(...numbers), Math.max(...numbers) + 1]
    const at = x => 0.5 + share * (x / cells - 0.5) // from cells to shares of the square
    return [(at(low) + at(high)) / 2, at(high) - at(low)]
  }
  const [x, w] = span(hot.map(j => j % map.width), map.width, map.box[0])
  const [y, t] = span(hot.map(j => Math.floor(j / map.width)), map.height, map.box[1])
  const zoom = Math.max(1, Math.min(3, 1 / Math.max(w, t)))
  const edge = 1 / (2 * zoom) // keep the window inside the picture
  const [cx, cy] = [x, y].map(c => Math.min(1 - edge, Math.max(edge, c)))
  return `transform:scale(${zoom}) translate(${100 * (0.5 - cx)}%,${100 * (0.5 - cy)}%)`
}

/* A picture of a unit in the chosen mode. */
function heated(record, i, words, mode) {
  const map = mode === "raw" ? null : levels(record, i)
  const frame = h("div.frame", null, picture(record.positives[i], words, { style: map && mode === "crop" ? zoomed(map) : null }))
  if (map && mode === "heat") frame.append(overlay(map))
  return frame
}

/* The colour scale, low to high. */
function heatScale() {
  const stops = d3.range(0, 1.01, 0.1).map(t => d3.interpolateInferno(0.12 + 0.83 * t))
  return h("span.scale", null, "silent", h("i", { style: `background:linear-gradient(to right,${stops})`, "aria-hidden": "true" }), "its highest")
}
