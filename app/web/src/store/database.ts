/** Conversations in the browser's own database. Nothing of them is kept anywhere else. */

import { type DBSchema, type IDBPDatabase, openDB } from "idb";
import { type Conversation, type Head, headOf } from "./model.ts";

interface Schema extends DBSchema {
  heads: { key: string; value: Head };
  conversations: { key: string; value: Conversation };
}

let opened: Promise<IDBPDatabase<Schema>> | null = null;

function database(): Promise<IDBPDatabase<Schema>> {
  opened ??= openDB<Schema>("millrace", 1, {
    upgrade(fresh) {
      fresh.createObjectStore("heads", { keyPath: "id" });
      fresh.createObjectStore("conversations", { keyPath: "id" });
    },
  });
  return opened;
}

/** Other tabs of this page learn what changed. */
const channel = new BroadcastChannel("millrace");

export function whenChangedElsewhere(act: (id: string | null) => void): void {
  channel.addEventListener("message", ({ data }) => act(data as string | null));
}

/** The list, newest first. */
export async function loadHeads(): Promise<Head[]> {
  const heads = await (await database()).getAll("heads");
  return heads.sort((a, b) => b.updated - a.updated);
}

export async function load(id: string): Promise<Conversation | undefined> {
  return (await database()).get("conversations", id);
}

export async function save(conversation: Conversation): Promise<void> {
  const write = (await database()).transaction(["heads", "conversations"], "readwrite");
  await Promise.all([
    write.objectStore("heads").put(headOf(conversation)),
    write.objectStore("conversations").put(conversation),
    write.done,
  ]);
  channel.postMessage(conversation.id);
}

export async function remove(id: string): Promise<void> {
  const write = (await database()).transaction(["heads", "conversations"], "readwrite");
  await Promise.all([
    write.objectStore("heads").delete(id),
    write.objectStore("conversations").delete(id),
    write.done,
  ]);
  channel.postMessage(id);
}

export async function removeAll(): Promise<void> {
  const write = (await database()).transaction(["heads", "conversations"], "readwrite");
  await Promise.all([
    write.objectStore("heads").clear(),
    write.objectStore("conversations").clear(),
    write.done,
  ]);
  channel.postMessage(null);
}

/** Every conversation, as it leaves the browser in an export. */
export async function loadAll(): Promise<Conversation[]> {
  return (await database()).getAll("conversations");
}
