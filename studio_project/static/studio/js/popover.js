/** Where a list that floats over the page stands. */

const EDGE = 8;
const GAP = 4;
const LEAST_ROOM = 220;
const MOST_HEIGHT = 440;

/** Put a list below a box, or above it where there is more room. */
export function placeBeside(box, list) {
  const place = box.getBoundingClientRect();
  const below = innerHeight - place.bottom - EDGE;
  const above = place.top - EDGE;
  const up = below < LEAST_ROOM && above > below;
  Object.assign(list.style, {
    left: `${Math.max(EDGE, Math.min(place.left, innerWidth - place.width - EDGE))}px`,
    width: `${Math.min(place.width, innerWidth - 2 * EDGE)}px`,
    top: up ? "auto" : `${place.bottom + GAP}px`,
    bottom: up ? `${innerHeight - place.top + GAP}px` : "auto",
    maxHeight: `${Math.min(MOST_HEIGHT, up ? above : below)}px`,
  });
}
