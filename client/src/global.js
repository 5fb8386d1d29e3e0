import { LiveChat } from "./livechat.js";

globalThis.LiveChat = LiveChat;
