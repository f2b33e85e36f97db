// Runs each case once against the gateway at BASE_URL and prints what OpenAI's Node SDK made of it, as one JSON object.
import OpenAI, { toFile } from "openai";

const options = { baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 0, timeout: 10_000 };
const client = new OpenAI(options);
const messages = [{ role: "user", content: "hi ü👋" }];
const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
const chat = { model: "gpt", messages };

async function collect(stream, pick) {
  const found = [];
  for await (const event of stream) found.push(pick(event));
  return found;
}

const cases = {
  async chat() {
    const { data, response, request_id } = await client.chat.completions.create(chat).withResponse();
    return { text: data.choices[0].message.content, total: data.usage.total_tokens, id: request_id === response.headers.get("x-request-id") };
  },
  async stream() {
    const stream = await client.chat.completions.create({ ...chat, stream: true, stream_options: { include_usage: true } });
    const chunks = await collect(stream, (chunk) => chunk);
    return { text: chunks.map((c) => c.choices[0]?.delta.content ?? "").join(""), usage: chunks.at(-1).usage.total_tokens };
  },
  async tools() {
    const final = await client.chat.completions.stream({ ...chat, tools }).finalChatCompletion();
    return final.choices[0].message.tool_calls.map((call) => [call.id, call.function.arguments]);
  },
  async images() {
    const content = [{ type: "text", text: "what?" }, { type: "image_url", image_url: { url: process.env.PIXEL } }];
    return (await client.chat.completions.create({ ...chat, messages: [{ role: "user", content }] })).choices[0].message.content;
  },
  async parsed() {
    const schema = { type: "object", properties: { name: { type: "string" } }, required: ["name"], additionalProperties: false };
    const format = { type: "json_schema", json_schema: { name: "city", strict: true, schema } };
    return JSON.parse((await client.chat.completions.create({ ...chat, response_format: format })).choices[0].message.content);
  },
  embeddings: async () => (await client.embeddings.create({ model: "gpt", input: "x" })).data[0].embedding,
  moderations: async () => (await client.moderations.create({ model: "gpt", input: "x" })).results[0].flagged,
  completions: async () => (await client.completions.create({ model: "gpt", prompt: "x" })).choices[0].text,
  responses: async () => (await client.responses.create({ model: "gpt", input: "x" })).output_text,
  async responsesStream() {
    const stream = client.responses.stream({ model: "gpt", input: "x" });
    const deltas = await collect(stream, (event) => (event.type === "response.output_text.delta" ? event.delta : ""));
    return [deltas.join(""), (await stream.finalResponse()).status];
  },
  async responsesBridged() {
    const stream = client.responses.stream({ model: "chat-only", input: "x" });
    const deltas = await collect(stream, (event) => (event.type === "response.output_text.delta" ? event.delta : ""));
    return [deltas.join(""), (await stream.finalResponse()).output_text];
  },
  claude: async () => (await client.chat.completions.create({ ...chat, model: "claude", max_tokens: 9 })).choices[0].message.content,
  models: async () => collect(client.models.list(), (model) => model.id),
  model: async () => (await client.models.retrieve("claude")).id,
  async transcription() {
    const file = await toFile(Buffer.alloc(200_000, 7), "a.wav");
    return (await client.audio.transcriptions.create({ model: "gpt", file })).text;
  },
  async speech() {
    const response = await client.audio.speech.create({ model: "gpt", voice: "alloy", input: "x" });
    return (await response.arrayBuffer()).byteLength;
  },
  wrongKey: () => new OpenAI({ ...options, apiKey: "sk-wrong" }).chat.completions.create(chat),
  unknownModel: () => client.chat.completions.create({ ...chat, model: "unknown" }),
  unreachable: () => client.chat.completions.create({ ...chat, model: "dead" }),
  badRequest: () => client.chat.completions.create(chat),
  rateLimit: () => client.chat.completions.create({ ...chat, stream: true }),
  retried: async () => (await client.chat.completions.create(chat, { maxRetries: 1 })).choices[0].message.content,
  overloaded: () => client.chat.completions.create(chat),
  cut: async () => collect(await client.chat.completions.create({ ...chat, stream: true }), () => 0),
  cutBridged: async () => collect(await client.chat.completions.create({ ...chat, model: "claude", stream: true }), () => 0),
  cutResponse: async () => collect(await client.responses.create({ model: "gpt", input: "x", stream: true }), () => 0),
  timeout: () => client.chat.completions.create(chat, { timeout: 300 }),
};

const results = {};
for (const [name, run] of Object.entries(cases)) {
  try {
    results[name] = await run();
  } catch (error) {
    const { status, code, message } = error;
    results[name] = { raised: error.constructor.name, status, code, message, retryAfter: error.headers?.get("retry-after") };
  }
}
console.log(JSON.stringify(results));
process.exit(0);
