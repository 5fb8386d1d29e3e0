// Renders docs/API.md from openapi.json, asyncapi.json and schemas.json.
//
//   node docs/spec/render.mjs            writes it
//   node docs/spec/render.mjs --check    fails if it is not what would be written
import { readFileSync, writeFileSync } from "node:fs";

const WIDTH = 120;
const here = (name) => new URL(name, import.meta.url);
const load = (name) => JSON.parse(readFileSync(here(name), "utf8"));
const openapi = load("openapi.json");
const asyncapi = load("asyncapi.json");
const { $defs: schemas } = load("schemas.json");
const page = here("../API.md");

const lines = [];
const put = (...more) => lines.push(...more, "");

const wrap = (text) =>
  text.split("\n\n").map((paragraph) => {
    const wrapped = [""];
    for (const word of paragraph.split(/\s+/)) {
      const line = wrapped.at(-1);
      if (line && line.length + 1 + word.length > WIDTH) wrapped.push(word);
      else wrapped[wrapped.length - 1] = line ? `${line} ${word}` : word;
    }
    return wrapped.join("\n");
  }).join("\n\n");

// Pages and other definitions that a description names.
const linked = (text) =>
  text
    .replace(/\b([A-Z_]+)\.md\b/g, "[$1]($1.md)")
    .replace(/(?<![`\w[#./])([A-Z][a-z]+[A-Za-z]*)\b(?![`\]])/g, (word) => (schemas[word] && /[a-z][A-Z]/.test(word) ? link(word) : word));
const link = (name) => `[${name}](#${name.toLowerCase()})`;
const prose = (text) => put(wrap(linked(text.trim())));
const cell = (text) => linked(text ?? "").replaceAll("|", "\\|").replaceAll("\n", " ");

const table = (head, rows) => {
  if (rows.length === 0) return;
  put(`| ${head.join(" | ")} |`, `|${" --- |".repeat(head.length)}`, ...rows.map((row) => `| ${row.join(" | ")} |`));
};

const at = (pointer) => pointer.split("/").slice(1).reduce((value, part) => value[part.replaceAll("~1", "/")], openapi);
const deref = (value) => (value.$ref?.startsWith("#/components/") ? at(value.$ref.slice(1)) : value);
const code = (value) => `\`${typeof value === "string" ? value : JSON.stringify(value)}\``;

// A schema in a few words.
const short = (schema) => {
  if (schema === undefined || schema === true) return "anything";
  if (schema === false) return "never";
  if (schema.$ref) return link(schema.$ref.split("/").at(-1));
  if ("const" in schema) return code(schema.const);
  if (schema.enum) return schema.enum.map(code).join(", ");
  if (schema.anyOf && !schema.type) return schema.anyOf.map(short).join(" or ");
  const types = [schema.type ?? []].flat();
  if (types.length === 0) return schema.not ? `not ${short(schema.not)}` : "anything";
  const limits = [];
  const range = (least, most, unit) => {
    if (least !== undefined && most !== undefined && Math.abs(most) < 1e9) limits.push(`${least} to ${most}${unit}`);
    else if (least > 0) limits.push(`at least ${least}${unit}`);
    else if (most !== undefined && Math.abs(most) < 1e9) limits.push(`at most ${most}${unit}`);
  };
  range(schema.minLength, schema.maxLength, " characters");
  range(schema.minimum, schema.maximum, "");
  range(schema.minItems, schema.maxItems, " items");
  if (schema.pattern && schema.pattern.length <= 80 && !schema.pattern.includes("`")) limits.push(code(schema.pattern));
  const items = schema.items ? ` of ${short(schema.items)}` : "";
  const values = schema.additionalProperties?.$ref ? ` of ${short(schema.additionalProperties)}` : "";
  return types.join(" or ") + items + values + (limits.length ? `, ${limits.join(", ")}` : "");
};

// The fields of an object, those of objects in it, too.
const fields = (schema, prefix = "") =>
  Object.entries(schema.properties ?? {})
    .filter(([, field]) => field !== false)
    .flatMap(([name, field]) => {
      const must = schema.required?.includes(name) ? "yes" : "";
      const row = [code(prefix + name), cell(short(field)), must, cell(field.description)];
      return [row, ...fields(field, `${prefix}${name}.`)];
    });

put("# API reference");
prose(
  "Rendered from [openapi.json](spec/openapi.json), [asyncapi.json](spec/asyncapi.json) and " +
    "[schemas.json](spec/schemas.json) by `docs/spec/render.mjs`: change those. A server serves the first two, each with " +
    "the schemas in it, at `/openapi.json` and `/asyncapi.json`. The end-to-end tests hold every frame, response and " +
    "record that they see against them. PROTOCOL.md explains what is only listed here.",
);
put("- [HTTP](#http)", "- [WebSocket](#websocket)", "- [Kafka](#kafka)", "- [Schemas](#schemas)");

const responseRow = ([status, response]) => {
  const { content = {}, headers = {}, description } = deref(response);
  const bodies = Object.entries(content).map(([type, { schema }]) =>
    type === "application/json" && schema.$ref ? short(schema) : code(type));
  return [status, bodies.join(", "), Object.keys(headers).map(code).join(", "), cell(description)];
};
const everywhere = ["BadRequest", "UriTooLong", "HeadTooLarge"];

put("## HTTP");
prose(openapi.info.description);
put("Every path has these responses, too:");
const general = { 400: "BadRequest", 404: "NotFound", 405: "MethodNotAllowed", 414: "UriTooLong", 431: "HeadTooLarge" };
table(
  ["status", "body", "headers", ""],
  Object.entries(general).map(([status, name]) => responseRow([status, openapi.components.responses[name]])),
);
for (const [path, item] of Object.entries(openapi.paths)) {
  for (const [method, operation] of Object.entries(item)) {
    if (method === "parameters") continue;
    put(`### ${method.toUpperCase()} ${path}`);
    prose(`${operation.summary}. ${operation.description ?? ""}`);
    const security = operation.security.map((one) => Object.keys(one)[0]);
    const names = { bearer: "a token (`Authorization: Bearer`)", apiKey: "`X-API-Key`" };
    if (security.length > 0) {
      const ways = security.map((name) => names[name] ?? "nothing, where no tokens are configured");
      prose(`Needs ${ways.join(", or ")}.`);
    }
    const parameters = [...(item.parameters ?? []), ...(operation.parameters ?? [])].map(deref);
    table(
      ["parameter", "in", "type", ""],
      parameters.map((one) => [code(one.name), one.in, cell(short(one.schema)), cell(one.description)]),
    );
    const body = operation.requestBody?.content["application/json"];
    if (body) put(`Body: ${short(body.schema)}.`);
    table(
      ["status", "body", "headers", ""],
      Object.entries(operation.responses)
        .filter(([, response]) => !everywhere.includes(response.$ref?.split("/").at(-1)))
        .map(responseRow),
    );
  }
}

const messageRows = (channel, action) => {
  const operations = Object.values(asyncapi.operations);
  const operation = operations.find((one) => one.action === action && one.channel.$ref === `#/channels/${channel}`);
  return operation.messages.map(({ $ref }) => {
    const { name, title, summary } = asyncapi.components.messages[$ref.split("/").at(-1)];
    return [code(name), link(title), cell(summary)];
  });
};

put("## WebSocket");
for (const name of ["session", "lobby"]) {
  const channel = asyncapi.channels[name];
  put(`### ${channel.title}`);
  put(`\`GET ${channel.address}\``);
  prose(channel.description);
  for (const [action, what] of [["receive", "Client to server:"], ["send", "Server to client:"]]) {
    put(what);
    table(["type", "schema", ""], messageRows(name, action));
  }
}
put("### Close codes");
table(
  ["code", "name", "when", "what a client does"],
  asyncapi.channels.session["x-close-codes"].map((close) => [close.code, code(close.name), cell(close.when), close.reconnect]),
);

put("## Kafka");
for (const channel of Object.values(asyncapi.channels).filter((one) => one.bindings?.kafka)) {
  put(`### ${channel.address}`);
  prose(`${channel.title}. ${channel.description}`);
  for (const name of Object.keys(channel.messages)) {
    const message = asyncapi.components.messages[name];
    const payload = message.payload.anyOf ? message.payload.anyOf.map(short).join(" or ") : short(message.payload);
    prose(`**${message.title}**: ${payload}. ${message.summary}`);
    table(["part", "type", ""], [
      ["key", cell(short({ ...message.bindings.kafka.key })), cell(message.bindings.kafka.key.description)],
      ...Object.entries(message.headers.properties).map(([header, schema]) =>
        [`header ${code(header)}`, cell(short(schema)), cell(schema.description)]),
    ]);
  }
}

// An example as the other pages write them, in lines that are not too wide.
const example = (value) => {
  const wrapped = [""];
  for (const token of JSON.stringify(value).match(/"(?:[^"\\]|\\.)*"|[^"]/g)) {
    const line = wrapped.at(-1);
    if (line.length + token.length > WIDTH - 4 && /[,{[]$/.test(line)) wrapped.push(` ${token}`);
    else wrapped[wrapped.length - 1] = line + token;
  }
  return wrapped.join("\n");
};

put("## Schemas");
for (const [name, schema] of Object.entries(schemas)) {
  put(`### ${name}`);
  if (schema.description) prose(schema.description);
  const all = fields(schema);
  if (all.length === 0) prose(`Type: ${short(schema)}.`);
  else table(["field", "type", "always there", ""], all);
  if (schema.additionalProperties === false) prose("No other fields.");
  const objects = schema.examples.filter((value) => typeof value === "object" && !Array.isArray(value));
  if (objects.length > 0) put("```json", ...objects.map(example), "```");
  else prose(`For example ${schema.examples.map((value) => code(value)).join(", ")}.`);
}

const text = `${lines.join("\n").trimEnd()}\n`;
if (process.argv[2] === "--check") {
  let written = "";
  try {
    written = readFileSync(page, "utf8");
  } catch {
    // It is not there.
  }
  if (written !== text) {
    console.error("docs/API.md is not what docs/spec has: run node docs/spec/render.mjs");
    process.exit(1);
  }
} else {
  writeFileSync(page, text);
}
