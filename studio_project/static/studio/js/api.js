/** One way to speak with the REST API: CSRF, JSON, and problem+json turned into an Error. */

export class Problem extends Error {
  /** @param {Object} body the problem object */
  constructor(body, status) {
    super(body.detail || body.title || gettext("Something went wrong. Try again."));
    this.status = status;
    this.code = body.code || "";
    this.hint = body.hint || "";
    this.errors = body.errors || {};
    this.body = body;
  }

  /** The sentence for people, with the way out when there is one. */
  get sentence() {
    return this.hint ? `${this.message} ${this.hint}` : this.message;
  }
}

/** A problem that the page sees by itself, before it asks. */
export function required(field, message) {
  return new Problem({ code: "required", detail: message, errors: { [field]: [{ message }] } }, 0);
}

/** Where to sign in again, and come back to this page. */
export function signInAddress() {
  return `${document.documentElement.dataset.login}?next=${encodeURIComponent(location.pathname + location.search)}`;
}

export function csrfToken() {
  return document.querySelector('meta[name="csrf-token"]')?.content ?? "";
}

/**
 * Ask the API.
 * @param {string} path
 * @param {{method?: string, json?: Object, body?: FormData, signal?: AbortSignal, keepalive?: boolean}} options
 * @returns {Promise<any>} the answer, or null for an empty one
 * @throws {Problem}
 */
export async function api(path, { method = "GET", json, body, signal, keepalive } = {}) {
  const headers = { Accept: "application/json" };
  if (method !== "GET") headers["X-CSRFToken"] = csrfToken();
  if (json !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: json === undefined ? body : JSON.stringify(json),
      signal,
      keepalive,
      credentials: "same-origin",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ code: "unreachable", detail: gettext("The site cannot be reached. Check the connection and try again.") }, 0);
  }
  return answer(response.status, response.status === 204 ? "" : await response.text());
}

/** Turn a status and a body into the value or a Problem. */
export function answer(status, text) {
  let value = null;
  try {
    value = text ? JSON.parse(text) : null;
  } catch {
    value = null;
  }
  if (status >= 200 && status < 300) return value;
  if (status === 401) throw new Problem({ code: "signed_out", detail: gettext("You are signed out. Sign in and try again.") }, status);
  throw new Problem(value ?? { detail: gettext("The site answered with an error. Try again in a moment.") }, status);
}
