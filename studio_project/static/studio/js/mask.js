/** A canvas on which one paints what shall be painted anew: strokes, a brush, undo. */

export class Mask {
  /** @param {{canvas: HTMLCanvasElement, brush: HTMLInputElement, undo: Element, clear: Element}} parts */
  constructor({ canvas, brush, undo, clear }) {
    this.canvas = canvas;
    this.brush = brush;
    this.strokes = [];
    this.sent = null;
    this.base = null;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const type of ["pointerup", "pointercancel"]) canvas.addEventListener(type, () => (this.stroke = null));
    undo.addEventListener("click", () => this.undo());
    clear.addEventListener("click", () => this.begin(canvas.width, canvas.height));
  }

  get isEmpty() {
    return !this.strokes.length && !this.base;
  }

  /** Start anew on a picture of this size, in pixels. */
  begin(width, height) {
    Object.assign(this.canvas, { width, height });
    this.strokes = [];
    this.base = null;
    this.changed();
  }

  /** Take over a mask that was sent before; more can be painted onto it. */
  async load(url, id) {
    const picture = new Image();
    picture.src = url;
    await picture.decode();
    this.base = picture;
    this.changed();
    this.sent = id;
  }

  undo() {
    if (this.strokes.length) this.strokes.pop();
    else this.base = null;
    this.changed();
  }

  changed() {
    this.sent = null;
    this.paint(this.canvas.getContext("2d"));
  }

  paint(context) {
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (this.base) this.paintBase(context);
    for (const stroke of this.strokes) this.paintStroke(context, stroke);
  }

  /** A mask that was sent is white on black; only its white is shown. */
  paintBase(context) {
    context.drawImage(this.base, 0, 0);
    const pixels = context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    for (let at = 0; at < pixels.data.length; at += 4) pixels.data[at + 3] = pixels.data[at];
    context.putImageData(pixels, 0, 0);
  }

  paintStroke(context, { points, size }) {
    context.strokeStyle = "#fff";
    context.lineWidth = size;
    context.lineCap = "round";
    context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...points[0]);
    // A single dab is a line of no length, which the round cap makes a dot.
    for (const point of points.length > 1 ? points.slice(1) : points) context.lineTo(...point);
    context.stroke();
  }

  /** Where a pointer is, in pixels of the picture. */
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * this.canvas.width, ((event.clientY - box.top) / box.height) * this.canvas.height];
  }

  down(event) {
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    const size = (Number(this.brush.value) / 100) * Math.min(this.canvas.width, this.canvas.height);
    this.stroke = { points: [this.at(event)], size };
    this.strokes.push(this.stroke);
    this.changed();
    this.canvas.dispatchEvent(new Event("input", { bubbles: true }));
  }

  move(event) {
    if (!this.stroke) return;
    this.stroke.points.push(this.at(event));
    this.changed();
  }

  /** The mask as a file: white where it is painted anew, black elsewhere. */
  async file() {
    const whole = document.createElement("canvas");
    Object.assign(whole, { width: this.canvas.width, height: this.canvas.height });
    const context = whole.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, whole.width, whole.height);
    context.drawImage(this.canvas, 0, 0);
    const blob = await new Promise((resolve) => whole.toBlob(resolve, "image/png"));
    return new File([blob], "mask.png", { type: "image/png" });
  }
}
