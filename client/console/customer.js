// The customer's side: one conversation, as a widget on a shop's page would have it.

import { Conversation } from "./conversation.js";
import { cutButton } from "./network.js";
import { find, say } from "./ui.js";

export function customerPane(root, { session, user, network, tokens }) {
  say(find(root, "who"), `${user} in session ${session}`);
  cutButton(find(root, "cut"), network);
  const title = "Support";
  const conversation = new Conversation({ session, user, type: "customer", title, network, tokens });
  find(root, "body").append(conversation.root);
  return conversation;
}
