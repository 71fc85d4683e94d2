/** Requests to the server: JSON to it, JSON or a stream of events back. */

import { askForKey, keyHeaders } from "./key.js";
import { t } from "./words.js";

const ALONE = { credentials: "omit", redirect: "error", cache: "no-store" };

/** The server's error message, or a message that it did not answer. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** Whether the reader cancelled the request. */
export function isAbort(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

/** The models of the server and its limits, as /v1/models lists them. */
export function listModels() {
  return answered("v1/models", {});
}

/** The reports of evaluations, the newest first, and notes on the damaged ones. */
export function listEvaluations() {
  return answered("evaluations", {});
}

/** A model's status: `value` is loading, loaded…; empty when the request fails. */
export async function modelStatus(id) {
  try {
    const response = await fetch(addressOf(`v1/models/${encodeURIComponent(id)}`), { headers: keyHeaders(), ...ALONE });
    return (await response.json()).status ?? {};
  } catch {
    return {}; // it is only shown while the reader waits
  }
}

/** The JSON that answers a POST of `body`. */
export function post(route, body, signal) {
  return answered(route, { ...posting(body), signal });
}

async function answered(route, options) {
  const response = await requested(route, options);
  try {
    return await response.json();
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ServerError(t("The server sent an incomplete answer. Try again."));
  }
}

function posting(body) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

/** A successful response; asks for the key until it is right or the reader cancels. */
async function requested(route, options) {
  for (;;) {
    const headers = { ...options.headers, ...keyHeaders() };
    const response = await fetched(addressOf(route), { ...options, headers });
    if (response.ok) return response;
    const error = await refusal(response);
    if (error.status !== 401 || !(await askForKey(error.message))) throw error;
    options.signal?.throwIfAborted();
  }
}

/** The address of an API route; a proxy may serve page and API under a prefix. */
export function addressOf(route) {
  return new URL(route, document.baseURI);
}

async function fetched(url, options) {
  try {
    return await fetch(url, { ...options, ...ALONE });
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ServerError(t("The server does not answer. Is it still running?"));
  }
}

/** The error of a response, in any of the formats. */
async function refusal(response) {
  const text = await response.text().catch(() => "");
  return new ServerError(messageIn(text) || t("The server answered {status}", { status: `${response.status} ${response.statusText}`.trim() }), response.status);
}

function messageIn(text) {
  try {
    const { error, message } = JSON.parse(text);
    return error?.message ?? (typeof error === "string" ? error : message);
  } catch {
    return text.length < 300 ? text.trim() : "";
  }
}

/**
 * The JSON events of a streamed answer, as they arrive; leaving the loop cancels the answer.
 * @returns {AsyncGenerator<Object>}
 */
export async function* streamed(route, body, signal) {
  const response = await requested(route, { ...posting(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let isDone = false;
  try {
    while (!isDone) {
      const { done, value } = await read(reader);
      if (done) throw new ServerError(t("The connection closed before the answer ended."));
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        const data = /^data: ?(.*)$/s.exec(line)?.[1];
        if (data === undefined) continue; // an empty line, or a comment that keeps the connection open
        if (data === "[DONE]") { isDone = true; break; }
        yield eventOf(data);
      }
    }
  } finally {
    (isDone ? drained(reader) : reader.cancel()).catch(() => {}); // cancelled already
  }
}

/** Read the rest after the last event: a response that is left early counts as cancelled. */
async function drained(reader) {
  while (!(await reader.read()).done);
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ServerError(t("The connection broke before the answer ended."));
  }
}

/** One event; throws ServerError for an event that reports a failure. */
function eventOf(data) {
  let event;
  try {
    event = JSON.parse(data);
  } catch {
    throw new ServerError(t("The server sent something that is not JSON."));
  }
  if (event.error) throw new ServerError(messageIn(data) || t("The answer failed."));
  return event;
}
