// Documents as the server takes them: JSON Lines with a text each.

const MOST = 32 * 2 ** 20; // bytes, as the server allows

/** One file of rows from files of text, Markdown and JSON Lines. Throws an Error that names a file that is no text. */
export async function asRows(files) {
  if (files.reduce((sum, { size }) => sum + size, 0) > MOST) throw new Error("The documents have more than 32 MiB; compare with those that matter.");
  const rows = await Promise.all(files.map(rowsOf));
  return new File(rows, files.length === 1 ? files[0].name : "documents.jsonl");
}

async function rowsOf(file) {
  const data = await file.arrayBuffer();
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(data);
  } catch {
    throw new Error(`${file.name} is no text in UTF-8; give text, Markdown or JSON Lines.`);
  }
  if (text.includes("\0")) throw new Error(`${file.name} is no text; give text, Markdown or JSON Lines.`);
  if (file.name.toLowerCase().endsWith(".jsonl")) return text.endsWith("\n") ? text : `${text}\n`;
  return `${JSON.stringify({ text, name: file.name })}\n`;
}
