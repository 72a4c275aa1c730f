// Who looks at the console: the API key, kept for this tab alone, and never in a cookie or a URL.

const NAME = "loramux.key";

class Session extends EventTarget {
  #key = read();

  get key() {
    return this.#key;
  }

  /** Use this key from now on; "" is none. */
  set key(key) {
    this.#key = key;
    try {
      key ? sessionStorage.setItem(NAME, key) : sessionStorage.removeItem(NAME);
    } catch {
      // Storage is switched off: the key lasts until the page is loaded again.
    }
  }

  /** Tell the shell that the server no longer takes the key. */
  refused(refusal) {
    this.dispatchEvent(new CustomEvent("refused", { detail: refusal }));
  }
}

function read() {
  try {
    return sessionStorage.getItem(NAME) ?? "";
  } catch {
    return "";
  }
}

export const session = new Session();
