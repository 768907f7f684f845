/** The shape of a picture: sides in a ratio, with as many pixels as the model was made for. */

const MULTIPLE = 8;

/**
 * @param {number} ratio width divided by height
 * @param {number} area pixels
 * @param {number} least shortest side that is allowed; the other side grows with it
 * @returns {[number, number]} width and height
 */
export function sidesOf(ratio, area, least) {
  const width = Math.sqrt(area * ratio);
  const height = width / ratio;
  const grown = Math.max(1, least / Math.min(width, height));
  return [width, height].map((side) => Math.max(least, Math.round((side * grown) / MULTIPLE) * MULTIPLE));
}

/** A select of ratios beside the fields of width and height; it shows what they come to. */
export class Shape {
  /** @param {{select: HTMLSelectElement, fields: Object, defaults: function(): {width: number, height: number}, onChosen: function(number, number)}} parts */
  constructor({ select, fields, defaults, onChosen }) {
    Object.assign(this, { select, fields, defaults });
    // Before the form hears of it, which shows what the sides come to.
    select.addEventListener("input", () => select.value && onChosen(...this.sides(select.value)));
  }

  sides(ratio) {
    const { width, height } = this.defaults();
    return sidesOf(Number(ratio), width * height, Number(this.fields.width.min));
  }

  show() {
    const now = `${this.fields.width.value},${this.fields.height.value}`;
    const same = [...this.select.options].find((option) => option.value && String(this.sides(option.value)) === now);
    this.select.value = same?.value ?? "";
  }
}
