/* A basis column by column, as `write.summary` packs it. A column is unpacked when it is first read, and a unit is a view
   into the columns: 100,000 units are a few arrays, not 100,000 objects with a field for every number. */
"use strict"

const noDigits = -32768 // stands for no number

function bytesOf(text) {
  const raw = atob(text)
  const bytes = new Uint8Array(raw.length)
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i)
  return bytes.buffer
}

const powers = Array.from({ length: 309 }, (_, i) => Number(`1e${i}`))

/* Float64Array of the numbers that `write.decimals` packed; NaN: none. Digits and powers of ten up to 22 are exact, so a
   number is the one that its decimal text says. */
function decimalsOf(text, count) {
  const data = bytesOf(text)
  const [digits, exponents] = [new Int16Array(data, 0, count), new Int8Array(data, 2 * count, count)]
  return Float64Array.from(digits, (d, i) => (d === noDigits ? NaN : exponents[i] < 0 ? d / powers[-exponents[i]] : d * powers[exponents[i]]))
}

/* A property that is made when it is first read. */
function lazy(object, key, make) {
  Object.defineProperty(object, key, { configurable: true, enumerable: true, get() {
    const value = make()
    Object.defineProperty(object, key, { value, enumerable: true })
    return value
  } })
}

class Columns {
  constructor(packed) {
    Object.assign(this, { count: packed.units, labels: packed.labels, badges: packed.badges, statuses: packed.statuses, measured: {} })
    for (const key in packed.columns) lazy(this, key, () => new Int32Array(bytesOf(packed.columns[key])))
    for (const key in packed.measured) lazy(this.measured, key, () => decimalsOf(packed.measured[key], this.count))
    lazy(this, "strongest", () => new Int32Array(bytesOf(packed.thumbs)))
  }

  thumbs(unit) {
    const wide = this.strongest.length / this.count
    return [...this.strongest.subarray(unit * wide, (unit + 1) * wide)].filter(id => id >= 0)
  }

  /* null where the unit has no such number, undefined where the basis has none. */
  number(key, unit) {
    const x = this.measured[key]?.[unit]
    return Number.isNaN(x) ? null : x
  }
}

/* A unit of a basis: what a table's row, a dot or a card shows. Its numbers (score, firing_rate, ...) are properties, too. */
class Row {
  constructor(basis, columns, unit) {
    this.basis = basis
    this.columns = columns
    this.unit = unit
  }
  get label() { return this.columns.labels[this.columns.label[this.unit]] ?? null }
  get badge() { return this.columns.badges[this.columns.badge[this.unit]] ?? null }
  get status() { return this.columns.statuses[this.columns.status[this.unit]] }
  get abstained() { return (this.columns.flags[this.unit] & 1) > 0 }
  get several() { return (this.columns.flags[this.unit] & 2) > 0 }
  get thumbs() { return this.columns.thumbs(this.unit) }
  get said() { return people.of(this.basis, this.unit) }
}

/* Every unit of a basis, in order. */
function rowsOf(basis, columns) {
  for (const key in columns.measured) {
    if (!(key in Row.prototype)) Object.defineProperty(Row.prototype, key, { get() { return this.columns.number(key, this.unit) } })
  }
  return Array.from({ length: columns.count }, (_, unit) => new Row(basis, columns, unit))
}
