// Requests to the server. Failures are Errors whose message is the server's sentence.

let token = "";

export const address = (path, query) => `${path}?${new URLSearchParams(query)}`;

export async function load(path, query = null, signal = undefined) {
  return request(query ? address(path, query) : path, { signal });
}

export async function send(path, body, signal = undefined) {
  const headers = { "Content-Type": "application/json", "X-Tnet-Token": token };
  return request(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

export async function loadModel() {
  const model = await load("/api/model");
  token = model.token;
  return model;
}

async function request(url, options) {
  let response, body = {};
  try {
    response = await fetch(url, options);
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (!response) throw new Error("the server does not answer; start `tnet view` again and reload the page");
  }
  if (!response.ok) throw new Error(body.error ?? `the server answered ${response.status}`);
  return body;
}
