/**
 * One websocket per page.
 *
 * The page subscribes, waits for `connection.ready`, fetches, then applies events; after a lost
 * connection it fetches again. What is older than what the page has is dropped here. Where sockets
 * are blocked the same fetches run on a timer. Nothing lives only in an event.
 */

const POLL_MS = 5000;
const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 30000;
const TRIES_BEFORE_POLLING = 3;

const listeners = new Set();
const refetchers = new Set();
const versions = new Map();
const states = new Set();
let socket = null;
let ready = false;
let tries = 0;
let polling = null;
let stopped = false;

/** Hear events whose type is in `types`; returns the way to stop. */
export function on(types, listener) {
  const entry = { types: new Set(types), listener };
  listeners.add(entry);
  return () => listeners.delete(entry);
}

/** Run `refetch` whenever the page may have missed something; returns the way to stop. */
export function watch(refetch) {
  refetchers.add(refetch);
  if (ready || polling) refetch();
  return () => refetchers.delete(refetch);
}

/** Hear whether the page is live: "live", "polling", "connecting" or "signed-out". */
export function onState(listener) {
  states.add(listener);
}

/** Note a version that the page fetched; false when the page already has a newer one. */
export function isFresh(noun, id, version) {
  const key = `${noun}:${id}`;
  if (version < (versions.get(key) ?? 0)) return false;
  versions.set(key, version);
  return true;
}

function tell(state) {
  for (const listener of states) listener(state);
}

function refetchAll() {
  for (const refetch of refetchers) refetch();
}

function receive(message) {
  const event = JSON.parse(message.data);
  if (event.type === "connection.ready") {
    ready = true;
    tries = 0;
    clearInterval(polling);
    polling = null;
    tell("live");
    refetchAll();
    return;
  }
  const [noun, what] = event.type.split(".");
  if (what === "changed" && event.version !== undefined && !event.gone) {
    if (event.version <= (versions.get(`${noun}:${event.id}`) ?? 0)) return;
    versions.set(`${noun}:${event.id}`, event.version);
  }
  for (const { types, listener } of listeners) {
    if (types.has(event.type)) listener(event);
  }
}

function startPolling() {
  if (polling) return;
  tell("polling");
  refetchAll();
  polling = setInterval(() => {
    if (!document.hidden) refetchAll();
  }, POLL_MS);
}

function closed(event) {
  ready = false;
  socket = null;
  if (stopped) return;
  if (event.code === 4401) {
    tell("signed-out");
    return;
  }
  tries += 1;
  if (event.code === 4403 || tries >= TRIES_BEFORE_POLLING) startPolling();
  else tell("connecting");
  const pause = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.min(tries, 7));
  setTimeout(connect, pause * (0.5 + Math.random()));
}

function connect() {
  if (socket || stopped) return;
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  try {
    socket = new WebSocket(`${scheme}://${location.host}/ws/events/`);
  } catch {
    startPolling();
    return;
  }
  socket.addEventListener("message", receive);
  socket.addEventListener("close", closed);
}

/** Open the page's one connection. */
export function start() {
  connect();
  addEventListener("pagehide", () => {
    stopped = true;
    socket?.close();
  });
  // A page that comes back from the browser's cache must catch up.
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    stopped = false;
    connect();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && !ready) connect();
  });
}
