// Shows openapi.json as a page; every error code has an anchor of its own, which the `type` of a problem points to.
"use strict";

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const table = (heads, rows) => make("table", {},
  make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
  make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((item) => make("td", {}, item))))));

// A description in which `words` are code.
function text(value = "") {
  const parts = value.split("`").map((part, index) => (index % 2 ? make("code", {}, part) : part));
  return make("span", {}, ...parts);
}

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  const many = schema.oneOf || schema.anyOf || schema.allOf;
  if (many && !schema.properties) return many.map(typeOf).join(schema.allOf ? " & " : " | ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.type === "array") return `${typeOf(schema.items)}[]`;
  return [schema.type].flat().join(" | ");
}

function operation(method, path, details) {
  const body = make("div");
  if (details.parameters?.length) {
    body.append(make("h4", {}, "Parameters"), table(["Name", "In", "Type", ""],
      details.parameters.map((item) => [make("code", {}, item.name), item.in, typeOf(item.schema), item.description || ""])));
  }
  for (const [type, media] of Object.entries(details.requestBody?.content || {})) {
    body.append(make("h4", {}, `Body: ${type}`));
    if (media.schema.properties) body.append(properties(media.schema));
    else body.append(make("p", {}, make("a", { href: `#${typeOf(media.schema)}` }, typeOf(media.schema))));
    if (media.example) body.append(make("pre", {}, JSON.stringify(media.example, null, 2)));
  }
  body.append(make("h4", {}, "Replies"), table(["Status", "", "Headers"],
    Object.entries(details.responses).map(([status, reply]) => [status, text(reply.description),
      Object.keys(reply.headers || {}).join(", ")])));
  return make("details", { id: details.operationId },
    make("summary", {}, make("code", { class: "method" }, method.toUpperCase()), make("code", {}, path), ` ${details.summary}`), body);
}

const properties = (schema) => table(["Field", "Type", ""], Object.entries(schema.properties || {}).map(([name, item]) => [
  make("code", {}, name + (schema.required?.includes(name) ? "" : "?")), typeOf(item), text(item.description)]));

function errorCodes(document_) {
  const codes = new Map();
  for (const item of Object.values(document_.paths)) for (const details of Object.values(item)) {
    for (const [status, reply] of Object.entries(details.responses)) {
      for (const [, title, code] of (reply.description || "").matchAll(/([^;:]+): `([a-z_]+)`/g)) {
        if (status !== "default") codes.set(code, [status, title.trim()]);
      }
    }
  }
  return [...codes].sort();
}

function show(document_) {
  const place = document.querySelector("#docs");
  document.querySelector("#about").textContent = `${document_.info.title} ${document_.info.version}`;
  place.append(make("p", {}, document_.info.description), make("h2", {}, "Routes"));
  for (const [path, item] of Object.entries(document_.paths)) {
    for (const [method, details] of Object.entries(item)) place.append(operation(method, path, details));
  }
  const errors = table(["Code", "Status", ""], errorCodes(document_).map(([code, [status, title]]) => [make("code", { id: code }, code), status, title]));
  place.append(make("h2", {}, "Error codes"), make("p", {}, "Errors are application/problem+json (RFC 9457). Codes never change their meaning."), errors);
  place.append(make("h2", {}, "Bodies"));
  for (const [name, schema] of Object.entries(document_.components.schemas)) {
    const about = make("p", {}, text(schema.description));
    const part = make("details", { id: name }, make("summary", {}, make("code", {}, name)),
      make("div", {}, about, schema.properties ? properties(schema) : make("p", {}, typeOf(schema))));
    place.append(part);
  }
  openTarget();
}

// What an address with #name points to may be inside a closed part.
function openTarget() {
  const target = document.getElementById(location.hash.slice(1));
  if (!target) return;
  if (target.tagName === "DETAILS") target.open = true;
  target.scrollIntoView();
}

window.addEventListener("hashchange", openTarget);
fetch("openapi.json").then((reply) => reply.json()).then(show)
  .catch(() => document.querySelector("#docs").append("The service does not answer."));
