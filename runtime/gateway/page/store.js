/**
 * The conversations that this browser keeps, in IndexedDB: nothing of it is sent anywhere. Without
 * IndexedDB the page works on, and forgets.
 */

const NAME = "decant";
const VERSION = 1;
const MOST_THREADS = 500;
const MOST_SIZE = 200_000_000; // characters of all conversations, with their files

let opening = null;

function opened() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("threads", { keyPath: "id" });
      request.result.createObjectStore("messages", { keyPath: ["thread", "id"] });
    };
    request.onsuccess = () => {
      request.result.onversionchange = () => request.result.close(); // another tab has a newer page
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  return opening;
}

/**
 * Run `act` in one transaction on both stores.
 * @param {"readonly"|"readwrite"} mode
 * @param {function(IDBObjectStore, IDBObjectStore): (IDBRequest|void)} act
 * @returns {Promise<unknown>} the result of the request that `act` returns
 */
async function run(mode, act) {
  const transaction = (await opened()).transaction(["threads", "messages"], mode);
  const request = act(transaction.objectStore("threads"), transaction.objectStore("messages"));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

function within(thread) {
  return IDBKeyRange.bound([thread], [thread, []]);
}

/** The records of all conversations, the newest first; none where the browser keeps nothing. */
export async function listThreads() {
  try {
    return (await run("readonly", (threads) => threads.getAll())).sort((one, other) => other.updated - one.updated);
  } catch {
    return [];
  }
}

/** A conversation's record and messages, or null. */
export async function loadThread(id) {
  try {
    const messages = await run("readonly", (_, all) => all.getAll(within(id)));
    const record = await run("readonly", (threads) => threads.get(id));
    return record ? { record, messages } : null;
  } catch {
    return null;
  }
}

/**
 * Keep a conversation's record and the messages that have changed; all of them where the browser
 * does not have the conversation any more. A name that the reader has given stays: another tab may
 * know it, and this one not.
 */
export function save(record, changed = [], all = changed) {
  return run("readwrite", (threads, messages) => {
    const before = threads.get(record.id);
    before.onsuccess = () => {
      try {
        const { isNamed, title } = before.result ?? {};
        threads.put(isNamed ? { ...record, isNamed, title } : record);
        (before.result ? changed : all).forEach((message) => messages.put(message));
      } catch {
        before.transaction.abort(); // half of a conversation would be useless
      }
    };
  });
}

/** Give a conversation the name that the reader wants. */
export function rename(id, title) {
  return run("readwrite", (threads) => {
    const before = threads.get(id);
    before.onsuccess = () => { if (before.result) threads.put({ ...before.result, title, isNamed: true }); };
  });
}

/** Delete a conversation; returns what `restore` brings back. */
export async function remove(id) {
  const found = await loadThread(id);
  await run("readwrite", (threads, all) => {
    threads.delete(id);
    all.delete(within(id));
  });
  return found;
}

/** Keep a deleted conversation again. */
export function restore({ record, messages }) {
  return save(record, messages);
}

export function removeAll() {
  return run("readwrite", (threads, all) => {
    threads.clear();
    all.clear();
  });
}

/** Delete the oldest conversations beyond the limits, but not the one named `kept`. */
export async function trim(kept) {
  let size = 0;
  const beyond = (await listThreads()).filter((thread, place) => {
    size += thread.size;
    return thread.id !== kept && (place >= MOST_THREADS || size > MOST_SIZE);
  });
  for (const { id } of beyond) await remove(id);
}

/** Whether a conversation has room without older ones being deleted for it. */
export async function hasRoom({ size }) {
  const all = await listThreads();
  return all.length < MOST_THREADS && all.reduce((sum, other) => sum + other.size, size) <= MOST_SIZE;
}

/** The ids of the conversations with a message that contains `text`, in any case. */
export async function search(text) {
  const wanted = text.toLowerCase();
  const found = new Set();
  await run("readonly", (_, all) => {
    const request = all.openCursor();
    request.onsuccess = () => {
      const cursor = request.result;
      if (!cursor) return;
      const { thread, content } = cursor.value;
      if (!content.toLowerCase().includes(wanted)) cursor.continue();
      else {
        found.add(thread);
        cursor.continue([thread, []]); // the next conversation
      }
    };
  });
  return found;
}
