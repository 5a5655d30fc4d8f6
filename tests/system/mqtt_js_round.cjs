// One round of MQTT.js against a node: node mqtt_js_round.cjs URL VERSION. Prints what was heard, as JSON.
const mqtt = require("mqtt");

const [url, version] = [process.argv[2], Number(process.argv[3])];

function connect(name, options = {}) {
  const expiry = version === 5 && options.clean === false ? { properties: { sessionExpiryInterval: 60 } } : {};
  const settings = { clientId: `js-${name}-${version}`, protocolVersion: version, reconnectPeriod: 0, ...expiry, ...options };
  return new Promise((resolve, reject) => {
    const client = mqtt.connect(url, settings);
    client.heard = [];
    client.waiting = [];
    client.on("message", (topic, payload, packet) => {
      client.heard.push({ topic, payload: payload.toString(), packet });
      client.waiting.splice(0).forEach((again) => again());
    });
    client.once("connect", (connack) => resolve(Object.assign(client, { present: connack.sessionPresent })));
    client.once("error", reject);
  });
}

async function take(client, count) {
  while (client.heard.length < count) await new Promise((again) => client.waiting.push(again));
  return client.heard.splice(0, count);
}

async function main() {
  const said = {};
  const publisher = await connect("publisher");
  let subscriber = await connect("subscriber", { clean: false });
  await subscriber.subscribeAsync("j/#", { qos: 2 });
  for (const qos of [0, 1, 2]) await publisher.publishAsync("j/x", String(qos), { qos });
  said.live = (await take(subscriber, 3)).map(({ topic, payload, packet }) => [topic, payload, packet.qos]);
  await subscriber.endAsync();
  for (const qos of [1, 2]) await publisher.publishAsync("j/later", `later ${qos}`, { qos });
  subscriber = await connect("subscriber", { clean: false });
  said.resumed = { present: subscriber.present, heard: (await take(subscriber, 2)).map(({ payload }) => payload) };
  await publisher.publishAsync("j/kept", "kept", { qos: 1, retain: true });
  const late = await connect("late");
  await late.subscribeAsync("j/kept");
  const [kept] = await take(late, 1);
  said.retained = [kept.payload, kept.packet.retain];
  await late.subscribeAsync("w/js", { qos: 1 });
  const leaver = await connect("leaver", { will: { topic: "w/js", payload: "gone", qos: 1 } });
  leaver.stream.destroy();
  said.will = (await take(late, 1))[0].payload;
  if (version === 5) {
    await late.subscribeAsync("ask", { qos: 1 });
    const userProperties = { b: ["1", "3"] };
    const properties = { responseTopic: "answer", correlationData: Buffer.from([0, 1]), userProperties };
    await publisher.publishAsync("ask", "?", { qos: 1, properties });
    const asked = (await take(late, 1))[0].packet.properties;
    const correlation = asked.correlationData.toString("hex");
    said.properties = { responseTopic: asked.responseTopic, correlation, user: asked.userProperties.b };
  }
  await Promise.all([publisher, subscriber, late].map((client) => client.endAsync()));
  console.log(JSON.stringify(said));
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
