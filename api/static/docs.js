// Shows openapi.json as a page; every error code has an anchor of its own, which the `type` of a problem points to.
"use strict";

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const table = (heads, rows, attributes = {}) => make("div", { class: "scroll" }, make("table", attributes,
  make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
  make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((item) => make("td", {}, item)))))));

// A description in which `words` are code and an empty line begins a paragraph.
function text(value = "") {
  const parts = value.split("`").map((part, index) => (index % 2 ? make("code", {}, part) : part));
  return make("span", {}, ...parts);
}

const paragraphs = (value = "") => value.split("\n\n").map((part) => make("p", {}, text(part)));
const code = (value, attributes = {}) => make("code", attributes, value);
const example = (value) => make("pre", {}, code(typeof value === "string" ? value : JSON.stringify(value, null, 2)));
const nameOf = (ref) => ref.split("/").pop();

// --- schemas ----------------------------------------------------------------------------------------------------
function joined(items, separator) {
  return items.flatMap((item, index) => (index ? [separator, item] : [item]));
}

// What a value may be, with links to the schemas that have names.
function typeOf(schema) {
  if (!schema || schema === true) return make("span", {}, "anything");
  if (schema.$ref) return make("a", { href: `#${nameOf(schema.$ref)}` }, nameOf(schema.$ref));
  const many = schema.oneOf || schema.anyOf;
  if (many && !schema.properties) return make("span", {}, ...joined(many.map(typeOf), " | "));
  if (schema.allOf) return typeOf(schema.allOf[0]);
  if (schema.const !== undefined) return code(JSON.stringify(schema.const));
  if (schema.enum) return make("span", {}, ...joined(schema.enum.map((item) => code(String(item))), " | "));
  if (schema.type === "array") return make("span", {}, "list of ", typeOf(schema.items));
  if (schema.type === "object" && schema.additionalProperties && !schema.properties) {
    return make("span", {}, "map of ", typeOf(schema.additionalProperties));
  }
  return make("span", {}, [schema.type].flat().join(" | ") || "anything");
}

// Default and limits, in words.
function bounds(schema) {
  const found = [];
  for (const item of [schema, ...(schema.anyOf || [])]) {
    const least = item.minimum ?? item.exclusiveMinimum, most = item.maximum ?? item.exclusiveMaximum;
    if (least !== undefined || most !== undefined) found.push(`${least ?? "…"} to ${most ?? "…"}`);
    if (item.minLength !== undefined || item.maxLength !== undefined) found.push(`${item.minLength ?? 0} to ${item.maxLength ?? "…"} characters`);
    if (item.minItems !== undefined) found.push(`at least ${item.minItems}`);
    if (item.pattern) found.push(item.pattern);
    if (item.format && item.format !== "binary") found.push(item.format);
  }
  if (schema.default !== undefined && schema.default !== null) found.push(`default ${JSON.stringify(schema.default)}`);
  return found.map((item) => make("div", { class: "bound" }, item));
}

const properties = (schema) => table(["Field", "Type", ""], Object.entries(schema.properties || {}).map(([name, item]) => [
  make("span", {}, code(name), ...(schema.required?.includes(name) ? [make("span", { class: "required" }, " required")] : [])),
  make("span", {}, typeOf(item), ...bounds(item)), text(item.description)]));

// --- routes -----------------------------------------------------------------------------------------------------
const anchor = (id) => make("a", { href: `#${id}`, class: "anchor", "aria-label": "Link to this" }, "#");

function examples(media) {
  const many = Object.values(media.examples || {}).map(({ summary, value }) => [summary, value]);
  const all = media.example === undefined ? many : [["Example", media.example], ...many];
  return all.map(([summary, value]) => make("details", { class: "example" }, make("summary", {}, summary), example(value)));
}

function requestBody(body) {
  if (!body) return [];
  const parts = Object.entries(body.content).flatMap(([type, media]) => [
    make("h4", {}, "Body: ", code(type)), media.schema.properties ? properties(media.schema) : make("p", {}, typeOf(media.schema)),
    ...examples(media)]);
  return [...(body.description ? [make("p", {}, text(body.description))] : []), ...parts];
}

function reply(status, found, headers) {
  const place = make("details", { class: "reply" }, make("summary", {}, code(status, { class: `status s${status[0]}` }), " ", text(found.description)));
  const body = make("div");
  for (const [type, media] of Object.entries(found.content || {})) {
    body.append(make("p", {}, code(type), " ", typeOf(media.schema)), ...examples(media));
  }
  body.append(table(["Header", "Example", ""], Object.entries(found.headers || {}).map(([name, ref]) => {
    const header = headers[nameOf(ref.$ref)];
    return [code(name), code(String(header.example)), text(header.description)];
  })));
  place.append(body);
  return place;
}

const sample = (item) => item.example ?? item.schema.examples?.[0] ?? item.schema.default;

// The request as a person would try it, with a key where one is needed.
function curl(method, path, details) {
  let address = location.href.replace(/docs(#.*)?$/, "").replace(/\/$/, "") + path;
  for (const item of (details.parameters || []).filter((found) => found.in === "path")) address = address.replace(`{${item.name}}`, sample(item));
  const lines = [`curl -sS ${method === "get" ? "" : `-X ${method.toUpperCase()} `}'${address}'`];
  if (details.security.some((scheme) => scheme.bearer) && !details.security.some((scheme) => !Object.keys(scheme).length)) {
    lines.push("-H \"Authorization: Bearer $API_KEY\"");
  }
  const json = details.requestBody?.content["application/json"];
  if (json) {
    lines.push("-H 'Content-Type: application/json'", `-d '${JSON.stringify((json.example ?? Object.values(json.examples)[0].value))}'`);
  }
  return lines.join(" \\\n  ");
}

function operation(method, path, details, headers) {
  const body = make("div", {}, ...paragraphs(details.description));
  const open = details.security.some((scheme) => !Object.keys(scheme).length) || !details.security.length;
  body.append(make("p", { class: "access" }, open ? "Needs no key." : "Needs a key."), example(curl(method, path, details)));
  if (details.parameters?.length) {
    body.append(make("h4", {}, "Parameters"), table(["Name", "In", "Type", "Example", ""],
      details.parameters.map((item) => [code(item.name), item.in, make("span", {}, typeOf(item.schema), ...bounds(item.schema)),
        sample(item) === undefined ? "" : code(String(sample(item))), text(item.description)])));
  }
  body.append(...requestBody(details.requestBody), make("h4", {}, "Replies"),
    ...Object.entries(details.responses).map(([status, found]) => reply(status, found, headers)));
  return make("details", { id: details.operationId, class: "operation" },
    make("summary", {}, code(method.toUpperCase(), { class: "method" }), code(path), make("span", { class: "about" }, details.summary),
      anchor(details.operationId)), body);
}

// --- errors -----------------------------------------------------------------------------------------------------
// Every code: when it comes, and which routes give it.
function errorTable(document_) {
  const routes = new Map(), operations = Object.values(document_.paths).flatMap((item) => Object.values(item));
  for (const details of operations) for (const found of Object.values(details.responses)) {
    for (const name of Object.keys(found.content?.["application/problem+json"]?.examples || {})) {
      routes.set(name, [...(routes.get(name) || []), details.operationId]);
    }
  }
  const order = (one, other) => one.status - other.status || (one.code < other.code ? -1 : 1);
  return table(["Code", "Status", "Title", "When", "Again?", "Routes"], [...document_["x-error-codes"]].sort(order).map((found) => {
    const ids = routes.get(found.code) || [];
    return [make("span", { id: found.code }, make("a", { href: `#${found.code}` }, code(found.code))),
      code(String(found.status), { class: `status s${String(found.status)[0]}` }), found.title, text(found.when),
      found.retryable ? "yes" : "no", ids.length === 0 || ids.length === operations.length ? "any"
        : make("span", {}, ...joined(ids.map((id) => make("a", { href: `#${id}` }, id)), ", "))];
  }));
}

// --- the page ---------------------------------------------------------------------------------------------------
function show(document_) {
  const place = document.querySelector("#docs"), { components, paths } = document_;
  const all = Object.entries(paths).flatMap(([path, item]) => Object.entries(item).map(([method, details]) => [method, path, details]));
  document.querySelector("#about").textContent = `${document_.info.title} ${document_.info.version}`;
  place.append(...paragraphs(document_.info.description), make("nav", { class: "contents", "aria-label": "On this page" },
    ...["routes", "keys", "errors", "schemas"].map((name) => make("a", { href: `#${name}` }, name[0].toUpperCase() + name.slice(1)))));
  place.append(make("h2", { id: "routes" }, "Routes"));
  for (const tag of document_.tags) {
    const own = all.filter(([, , details]) => details.tags?.includes(tag.name));
    place.append(make("h3", {}, tag.name, make("span", { class: "about" }, tag.description)),
      ...own.map(([method, path, details]) => operation(method, path, details, components.headers)));
  }
  // What has no tag, or one that is not described, is shown all the same.
  const known = new Set(document_.tags.map((tag) => tag.name));
  place.append(...all.filter(([, , details]) => !details.tags?.some((tag) => known.has(tag)))
    .map(([method, path, details]) => operation(method, path, details, components.headers)));
  place.append(make("h2", { id: "keys" }, "Keys"), make("p", {}, "Where the service has keys, send yours in one of these headers:"),
    table(["Scheme", ""], Object.entries(components.securitySchemes).map(([name, scheme]) => [code(name), text(scheme.description)])));
  place.append(make("h2", { id: "errors" }, "Error codes"),
    ...paragraphs("Errors are `application/problem+json` (RFC 9457). Codes never change their meaning; `type` points here."),
    errorTable(document_));
  place.append(make("h2", { id: "schemas" }, "Schemas"));
  for (const [name, schema] of Object.entries(components.schemas)) {
    place.append(make("details", { id: name, class: "schema" }, make("summary", {}, code(name), make("span", { class: "about" },
      text((schema.description || "").split("\n")[0])), anchor(name)),
    make("div", {}, schema.properties ? properties(schema) : make("p", {}, typeOf(schema)))));
  }
  openTarget();
}

// What an address with #name points to may be inside a closed part.
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  for (const marked of document.querySelectorAll(".marked")) marked.classList.remove("marked");
  (target.closest("tr") || target).classList.add("marked");
  target.scrollIntoView();
}

window.addEventListener("hashchange", openTarget);
fetch("openapi.json").then((found) => found.json()).then(show)
  .catch(() => document.querySelector("#docs").append("The service does not answer."));
