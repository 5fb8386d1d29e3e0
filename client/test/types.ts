// The declared types, as an application uses them.
import { LiveChat, type Message, type OutboxEntry } from "livechat-ws-client";

const chat = new LiveChat({ url: "https://chat.example.com", session: "s", user: "u", type: "customer", token: async () => "t" });
const shown: Message[] = [];
const remove: () => void = chat.on("message", (message, { isOwn }) => {
  if (!isOwn) chat.read(String(message.message_id));
  shown.push(message);
});
chat.on("state", ({ state, retryInMs }) => state === "offline" && retryInMs);
chat.on("session_update", (data, frame) => [data, frame.type]);
const entry: OutboxEntry = chat.start().send("hello", { attachments: [{ url: "u" }] });
if (entry.status === "failed") chat.discard(entry.client_message_id);
remove();
// @ts-expect-error: there is no such type of user.
new LiveChat({ session: "s", user: "u", type: "robot" });
