// Checks documents: openapi.json against the meta-schema of OpenAPI 3.1, asyncapi.json against that of AsyncAPI 3.0, all
// schemas against that of JSON Schema 2020-12 (strictly: no unknown keyword), and that every reference has a target.
//
//   node validate.mjs FOLDER     the documents of the repository, or those that a server serves
import { readFileSync, existsSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { Validator } from "@seriousme/openapi-schema-validator";
import Ajv from "ajv";
import Ajv2020 from "ajv/dist/2020.js";
import addFormats from "ajv-formats";

const folder = resolve(process.argv[2] ?? ".");
const load = (name) => JSON.parse(readFileSync(join(folder, name), "utf8"));
const problems = [];
const complain = (where, what) => problems.push(`${where}: ${what}`);

const openapi = load("openapi.json");
const asyncapi = load("asyncapi.json");

// The validator knows no other files: the schemas go where the server puts them.
const whole = structuredClone(openapi);
if (existsSync(join(folder, "schemas.json"))) {
  const { $defs } = load("schemas.json");
  const inside = JSON.stringify({ ...whole, components: { ...whole.components, schemas: $defs } });
  Object.assign(whole, JSON.parse(inside.replaceAll(/"(schemas\.json)?#\/\$defs\//g, '"#/components/schemas/')));
}
const { valid, errors } = await new Validator().validate(whole);
if (!valid) complain("openapi.json", JSON.stringify(errors, null, 1).slice(0, 4000));
if (!String(openapi.openapi).startsWith("3.1.")) complain("openapi.json", `is of version ${openapi.openapi}`);

const metaschema = createRequire(import.meta.url)("@asyncapi/specs/schemas/3.0.0.json");
// It brings the meta-schema of draft 7 along.
const draft7 = new Ajv({ strict: false, allErrors: true, meta: false, validateSchema: false });
addFormats(draft7);
const isAsyncApi = draft7.compile(metaschema);
if (!isAsyncApi(asyncapi)) {
  const shown = isAsyncApi.errors.slice(0, 8).map((error) => `${error.instancePath} ${error.message}`);
  complain("asyncapi.json", shown.join("\n  "));
}

// In the repository the schemas are beside the documents, in what is served within them.
const documents = { "openapi.json": openapi, "asyncapi.json": asyncapi };
if (existsSync(join(folder, "schemas.json"))) documents["schemas.json"] = load("schemas.json");

const at = (document, pointer) =>
  pointer
    .split("/")
    .slice(1)
    .reduce((value, part) => value?.[part.replaceAll("~1", "/").replaceAll("~0", "~")], document);

let references = 0;
const follow = (value, where) => {
  if (value === null || typeof value !== "object") return;
  if (typeof value.$ref === "string") {
    references += 1;
    const [file, pointer] = value.$ref.split("#");
    const target = documents[file || where.split("#")[0]];
    if (target === undefined || at(target, pointer ?? "") === undefined) complain(where, `nothing is at ${value.$ref}`);
  }
  for (const [name, inner] of Object.entries(value)) follow(inner, `${where}/${name}`);
};
for (const [name, document] of Object.entries(documents)) follow(document, `${name}#`);

// Every definition compiles, strictly, and allows its examples.
const definitions = documents["schemas.json"]?.$defs ?? { ...openapi.components.schemas, ...asyncapi.components.schemas };
const prefix = documents["schemas.json"] ? "#/$defs/" : "#/components/schemas/";
const ajv = new Ajv2020({ strict: true, strictTypes: false, strictRequired: false, allErrors: true });
addFormats(ajv);
try {
  ajv.addSchema(JSON.parse(JSON.stringify({ $defs: definitions }).replaceAll(`"${prefix}`, '"#/$defs/')), "all");
  for (const [name, schema] of Object.entries(definitions)) {
    const check = ajv.getSchema(`all#/$defs/${name}`);
    for (const example of schema.examples ?? []) {
      if (!check(example)) complain(`an example of ${name}`, ajv.errorsText(check.errors));
    }
  }
} catch (error) {
  complain("the schemas", error.message);
}

// What OpenAPI's meta-schema can't see.
const operations = [];
for (const [path, item] of Object.entries(openapi.paths)) {
  for (const [method, operation] of Object.entries(item)) {
    if (method === "parameters") continue;
    operations.push(operation.operationId);
    const deref = (value) => (value.$ref?.startsWith("#") ? at(openapi, value.$ref.slice(1)) : value);
    const declared = [...(item.parameters ?? []), ...(operation.parameters ?? [])].map(deref);
    const named = [...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1]).sort();
    const inPath = declared.filter((parameter) => parameter.in === "path").map((parameter) => parameter.name).sort();
    if (String(named) !== String(inPath)) complain(path, `names ${named}, declares ${inPath}`);
    for (const requirement of operation.security ?? []) {
      for (const scheme of Object.keys(requirement)) {
        if (!openapi.components.securitySchemes[scheme]) complain(path, `there is no security scheme ${scheme}`);
      }
    }
  }
}
if (new Set(operations).size !== operations.length) complain("openapi.json", "an operationId is there twice");
for (const [name, operation] of Object.entries(asyncapi.operations)) {
  for (const { $ref } of operation.messages) {
    if (!$ref.startsWith(`${operation.channel.$ref}/messages/`)) complain(name, `${$ref} is not of its channel`);
  }
}

if (problems.length > 0) {
  for (const problem of problems) console.error(problem);
  process.exit(1);
}
console.log(`${operations.length} routes, ${Object.keys(asyncapi.operations).length} operations, ` +
  `${Object.keys(definitions).length} schemas, ${references} references`);
