// Server-sent events out of a fetch: a parser that does not care where the network cuts.

// Feed it text, get the data of each event that became whole.
export class EventParser {
  #rest = "";
  #data = [];
  #afterReturn = false;

  feed(text) {
    const found = [];
    // The line feed of a CR LF that was cut in two must not end a second line.
    const begin = this.#afterReturn && text.startsWith("\n") ? 1 : 0;
    if (text) this.#afterReturn = text.endsWith("\r");
    const lines = (this.#rest + text.slice(begin)).split(/\r\n|\n|\r/);
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) found.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
    return found;
  }
}

// Each event's data, from a response's body.
export async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();  // keeps the bytes of half a character until the rest comes
  const parser = new EventParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      yield* parser.feed(decoder.decode(value, { stream: !done }));
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
