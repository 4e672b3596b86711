// One chat with the OpenAI SDK for JavaScript, as a whole and as a stream; prints what came as one line of JSON.
//
//   node chat.mjs BASE_URL REQUEST        REQUEST: the JSON of a Chat Completions request

import process from "node:process";
import OpenAI from "openai";

const [baseURL, json] = process.argv.slice(2);
const request = JSON.parse(json);
const client = new OpenAI({ baseURL, apiKey: "none-needed", maxRetries: 0 });

const answer = await client.chat.completions.create(request);
const pieces = [];
let finishReason = null;
let usage = null;
for await (const chunk of await client.chat.completions.create({
  ...request,
  stream: true,
  stream_options: { include_usage: true },
})) {
  const choice = chunk.choices[0];
  if (choice?.delta.content) pieces.push(choice.delta.content);
  finishReason = choice?.finish_reason ?? finishReason;
  usage = chunk.usage ?? usage;
}
const refusal = await client.chat.completions.create({ ...request, model: "no-such-model" }).catch((error) => ({
  kind: error.constructor.name,
  status: error.status,
  code: error.code,
}));

console.log(JSON.stringify({ text: answer.choices[0].message.content, pieces, finishReason, usage, refusal }));
